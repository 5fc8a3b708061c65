//! The parts of a bundle that have no place in a plan of the agent's: names and texts to the numbers of the kernel.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::mounts::Fds;
use super::spec::{
    Capabilities, DeviceSpec, IoPrioritySpec, Linux, Mapping, PersonalitySpec, ProcessSpec, SchedulerSpec,
    SeccompSpec,
};
use super::{OciError, file, system};
use crate::capability;
use crate::plan::{
    CapabilitySets, Node, NodeKind, ProcessSpecial, Propagation, Scheduler, SeccompListener, Special,
    TimeNamespace, TimeOffset,
};

/// Most lines of an id map (the kernel's own limit).
const MAPPINGS_MAX: usize = 340;
/// Most processors a list may name.
const PROCESSORS_MAX: u32 = 1024;
/// Permission bits of a device node that says nothing of them.
const NODE_MODE: u32 = 0o666;

fn bad(field: &str, value: impl std::fmt::Debug) -> OciError {
    OciError::Spec(format!("{field}: {value:?} is not one"))
}

/// What the container itself wants beside a plan.
pub fn of_container(linux: &Linux, fds: &mut Fds) -> Result<Special, OciError> {
    let joined = |kind: &str| {
        let found = linux.namespaces.iter().find(|one| one.kind == kind);
        found.map(|one| one.path.as_ref().map(|path| (path, namespace(path)))).unwrap_or_default()
    };
    let mount_namespace = match joined("mount") {
        Some((_, opened)) => Some(fds.add(opened?)?),
        None => None,
    };
    let wants_time = linux.namespaces.iter().any(|one| one.kind == "time");
    let time = match joined("time") {
        Some((_, opened)) => Some(TimeNamespace::Join(fds.add(opened?)?)),
        None if wants_time => Some(TimeNamespace::New(offsets(linux)?)),
        None => None,
    };
    if !linux.time_offsets.is_empty() && !matches!(time, Some(TimeNamespace::New(_))) {
        return Err(OciError::Spec("linux.timeOffsets need a new time namespace".to_owned()));
    }
    let nodes = linux.devices.iter().map(|one| node(one, linux)).collect::<Result<_, _>>()?;
    let root_propagation = match linux.rootfs_propagation.as_str() {
        "" => None,
        name => {
            let found = propagation(name).map(|(kind, _)| kind);
            Some(found.ok_or_else(|| bad("linux.rootfsPropagation", name))?)
        }
    };
    let host_mounts = !linux.namespaces.iter().any(|one| one.kind == "mount");
    Ok(Special { mount_namespace, host_mounts, time, nodes, root_propagation })
}

fn namespace(path: &Path) -> Result<OwnedFd, OciError> {
    Ok(std::fs::File::open(path).map_err(file("open", path))?.into())
}

fn offsets(linux: &Linux) -> Result<Vec<TimeOffset>, OciError> {
    let one = |(clock, offset): (&String, &super::spec::OffsetSpec)| {
        if !["monotonic", "boottime"].contains(&clock.as_str()) {
            return Err(bad("linux.timeOffsets", clock));
        }
        Ok(TimeOffset { clock: clock.clone(), seconds: offset.secs, nanoseconds: offset.nanosecs })
    };
    linux.time_offsets.iter().map(one).collect()
}

/// `private`, `rslave`, …; whether it is recursive.
pub fn propagation(name: &str) -> Option<(Propagation, bool)> {
    let (recursive, plain) = match name.strip_prefix('r') {
        Some(rest) => (true, rest),
        None => (false, name),
    };
    let kind = match plain {
        "private" => Propagation::Private,
        "slave" => Propagation::Slave,
        "shared" => Propagation::Shared,
        "unbindable" => Propagation::Unbindable,
        _ => return None,
    };
    Some((kind, recursive))
}

