//! `linux.resources` to limits and device rules of cgroup2.

use super::OciError;
use super::spec::{BlockIoSpec, CpuSpec, DeviceRuleSpec, MemorySpec, Resources, ThrottleSpec};
use crate::cgroup::devices::{Access, DEFAULT, Kind, Rule};
use crate::cgroup::{Bound, CpuMax, IoMax, Limits, cpu_weight_of_shares, io_weight_of_blkio};

/// Default period of the CPU bandwidth in microseconds (the kernel's).
const PERIOD_US: u64 = 100_000;

/// The limits of a container.
pub fn limits(resources: &Resources) -> Result<Limits, OciError> {
    let mut limits = Limits::default();
    if let Some(memory) = &resources.memory {
        set_memory(&mut limits, *memory)?;
    }
    if let Some(cpu) = &resources.cpu {
        set_cpu(&mut limits, cpu);
    }
    limits.pids_max = resources.pids.and_then(|pids| pids.limit).and_then(count);
    if let Some(io) = &resources.block_io {
        limits.io_weight = io.weight.and_then(io_weight_of_blkio);
        limits.io_max = throttles(io);
    }
    Ok(limits)
}

/// What [`Limits`] has no name for: files of controllers and their texts, in order.
pub fn files(resources: &Resources) -> Result<Vec<(String, String)>, OciError> {
    let mut files = Vec::new();
    if let Some(cpu) = &resources.cpu {
        let put = |name: &str, value: Option<String>| value.map(|value| (name.to_owned(), value));
        files.extend(put("cpu.max.burst", cpu.burst.map(|burst| burst.to_string())));
        files.extend(put("cpu.idle", cpu.idle.map(|idle| idle.to_string())));
    }
    for device in resources.block_io.iter().flat_map(|io| &io.weight_device) {
        if let Some(weight) = device.weight.and_then(io_weight_of_blkio) {
            files.push(("io.weight".to_owned(), format!("{}:{} {weight}", device.major, device.minor)));
        }
    }
    for huge in &resources.hugepage_limits {
        let size = &huge.page_size;
        let known = ["KB", "MB", "GB"].iter().any(|unit| {
            size.strip_suffix(unit).is_some_and(|number| number.parse::<u32>().is_ok_and(|number| number > 0))
        });
        if !known {
            return Err(OciError::Spec(format!(
                "linux.resources.hugepageLimits.pageSize: {size:?} is not one"
            )));
        }
        files.push((format!("hugetlb.{size}.max"), huge.limit.to_string()));
        files.push((format!("hugetlb.{size}.rsvd.max"), huge.limit.to_string()));
    }
    for (device, limit) in &resources.rdma {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        if device.is_empty() || !device.bytes().all(legal) {
            return Err(OciError::Spec(format!("linux.resources.rdma: {device:?} is not a device")));
        }
        let mut text = device.clone();
        for (name, value) in [("hca_handle", limit.hca_handles), ("hca_object", limit.hca_objects)] {
            if let Some(value) = value {
                text.extend([" ", name, "=", &value.to_string()]);
            }
        }
        files.push(("rdma.max".to_owned(), text));
    }
    files.extend(resources.unified.clone());
    Ok(files)
}

/// A number of bytes or processes: negative is unbounded, zero is "not set".
fn count(value: i64) -> Option<Bound> {
    match u64::try_from(value) {
        Ok(0) => None,
        Ok(value) => Some(Bound::At(value)),
        Err(_) => Some(Bound::Max),
    }
}

/// `memory.swap` of the specification counts memory and swap, `memory.swap.max` of the kernel swap alone.
fn set_memory(limits: &mut Limits, memory: MemorySpec) -> Result<(), OciError> {
    limits.memory_max = memory.limit.and_then(count);
    limits.memory_low = memory.reservation.and_then(|low| u64::try_from(low).ok()).filter(|low| *low > 0);
    limits.swap_max = match (memory.swap.and_then(count), limits.memory_max) {
        (None, _) => None,
        (Some(Bound::Max), _) => Some(Bound::Max),
        (Some(Bound::At(both)), Some(Bound::At(memory))) if both >= memory => Some(Bound::At(both - memory)),
        (Some(Bound::At(_)), _) => {
            return Err(OciError::Spec("memory.swap needs a memory.limit that is not larger".to_owned()));
        }
    };
    Ok(())
}

fn set_cpu(limits: &mut Limits, cpu: &CpuSpec) {
    limits.cpu_weight = cpu.shares.and_then(cpu_weight_of_shares);
    let quota = cpu.quota.and_then(count);
    let period = cpu.period.filter(|period| *period > 0);
    if quota.is_some() || period.is_some() {
        let quota_us = quota.unwrap_or(Bound::Max);
        limits.cpu_max = Some(CpuMax { quota_us, period_us: period.unwrap_or(PERIOD_US) });
    }
    limits.cpuset_cpus.clone_from(&cpu.cpus);
    limits.cpuset_mems.clone_from(&cpu.mems);
}

fn throttles(io: &BlockIoSpec) -> Vec<IoMax> {
    let none = |device: &ThrottleSpec| IoMax {
        major: device.major,
        minor: device.minor,
        read_bps: None,
        write_bps: None,
        read_iops: None,
        write_iops: None,
    };
    let rate = |device: &ThrottleSpec| Some(Bound::At(device.rate));
    let read_bps = io.throttle_read_bps_device.iter().map(|one| IoMax { read_bps: rate(one), ..none(one) });
    let write_bps =
        io.throttle_write_bps_device.iter().map(|one| IoMax { write_bps: rate(one), ..none(one) });
    let read_iops =
        io.throttle_read_iops_device.iter().map(|one| IoMax { read_iops: rate(one), ..none(one) });
    let write_iops =
        io.throttle_write_iops_device.iter().map(|one| IoMax { write_iops: rate(one), ..none(one) });
    read_bps.chain(write_bps).chain(read_iops).chain(write_iops).collect()
}

