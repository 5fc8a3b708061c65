//! Resources: Docker's numbers to cgroup limits and rlimits.

use berth_api::docker::containers::HostConfig;
use berth_runtime::cgroup::{Bound, CpuMax, Limits, cpu_weight_of_shares, io_weight_of_blkio};
use berth_runtime::plan::Rlimit;

use crate::store::Record;

/// Docker's least memory limit.
const MEMORY_MIN: i64 = 6 << 20;
/// Processes and threads of a container that asks for no limit: far above what programs use, far below what takes
/// the machine's pids away.
const PIDS_DEFAULT: u64 = 16_384;
/// Default period of the CPU quota, µs.
const PERIOD_US: u64 = 100_000;

/// Names of rlimits by Linux number (`RLIMIT_*`).
const RLIMITS: [&str; 16] = [
    "cpu", "fsize", "data", "stack", "core", "rss", "nproc", "nofile", "memlock", "as", "locks", "sigpending",
    "msgqueue", "nice", "rtprio", "rttime",
];

/// Refuses numbers that make no sense, in Docker's words.
pub(crate) fn check(host: &HostConfig) -> Result<(), String> {
    if host.memory != 0 && host.memory < MEMORY_MIN {
        return Err("Minimum memory limit allowed is 6MB".to_owned());
    }
    if host.memory_swap > 0 && host.memory == 0 {
        return Err("You should always set the Memory limit when using Memoryswap limit, see usage".to_owned());
    }
    if host.memory_swap > 0 && host.memory_swap < host.memory {
        return Err("Minimum memoryswap limit should be larger than memory limit, see usage".to_owned());
    }
    if host.memory_reservation > 0 && host.memory > 0 && host.memory_reservation > host.memory {
        return Err("Minimum memory limit can not be less than memory reservation limit, see usage".to_owned());
    }
    if host.nano_cpus < 0 || host.nano_cpus > 0 && (host.cpu_quota > 0 || host.cpu_period > 0) {
        return Err("Conflicting options: Nano CPUs and CPU Period/Quota cannot both be set.".to_owned());
    }
    rlimits(host).map(|_| ())
}

/// The cgroup's limits.
pub(crate) fn limits(record: &Record) -> Limits {
    let host = &record.host_config;
    let bytes = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    let memory = bytes(host.memory);
    let swap_max = match (memory, host.memory_swap) {
        (Some(_), -1) => Some(Bound::Max),
        (Some(memory), swap) if swap > 0 => Some(Bound::At(bytes(swap).unwrap_or(memory).saturating_sub(memory))),
        // Docker's default: as much swap as memory.
        (Some(memory), _) => Some(Bound::At(memory)),
        (None, _) => None,
    };
    let cpu_max = match (bytes(host.nano_cpus), bytes(host.cpu_quota)) {
        (Some(nano), _) => {
            let quota_us = nano.saturating_mul(PERIOD_US) / 1_000_000_000;
            Some(CpuMax { quota_us: Bound::At(quota_us.max(1000)), period_us: PERIOD_US })
        }
        (None, Some(quota)) => {
            Some(CpuMax { quota_us: Bound::At(quota), period_us: bytes(host.cpu_period).unwrap_or(PERIOD_US) })
        }
        (None, None) => None,
    };
    let list = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let pids = host.pids_limit.unwrap_or(0);
    Limits {
        memory_max: memory.map(Bound::At),
        memory_low: bytes(host.memory_reservation),
        swap_max,
        cpu_weight: bytes(host.cpu_shares).and_then(cpu_weight_of_shares),
        cpu_max,
        cpuset_cpus: list(&host.cpuset_cpus),
        cpuset_mems: list(&host.cpuset_mems),
        pids_max: Some(match pids {
            -1 => Bound::Max,
            pids => Bound::At(bytes(pids).unwrap_or(PIDS_DEFAULT)),
        }),
        io_weight: io_weight_of_blkio(host.blkio_weight),
        ..Limits::default()
    }
}

/// The process's limits.
pub(super) fn rlimits(host: &HostConfig) -> Result<Vec<Rlimit>, String> {
    let mut all = Vec::new();
    for limit in host.ulimits.iter().flatten() {
        let number = RLIMITS.iter().position(|name| *name == limit.name);
        let number = number.and_then(|number| u32::try_from(number).ok());
        let resource = number.ok_or_else(|| format!("invalid ulimit type: {}", limit.name))?;
        // -1 means unlimited, as does everything else below zero.
        let value = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
        let (soft, hard) = (value(limit.soft), value(limit.hard));
        if soft > hard {
            return Err("ulimit soft limit must be less than or equal to hard limit".to_owned());
        }
        all.push(Rlimit { resource, soft, hard });
    }
    Ok(all)
}
