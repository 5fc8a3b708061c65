//! The account of a group: texts of the kernel to numbers.

use std::collections::BTreeMap;

/// What a group used. A controller that is not enabled leaves its numbers at zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// `memory.current` in bytes.
    pub memory_bytes: u64,
    /// `memory.max` in bytes; none when unbounded.
    pub memory_max_bytes: Option<u64>,
    /// `memory.swap.current` in bytes.
    pub swap_bytes: u64,
    /// `memory.stat`, as the kernel names its lines.
    pub memory: BTreeMap<String, u64>,
    /// `memory.events`: `low high max oom oom_kill oom_group_kill`.
    pub memory_events: BTreeMap<String, u64>,
    /// `cpu.stat`: `usage_usec user_usec system_usec nr_periods nr_throttled throttled_usec` and what else is there.
    pub cpu: BTreeMap<String, u64>,
    /// `pids.current`.
    pub pids: u64,
    /// `pids.max`; none when unbounded.
    pub pids_max: Option<u64>,
    /// `io.stat`, by device.
    pub io: Vec<IoStats>,
}

/// What a group read and wrote on one device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoStats {
    /// Device major number.
    pub major: u32,
    /// Device minor number.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Read operations.
    pub reads: u64,
    /// Write operations.
    pub writes: u64,
}

/// A file of `key value` lines. Lines of another form are skipped: kernels add to these files.
pub(super) fn flat_keyed(text: &str) -> BTreeMap<String, u64> {
    let pairs = text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.trim().parse().ok()?))
    });
    pairs.collect()
}

/// A file of one number, or `max`.
pub(super) fn bound(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// `io.stat`: `major:minor key=value …` lines.
pub(super) fn io(text: &str) -> Vec<IoStats> {
    text.lines().filter_map(io_line).collect()
}

fn io_line(line: &str) -> Option<IoStats> {
    let mut words = line.split_ascii_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let mut stats = IoStats { major: major.parse().ok()?, minor: minor.parse().ok()?, ..IoStats::default() };
    for word in words {
        let Some((key, value)) = word.split_once('=') else { continue };
        let Ok(value) = value.parse() else { continue };
        match key {
            "rbytes" => stats.read_bytes = value,
            "wbytes" => stats.write_bytes = value,
            "rios" => stats.reads = value,
            "wios" => stats.writes = value,
            _ => {}
        }
    }
    Some(stats)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_files_are_read_and_odd_lines_skipped() {
        let map = flat_keyed("usage_usec 12\nuser_usec 7\nodd\nneg -1\n");
        assert_eq!(map.len(), 2);
        assert_eq!(map["usage_usec"], 12);
    }

    #[test]
    fn max_is_no_bound() {
        assert_eq!(bound("max\n"), None);
        assert_eq!(bound("4096\n"), Some(4096));
    }

    #[test]
    fn io_lines_are_read_by_key() {
        let text = "254:0 rbytes=90112 wbytes=4096 rios=22 wios=1 dbytes=0 dios=0\n7:1 \nnonsense\n";
        let all = io(text);
        assert_eq!(all.len(), 2);
        let disk =
            IoStats { major: 254, minor: 0, read_bytes: 90112, write_bytes: 4096, reads: 22, writes: 1 };
        assert_eq!(all[0], disk);
        assert_eq!(all[1], IoStats { major: 7, minor: 1, ..IoStats::default() });
    }
}
