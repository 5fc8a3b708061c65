//! What can be bounded, and the text the kernel wants for it.

/// A bound that may be lifted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// No bound (`max`).
    Max,
    /// This many (bytes or processes).
    At(u64),
}

impl std::fmt::Display for Bound {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Max => out.write_str("max"),
            Self::At(value) => write!(out, "{value}"),
        }
    }
}

/// CPU bandwidth (`cpu.max`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuMax {
    /// Time per period in microseconds; [`Bound::Max`] for no bound.
    pub quota_us: Bound,
    /// Period in microseconds, 1,000 to 1,000,000.
    pub period_us: u64,
}

/// Throttling of one block device (`io.max`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoMax {
    /// Device major number.
    pub major: u32,
    /// Device minor number.
    pub minor: u32,
    /// Bytes read per second.
    pub read_bps: Option<Bound>,
    /// Bytes written per second.
    pub write_bps: Option<Bound>,
    /// Reads per second.
    pub read_iops: Option<Bound>,
    /// Writes per second.
    pub write_iops: Option<Bound>,
}

/// Bounds of a group. What is `None` is left as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// `memory.max` in bytes.
    pub memory_max: Option<Bound>,
    /// `memory.high` in bytes.
    pub memory_high: Option<Bound>,
    /// `memory.low` in bytes (Docker's reservation).
    pub memory_low: Option<u64>,
    /// `memory.swap.max` in bytes: swap alone, without memory.
    pub swap_max: Option<Bound>,
    /// `memory.oom.group`: an out-of-memory kill takes the whole container.
    pub oom_group: Option<bool>,
    /// `cpu.weight`, 1 to 10,000; 100 is the default.
    pub cpu_weight: Option<u64>,
    /// `cpu.max`.
    pub cpu_max: Option<CpuMax>,
    /// `cpuset.cpus` as a list, `0-3,5`.
    pub cpuset_cpus: Option<String>,
    /// `cpuset.mems` as a list.
    pub cpuset_mems: Option<String>,
    /// `pids.max`.
    pub pids_max: Option<Bound>,
    /// `io.weight`, 1 to 10,000; 100 is the default.
    pub io_weight: Option<u64>,
    /// `io.max`, one entry per device.
    pub io_max: Vec<IoMax>,
}

impl Limits {
    /// The files to write, in order. Memory goes before swap, as the kernel checks nothing across the two.
    pub fn writes(&self) -> Vec<(&'static str, String)> {
        let mut writes = Vec::new();
        let mut put = |file, value: Option<String>| {
            if let Some(value) = value {
                writes.push((file, value));
            }
        };
        put("memory.low", self.memory_low.map(|low| low.to_string()));
        put("memory.high", self.memory_high.map(|high| high.to_string()));
        put("memory.max", self.memory_max.map(|max| max.to_string()));
        put("memory.swap.max", self.swap_max.map(|max| max.to_string()));
        put("memory.oom.group", self.oom_group.map(|group| u8::from(group).to_string()));
        put("cpu.weight", self.cpu_weight.map(|weight| weight.to_string()));
        put("cpu.max", self.cpu_max.map(|max| format!("{} {}", max.quota_us, max.period_us)));
        put("cpuset.cpus", self.cpuset_cpus.clone());
        put("cpuset.mems", self.cpuset_mems.clone());
        put("pids.max", self.pids_max.map(|max| max.to_string()));
        put("io.weight", self.io_weight.map(|weight| format!("default {weight}")));
        for device in &self.io_max {
            put("io.max", device.line());
        }
        writes
    }
}

impl IoMax {
    fn line(&self) -> Option<String> {
        let mut line = format!("{}:{}", self.major, self.minor);
        let keys = [
            ("rbps", self.read_bps),
            ("wbps", self.write_bps),
            ("riops", self.read_iops),
            ("wiops", self.write_iops),
        ];
        let mut any = false;
        for (key, bound) in keys {
            if let Some(bound) = bound {
                any = true;
                line.extend([" ", key, "=", &bound.to_string()]);
            }
        }
        any.then_some(line)
    }
}

