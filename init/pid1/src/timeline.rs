//! When each phase of the boot was reached: `/run/berth/boot-timeline`, one line `NANOSECONDS IDLE_SECONDS PHASE`
//! each, by `CLOCK_MONOTONIC`, which starts with the kernel, and by how long the processors idled until then.

use std::fs::File;
use std::io::Write;

use rustix::time::{ClockId, clock_gettime};

/// Where it is.
pub(crate) const PATH: &str = "/run/berth/boot-timeline";

/// Notes that `phase` is reached.
pub(crate) fn mark(phase: &str) {
    let now = clock_gettime(ClockId::Monotonic);
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let idle = uptime.split_ascii_whitespace().nth(1).unwrap_or("0");
    let line = format!("{}{:09} {idle} {phase}\n", now.tv_sec, now.tv_nsec);
    // A measurement: without it the machine is as good.
    if let Ok(mut file) = File::options().append(true).create(true).open(PATH) {
        let _ = file.write_all(line.as_bytes());
    }
}
