//! What every container gets unless asked otherwise: mounts, hidden paths, read-only paths.

use crate::plan::{Mount, MountSource, MountSpecial};

/// Docker's default size of `/dev/shm` in bytes.
pub const SHM_BYTES: u64 = 64 * 1024 * 1024;

/// Paths hidden by default: what is not namespaced or leaks the host.
pub const MASKED_PATHS: [&str; 13] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/kernel/debug",
];

/// Paths made read-only by default.
pub const READONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The mounts of every container: `/proc`, `/dev` with what is below it, `/sys` and its control groups.
///
/// A privileged container gets `/sys` writable. The device nodes and links of `/dev` are made by the launcher
/// when it mounts the tmpfs there.
pub fn mounts(shm_bytes: u64, privileged: bool) -> Vec<Mount> {
    vec![
        fs("/proc", "proc", &[], true, false),
        Mount { nodev: false, ..fs("/dev", "tmpfs", &["mode=755", "size=65536k"], true, false) },
        Mount {
            nodev: false,
            ..fs("/dev/pts", "devpts", &["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"], true, false)
        },
        fs("/dev/shm", "tmpfs", &["mode=1777", &format!("size={shm_bytes}")], true, false),
        fs("/dev/mqueue", "mqueue", &[], true, false),
        fs("/sys", "sysfs", &[], true, !privileged),
        fs("/sys/fs/cgroup", "cgroup", &[], true, !privileged),
    ]
}

fn fs(target: &str, kind: &str, options: &[&str], noexec: bool, readonly: bool) -> Mount {
    let options = options.iter().map(|option| (*option).to_owned()).collect();
    Mount {
        target: target.to_owned(),
        source: MountSource::Fs { kind: kind.to_owned(), options },
        readonly,
        nosuid: true,
        nodev: true,
        noexec,
        special: MountSpecial::default(),
    }
}
