//! What a bundle may ask for and this runtime does not do: refused by the field's name, never ignored.

use super::OciError;
use super::spec::{BlockIoSpec, Linux, MemorySpec, ProcessSpec, Resources, Spec};

/// Where the kernel says which security modules are active, separated by commas.
const MODULES: &str = "/sys/kernel/security/lsm";
/// The same of AppArmor alone, where securityfs is not mounted.
const APPARMOR: &str = "/sys/module/apparmor/parameters/enabled";

/// Checks a whole specification.
pub fn check(spec: &Spec) -> Result<(), OciError> {
    let platforms = [
        ("solaris", spec.solaris.is_some()),
        ("windows", spec.windows.is_some()),
        ("vm", spec.vm.is_some()),
        ("zos", spec.zos.is_some()),
    ];
    refuse(&platforms)?;
    if let Some(process) = &spec.process {
        check_process(process)?;
    }
    let Some(linux) = &spec.linux else { return Ok(()) };
    let fields = [
        ("linux.intelRdt", linux.intel_rdt.is_some()),
        ("linux.memoryPolicy", linux.memory_policy.is_some()),
        ("linux.netDevices", linux.net_devices.is_some()),
        // Without SELinux there is nothing to label, and the bundle gets all there is.
        ("linux.mountLabel", !linux.mount_label.is_empty() && selinux()),
    ];
    refuse(&fields)?;
    namespaces(linux)?;
    linux.resources.as_ref().map_or(Ok(()), resources)
}

/// Checks a process alone, as `exec` is given one.
pub fn check_process(process: &ProcessSpec) -> Result<(), OciError> {
    refuse(&[
        ("process.apparmorProfile", !process.apparmor_profile.is_empty() && apparmor()),
        ("process.selinuxLabel", !process.selinux_label.is_empty() && selinux()),
    ])
}

/// Checks limits alone, as `update` is given them.
pub fn resources(resources: &Resources) -> Result<(), OciError> {
    // An empty object says nothing; it is what generators write.
    let network = resources.network.as_ref().is_some_and(|value| {
        value.as_object().is_none_or(|fields| fields.values().any(|field| !field.is_null()))
    });
    refuse(&[("linux.resources.network (control groups of version 1)", network)])?;
    if let Some(memory) = &resources.memory {
        check_memory(*memory)?;
    }
    if let Some(cpu) = &resources.cpu {
        refuse(&[
            ("linux.resources.cpu.realtimeRuntime", cpu.realtime_runtime.is_some_and(|value| value != 0)),
            ("linux.resources.cpu.realtimePeriod", cpu.realtime_period.is_some_and(|value| value != 0)),
        ])?;
    }
    resources.block_io.as_ref().map_or(Ok(()), check_io)
}

fn check_memory(memory: MemorySpec) -> Result<(), OciError> {
    refuse(&[
        ("linux.resources.memory.kernel", memory.kernel.is_some_and(|value| value > 0)),
        ("linux.resources.memory.kernelTCP", memory.kernel_tcp.is_some_and(|value| value > 0)),
        ("linux.resources.memory.swappiness", memory.swappiness.is_some()),
        ("linux.resources.memory.disableOOMKiller", memory.disable_oom_killer == Some(true)),
    ])
}

fn check_io(io: &BlockIoSpec) -> Result<(), OciError> {
    let leaf = io.weight_device.iter().any(|device| device.leaf_weight.is_some());
    refuse(&[
        ("linux.resources.blockIO.leafWeight", io.leaf_weight.is_some()),
        ("linux.resources.blockIO.weightDevice.leafWeight", leaf),
    ])
}

/// Each kind once, and only those the specification knows.
fn namespaces(linux: &Linux) -> Result<(), OciError> {
    const KINDS: [&str; 8] = ["pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time"];
    for (place, one) in linux.namespaces.iter().enumerate() {
        let bad = |why: &str| OciError::Spec(format!("linux.namespaces[{place}].type {:?} {why}", one.kind));
        if !KINDS.contains(&one.kind.as_str()) {
            return Err(bad("is not one"));
        }
        if linux.namespaces.iter().take(place).any(|other| other.kind == one.kind) {
            return Err(bad("is there twice"));
        }
    }
    Ok(())
}

fn refuse(fields: &[(&str, bool)]) -> Result<(), OciError> {
    match fields.iter().find(|(_, asked)| *asked) {
        Some((field, _)) => Err(OciError::Spec(format!("{field} is not supported"))),
        None => Ok(()),
    }
}

fn apparmor() -> bool {
    std::fs::read_to_string(APPARMOR).is_ok_and(|text| text.starts_with('Y')) || active("apparmor")
}

fn selinux() -> bool {
    std::path::Path::new("/sys/fs/selinux/enforce").exists() || active("selinux")
}

fn active(module: &str) -> bool {
    std::fs::read_to_string(MODULES).is_ok_and(|text| text.trim().split(',').any(|one| one == module))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(json: &str) -> String {
        let spec: Spec = serde_json::from_str(json).unwrap();
        check(&spec).map_or_else(|error| error.to_string(), |()| "taken".to_owned())
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let cases = [
            (r#"{"windows":{}}"#, "windows"),
            (r#"{"linux":{"intelRdt":{"closID":"x"}}}"#, "linux.intelRdt"),
            (r#"{"linux":{"netDevices":{"eth0":{}}}}"#, "linux.netDevices"),
            (r#"{"linux":{"memoryPolicy":{"mode":"MPOL_BIND"}}}"#, "linux.memoryPolicy"),
            (r#"{"linux":{"resources":{"memory":{"swappiness":1}}}}"#, "memory.swappiness"),
            (r#"{"linux":{"resources":{"memory":{"disableOOMKiller":true}}}}"#, "memory.disableOOMKiller"),
            (r#"{"linux":{"resources":{"network":{"classID":7}}}}"#, "resources.network"),
            (r#"{"linux":{"resources":{"cpu":{"realtimeRuntime":7}}}}"#, "cpu.realtimeRuntime"),
            (r#"{"linux":{"resources":{"blockIO":{"leafWeight":7}}}}"#, "blockIO.leafWeight"),
            (r#"{"linux":{"namespaces":[{"type":"pid"},{"type":"pid"}]}}"#, "twice"),
            (r#"{"linux":{"namespaces":[{"type":"space"}]}}"#, "is not one"),
        ];
        for (json, expected) in cases {
            assert!(refused(json).contains(expected), "{json}: {}", refused(json));
        }
        for json in ["{}", r#"{"linux":{"resources":{"network":{},"memory":{"limit":1}}},"unknown":1}"#] {
            assert_eq!(refused(json), "taken", "{json}");
        }
    }
}