/// `cpu.weight` for Docker's `CpuShares` (2 to 262,144; 1,024 is the default), by the curve all runtimes share
/// since 2025: 2 gives 1, 1,024 gives 100, 262,144 gives 10,000. None for 0, "not set".
pub fn cpu_weight_of_shares(shares: u64) -> Option<u64> {
    if shares == 0 {
        return None;
    }
    let shares = shares.clamp(2, 262_144);
    #[expect(clippy::cast_precision_loss, reason = "at most 18 bits")]
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    let weight = 10f64.powf(exponent).ceil();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and 10,000")]
    Some((weight as u64).clamp(1, 10_000))
}

/// `io.weight` for Docker's `BlkioWeight` (10 to 1,000), as runc converts it. None for 0, "not set".
pub fn io_weight_of_blkio(weight: u16) -> Option<u64> {
    if weight == 0 {
        return None;
    }
    let weight = u64::from(weight.clamp(10, 1_000));
    Some(1 + (weight - 10) * 9_999 / 990)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_set_writes_nothing() {
        assert!(Limits::default().writes().is_empty());
    }

    #[test]
    fn every_limit_has_the_text_the_kernel_wants() {
        let limits = Limits {
            memory_max: Some(Bound::At(1 << 20)),
            memory_high: Some(Bound::Max),
            memory_low: Some(4096),
            swap_max: Some(Bound::At(0)),
            oom_group: Some(true),
            cpu_weight: Some(39),
            cpu_max: Some(CpuMax { quota_us: Bound::At(50_000), period_us: 100_000 }),
            cpuset_cpus: Some("0-1".to_owned()),
            cpuset_mems: Some("0".to_owned()),
            pids_max: Some(Bound::At(512)),
            io_weight: Some(100),
            io_max: vec![
                IoMax {
                    major: 254,
                    minor: 0,
                    read_bps: Some(Bound::At(1000)),
                    write_bps: None,
                    read_iops: Some(Bound::Max),
                    write_iops: None,
                },
                IoMax {
                    major: 1,
                    minor: 2,
                    read_bps: None,
                    write_bps: None,
                    read_iops: None,
                    write_iops: None,
                },
            ],
        };
        let writes: Vec<String> =
            limits.writes().into_iter().map(|(file, value)| format!("{file}={value}")).collect();
        assert_eq!(
            writes,
            [
                "memory.low=4096",
                "memory.high=max",
                "memory.max=1048576",
                "memory.swap.max=0",
                "memory.oom.group=1",
                "cpu.weight=39",
                "cpu.max=50000 100000",
                "cpuset.cpus=0-1",
                "cpuset.mems=0",
                "pids.max=512",
                "io.weight=default 100",
                "io.max=254:0 rbps=1000 riops=max",
            ]
        );
    }

    #[test]
    fn an_unbounded_quota_keeps_its_period() {
        let max = CpuMax { quota_us: Bound::Max, period_us: 100_000 };
        let limits = Limits { cpu_max: Some(max), ..Limits::default() };
        assert_eq!(limits.writes(), [("cpu.max", "max 100000".to_owned())]);
    }

    #[test]
    fn shares_meet_the_fixed_points_of_the_curve() {
        let cases = [
            (0, None),
            (1, Some(1)),
            (2, Some(1)),
            (1_024, Some(100)),
            (262_144, Some(10_000)),
            (999_999, Some(10_000)),
        ];
        for (shares, weight) in cases {
            assert_eq!(cpu_weight_of_shares(shares), weight, "{shares}");
        }
        let mut last = 0;
        for shares in (2..262_144).step_by(97) {
            let weight = cpu_weight_of_shares(shares).unwrap();
            assert!(weight >= last, "monotonic at {shares}");
            last = weight;
        }
    }

    #[test]
    fn block_weights_span_the_range() {
        assert_eq!(io_weight_of_blkio(0), None);
        assert_eq!(io_weight_of_blkio(10), Some(1));
        assert_eq!(io_weight_of_blkio(1_000), Some(10_000));
    }
}
