//! Control groups (v2): the bounds of a container, its account, and how all its processes are stopped at once.
//!
//! Processes are never moved into a group (a migration waits for an RCU grace period): they are born there by
//! `CLONE_INTO_CGROUP`.

mod group;
mod limits;
mod stats;

pub use group::Group;
pub use limits::{Bound, CpuMax, IoMax, Limits, cpu_weight_of_shares, io_weight_of_blkio};
pub use stats::{IoStats, Stats};