fn node(spec: &DeviceSpec, linux: &Linux) -> Result<Node, OciError> {
    let kind = match spec.kind.as_str() {
        "b" => NodeKind::Block,
        "c" | "u" => NodeKind::Character,
        "p" => NodeKind::Pipe,
        other => return Err(bad("linux.devices.type", other)),
    };
    if !spec.path.starts_with('/') {
        return Err(bad("linux.devices.path", &spec.path));
    }
    let number = |value: i64, field| match kind {
        NodeKind::Pipe => Ok(0),
        _ => u32::try_from(value).map_err(|_| bad(field, value)),
    };
    let owner = |id: Option<u32>, maps: &[Mapping], field| {
        let id = id.unwrap_or(0);
        host_id(id, maps, is_user_namespace(linux)).ok_or_else(|| bad(field, id))
    };
    Ok(Node {
        target: spec.path.clone(),
        kind,
        major: number(spec.major, "linux.devices.major")?,
        minor: number(spec.minor, "linux.devices.minor")?,
        mode: spec.file_mode.unwrap_or(NODE_MODE),
        uid: owner(spec.uid, &linux.uid_mappings, "linux.devices.uid")?,
        gid: owner(spec.gid, &linux.gid_mappings, "linux.devices.gid")?,
    })
}

fn is_user_namespace(linux: &Linux) -> bool {
    linux.namespaces.iter().any(|one| one.kind == "user")
}

/// The host's number of an id of the container. In a user namespace that was joined the map is not known here.
fn host_id(id: u32, maps: &[Mapping], mapped: bool) -> Option<u32> {
    if !mapped || maps.is_empty() {
        return Some(id);
    }
    maps.iter().find_map(|map| {
        let offset = id.checked_sub(map.container_id).filter(|offset| *offset < map.size)?;
        map.host_id.checked_add(offset)
    })
}

/// The text of an id map.
pub fn id_map(maps: &[Mapping], field: &str) -> Result<String, OciError> {
    if maps.is_empty() || maps.len() > MAPPINGS_MAX {
        return Err(OciError::Spec(format!("{field}: 1 to {MAPPINGS_MAX} ranges are needed")));
    }
    let line = |map: &Mapping| format!("{} {} {}\n", map.container_id, map.host_id, map.size);
    Ok(maps.iter().map(line).collect())
}

/// What a process wants beside a plan.
pub fn of_process(spec: &ProcessSpec, linux: &Linux) -> Result<ProcessSpecial, OciError> {
    let affinity = spec.exec_cpu_affinity.clone().unwrap_or_default();
    let flags = linux.seccomp.as_ref().map(seccomp_flags).transpose()?.unwrap_or(0);
    Ok(ProcessSpecial {
        capabilities: spec.capabilities.as_ref().map(sets),
        scheduler: spec.scheduler.as_ref().map(scheduler).transpose()?,
        io_priority: spec.io_priority.as_ref().map(io_priority).transpose()?,
        personality: linux.personality.as_ref().map(personality).transpose()?,
        first_processors: processors(&affinity.initial, "process.execCPUAffinity.initial")?,
        processors: processors(&affinity.last, "process.execCPUAffinity.final")?,
        seccomp_flags: flags,
        seccomp_listener: None,
    })
}

/// The five sets as they are asked for; names nobody knows are skipped, as the specification wants since 1.1.
fn sets(spec: &Capabilities) -> CapabilitySets {
    let set = |names: &[String]| {
        let bits = names.iter().filter_map(|name| capability::bit(name).ok());
        bits.fold(0, |set, bit| set | 1_u64 << bit)
    };
    CapabilitySets {
        effective: set(&spec.effective),
        permitted: set(&spec.permitted),
        inheritable: set(&spec.inheritable),
        ambient: set(&spec.ambient),
    }
}