/// The device rules of a container: the bundle's, then those of the nodes every container has.
pub fn device_rules(specs: &[DeviceRuleSpec]) -> Result<Vec<Rule>, OciError> {
    let rules = specs.iter().map(rule).collect::<Result<Vec<_>, _>>()?;
    Ok(rules.into_iter().chain(DEFAULT).collect())
}

fn rule(spec: &DeviceRuleSpec) -> Result<Rule, OciError> {
    let bad = || OciError::Spec(format!("resources.devices: {spec:?}"));
    let kind = match spec.kind.as_str() {
        "" | "a" => Kind::Any,
        "b" => Kind::Block,
        "c" | "u" => Kind::Character,
        _ => return Err(bad()),
    };
    let number = |value: Option<i64>| match value {
        None | Some(-1) => Ok(None),
        Some(value) => u32::try_from(value).map(Some).map_err(|_| bad()),
    };
    let access = if spec.access.is_empty() { "rwm" } else { &spec.access };
    if !access.bytes().all(|byte| b"rwm".contains(&byte)) {
        return Err(bad());
    }
    let access =
        Access { read: access.contains('r'), write: access.contains('w'), mknod: access.contains('m') };
    Ok(Rule { allow: spec.allow, kind, major: number(spec.major)?, minor: number(spec.minor)?, access })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::spec::PidsSpec;

    fn writes(json: &str) -> Vec<String> {
        let resources: Resources = serde_json::from_str(json).unwrap();
        let limits = limits(&resources).unwrap();
        limits.writes().into_iter().map(|(file, value)| format!("{file}={value}")).collect()
    }

    #[test]
    fn resources_become_the_kernels_texts() {
        let cases: [(&str, &[&str]); 6] = [
            ("{}", &[]),
            (
                r#"{"memory":{"limit":1048576,"swap":3145728,"reservation":4096}}"#,
                &["memory.low=4096", "memory.max=1048576", "memory.swap.max=2097152"],
            ),
            (r#"{"memory":{"limit":-1,"swap":-1}}"#, &["memory.max=max", "memory.swap.max=max"]),
            (
                r#"{"cpu":{"shares":1024,"quota":20000,"cpus":"0-1"}}"#,
                &["cpu.weight=100", "cpu.max=20000 100000", "cpuset.cpus=0-1"],
            ),
            (
                r#"{"cpu":{"quota":-1,"period":50000},"pids":{"limit":-1}}"#,
                &["cpu.max=max 50000", "pids.max=max"],
            ),
            (
                r#"{"blockIO":{"weight":1000,"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":7}]}}"#,
                &["io.weight=default 10000", "io.max=8:0 rbps=7"],
            ),
        ];
        for (json, expected) in cases {
            assert_eq!(writes(json), expected, "{json}");
        }
    }

    #[test]
    fn what_has_no_name_of_its_own_becomes_files() {
        let json = r#"{"cpu":{"burst":5,"idle":1},"hugepageLimits":[{"pageSize":"2MB","limit":4096}],
            "rdma":{"mlx5_1":{"hcaHandles":3,"hcaObjects":10}},"unified":{"memory.high":"7"},
            "blockIO":{"weightDevice":[{"major":8,"minor":0,"weight":1000}]}}"#;
        let resources: Resources = serde_json::from_str(json).unwrap();
        let lines: Vec<String> =
            files(&resources).unwrap().into_iter().map(|(file, text)| format!("{file}={text}")).collect();
        let expected = [
            "cpu.max.burst=5",
            "cpu.idle=1",
            "io.weight=8:0 10000",
            "hugetlb.2MB.max=4096",
            "hugetlb.2MB.rsvd.max=4096",
            "rdma.max=mlx5_1 hca_handle=3 hca_object=10",
            "memory.high=7",
        ];
        assert_eq!(lines, expected);
        for bad in [r#"{"hugepageLimits":[{"pageSize":"../2MB"}]}"#, r#"{"rdma":{"a b":{}}}"#] {
            assert!(files(&serde_json::from_str(bad).unwrap()).is_err(), "{bad}");
        }
    }

    #[test]
    fn swap_without_fitting_memory_is_refused() {
        let memory = Some(MemorySpec { limit: Some(10), swap: Some(5), ..MemorySpec::default() });
        let resources = Resources { memory, pids: Some(PidsSpec { limit: None }), ..Resources::default() };
        assert!(limits(&resources).is_err());
    }

    #[test]
    fn device_rules_are_read_strictly() {
        let spec = DeviceRuleSpec {
            allow: true,
            kind: "b".to_owned(),
            major: Some(8),
            access: "r".to_owned(),
            minor: Some(-1),
        };
        let rules = device_rules(std::slice::from_ref(&spec)).unwrap();
        assert_eq!(rules[0].major, Some(8));
        assert_eq!(rules[0].minor, None);
        assert!(rules[0].access.read && !rules[0].access.write);
        assert_eq!(rules.len(), 1 + DEFAULT.len());
        assert!(device_rules(&[DeviceRuleSpec { kind: "x".to_owned(), ..spec.clone() }]).is_err());
        assert!(device_rules(&[DeviceRuleSpec { access: "rx".to_owned(), ..spec }]).is_err());
    }
}