fn scheduler(spec: &SchedulerSpec) -> Result<Scheduler, OciError> {
    const POLICIES: [(&str, u32); 7] = [
        ("SCHED_OTHER", 0),
        ("SCHED_FIFO", 1),
        ("SCHED_RR", 2),
        ("SCHED_BATCH", 3),
        ("SCHED_ISO", 4),
        ("SCHED_IDLE", 5),
        ("SCHED_DEADLINE", 6),
    ];
    const FLAGS: [(&str, u64); 7] = [
        ("SCHED_FLAG_RESET_ON_FORK", 0x01),
        ("SCHED_FLAG_RECLAIM", 0x02),
        ("SCHED_FLAG_DL_OVERRUN", 0x04),
        ("SCHED_FLAG_KEEP_POLICY", 0x08),
        ("SCHED_FLAG_KEEP_PARAMS", 0x10),
        ("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20),
        ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40),
    ];
    let policy =
        named(&POLICIES, &spec.policy).ok_or_else(|| bad("process.scheduler.policy", &spec.policy))?;
    let mut flags = 0;
    for name in &spec.flags {
        flags |= named(&FLAGS, name).ok_or_else(|| bad("process.scheduler.flags", name))?;
    }
    let (nice, priority) = (spec.nice, spec.priority);
    let (runtime, deadline, period) = (spec.runtime, spec.deadline, spec.period);
    Ok(Scheduler { policy, flags, nice, priority, runtime, deadline, period })
}

fn io_priority(spec: &IoPrioritySpec) -> Result<u16, OciError> {
    const CLASSES: [(&str, u16); 3] =
        [("IOPRIO_CLASS_RT", 1), ("IOPRIO_CLASS_BE", 2), ("IOPRIO_CLASS_IDLE", 3)];
    let class = named(&CLASSES, &spec.class).ok_or_else(|| bad("process.ioPriority.class", &spec.class))?;
    if spec.priority > 7 {
        return Err(bad("process.ioPriority.priority", spec.priority));
    }
    Ok(class << 13 | spec.priority)
}

fn personality(spec: &PersonalitySpec) -> Result<u32, OciError> {
    const DOMAINS: [(&str, u32); 2] = [("LINUX", 0), ("LINUX32", 8)];
    if let Some(flag) = spec.flags.first() {
        return Err(bad("linux.personality.flags", flag));
    }
    named(&DOMAINS, &spec.domain).ok_or_else(|| bad("linux.personality.domain", &spec.domain))
}

fn named<T: Copy>(table: &[(&str, T)], name: &str) -> Option<T> {
    table.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
}

/// A list of processors, `0-3,7`.
fn processors(text: &str, field: &str) -> Result<Vec<u32>, OciError> {
    let mut all = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<u32>().ok().filter(|number| *number < PROCESSORS_MAX);
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => all.extend(first..=last),
            _ => return Err(bad(field, text)),
        }
    }
    Ok(all)
}

/// Flags a filter may be installed with.
pub const SECCOMP_FLAGS: [(&str, u32); 4] = [
    ("SECCOMP_FILTER_FLAG_TSYNC", 1 << 0),
    ("SECCOMP_FILTER_FLAG_LOG", 1 << 1),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", 1 << 2),
    ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", 1 << 5),
];

/// `SECCOMP_FILTER_FLAG_*`. The one for listeners is set where there is one.
fn seccomp_flags(spec: &SeccompSpec) -> Result<u32, OciError> {
    let mut flags = 0;
    for name in &spec.flags {
        flags |= named(&SECCOMP_FLAGS, name).ok_or_else(|| bad("linux.seccomp.flags", name))?;
    }
    // TSYNC and a listener both want the one result of the call; a process in set-up has one thread anyway.
    Ok(if spec.listener_path.is_some() { flags & !1 } else { flags })
}

/// Connects to whoever answers the filter's questions. `state` is the container's, `{pid}` in it still to be filled.
pub fn listener(
    spec: &SeccompSpec,
    state: &serde_json::Value,
    fds: &mut Fds,
) -> Result<Option<SeccompListener>, OciError> {
    let Some(path) = &spec.listener_path else { return Ok(None) };
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(system("seccomp listener"))?;
    let address = SocketAddrUnix::new(path).map_err(system("seccomp listener"))?;
    rustix::net::connect(&socket, &address).map_err(file("connect to", path))?;
    let state = serde_json::json!({
        "ociVersion": super::spec::VERSION,
        "fds": ["seccompFd"],
        "pid": "{pid}",
        "metadata": spec.listener_metadata,
        "state": state,
    });
    // The number is filled in by the process itself, and it is a number.
    let state = state.to_string().replace("\"{pid}\"", "{pid}");
    Ok(Some(SeccompListener { socket: fds.add(socket)?, state }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_listed_or_refused() {
        assert_eq!(processors("0-2, 5", "x").unwrap(), [0, 1, 2, 5]);
        assert!(processors("", "x").unwrap().is_empty());
        for text in ["a", "3-1", "1-", "4096"] {
            assert!(processors(text, "x").is_err(), "{text}");
        }
    }

    #[test]
    fn ids_are_found_in_the_ranges() {
        let maps = [
            Mapping { container_id: 0, host_id: 1000, size: 10 },
            Mapping { container_id: 10, host_id: 5000, size: 5 },
        ];
        let cases = [(0, Some(1000)), (9, Some(1009)), (10, Some(5000)), (14, Some(5004)), (15, None)];
        for (id, expected) in cases {
            assert_eq!(host_id(id, &maps, true), expected, "{id}");
        }
        assert_eq!(host_id(7, &maps, false), Some(7));
        assert_eq!(id_map(&maps, "x").unwrap(), "0 1000 10\n10 5000 5\n");
        assert!(id_map(&[], "linux.uidMappings").unwrap_err().to_string().contains("linux.uidMappings"));
    }

    #[test]
    fn names_become_the_kernels_numbers() {
        let spec: IoPrioritySpec =
            serde_json::from_str(r#"{"class":"IOPRIO_CLASS_BE","priority":4}"#).unwrap();
        assert_eq!(io_priority(&spec).unwrap(), 2 << 13 | 4);
        assert!(io_priority(&IoPrioritySpec { priority: 8, ..spec }).is_err());
        let spec: SchedulerSpec =
            serde_json::from_str(r#"{"policy":"SCHED_BATCH","nice":5,"flags":["SCHED_FLAG_RESET_ON_FORK"]}"#)
                .unwrap();
        let found = scheduler(&spec).unwrap();
        assert_eq!((found.policy, found.nice, found.flags), (3, 5, 1));
        assert_eq!(propagation("rslave"), Some((Propagation::Slave, true)));
        assert_eq!(propagation("sideways"), None);
        let spec = PersonalitySpec { domain: "LINUX32".to_owned(), flags: Vec::new() };
        assert_eq!(personality(&spec).unwrap(), 8);
    }

    #[test]
    fn nodes_have_the_owners_of_the_container() {
        let json = r#"{"namespaces":[{"type":"user"}],"uidMappings":[{"containerID":0,"hostID":1000,"size":10}],
            "gidMappings":[{"containerID":0,"hostID":2000,"size":10}],
            "devices":[{"path":"/dev/x","type":"c","major":1,"minor":3,"fileMode":432,"uid":3},
            {"path":"/dev/p","type":"p","major":8,"minor":9}]}"#;
        let linux: Linux = serde_json::from_str(json).unwrap();
        let made = of_container(&linux, &mut Fds::default()).unwrap().nodes;
        assert_eq!((made[0].uid, made[0].gid, made[0].mode), (1003, 2000, 0o660));
        assert_eq!((made[1].kind, made[1].major), (NodeKind::Pipe, 0));
        let wrong: Linux = serde_json::from_str(r#"{"devices":[{"path":"/dev/x","type":"d"}]}"#).unwrap();
        assert!(of_container(&wrong, &mut Fds::default()).is_err());
    }
}
