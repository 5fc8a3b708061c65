//! What OCI bundles may ask for and the agent never does; the default asks for nothing.

use serde::{Deserialize, Serialize};

use super::Fd;

/// Of the container.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Special {
    /// Join this mount namespace instead of a new one.
    pub mount_namespace: Option<Fd>,
    /// The mount namespace that is joined is the host's, whose root stays what it is: the container's is mounted on
    /// its own directory and changed to, and whoever removes the container unmounts it.
    pub host_mounts: bool,
    /// Time namespace; none for the host's.
    pub time: Option<TimeNamespace>,
    /// Device nodes and pipes that are made, not taken from the host's `/dev`.
    pub nodes: Vec<Node>,
    /// Propagation of the root's mount when everything is mounted.
    pub root_propagation: Option<Propagation>,
}

/// Where the time namespace comes from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum TimeNamespace {
    /// A new one with these offsets.
    New(Vec<TimeOffset>),
    /// This one.
    Join(Fd),
}

/// How far a clock of the container is ahead of the host's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TimeOffset {
    /// `monotonic` or `boottime`.
    pub clock: String,
    /// Whole seconds.
    pub seconds: i64,
    /// And nanoseconds.
    pub nanoseconds: u32,
}

/// A node to be made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Node {
    /// Path inside the container.
    pub target: String,
    /// What it is.
    pub kind: NodeKind,
    /// Device number, 0 for a pipe.
    pub major: u32,
    /// Device number, 0 for a pipe.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner, an id of the host.
    pub uid: u32,
    /// Group, an id of the host.
    pub gid: u32,
}

/// Kind of a [`Node`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeKind {
    /// Block device.
    Block,
    /// Character device.
    Character,
    /// Named pipe.
    Pipe,
}

/// Propagation of mounts between mount namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// Neither way.
    Private,
    /// From the host into the container.
    Slave,
    /// Both ways.
    Shared,
    /// Neither way, and it cannot be bound.
    Unbindable,
}

/// Of one mount.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct MountSpecial {
    /// Further `MOUNT_ATTR_*` bits to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` bits to clear: a bind keeps what its source has otherwise.
    pub clear: u64,
    /// Bits to set on the mounts below too.
    pub recursive_set: u64,
    /// Bits to clear on the mounts below too.
    pub recursive_clear: u64,
    /// Propagation, and whether it is for the mounts below too.
    pub propagation: Option<(Propagation, bool)>,
    /// The source's name as the mount table shows it, for file systems.
    pub source: String,
    /// User namespace by which owners are shifted, when it is not the container's.
    pub idmap: Option<Fd>,
    /// Fill a new tmpfs with what the root has there (`tmpcopyup`).
    pub copy_up: bool,
}

/// Of a process.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ProcessSpecial {
    /// The sets beside the bounding one, when they are not what follows from it.
    pub capabilities: Option<CapabilitySets>,
    /// Scheduling policy.
    pub scheduler: Option<Scheduler>,
    /// Priority of input and output: class in the upper three bits of sixteen, level below.
    pub io_priority: Option<u16>,
    /// Execution domain.
    pub personality: Option<u32>,
    /// Processors before the process is in the container's control group, by number.
    pub first_processors: Vec<u32>,
    /// Processors of the program, by number.
    pub processors: Vec<u32>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub seccomp_flags: u32,
    /// Who is asked about calls the filter leaves to user space.
    pub seccomp_listener: Option<SeccompListener>,
}

/// Capability sets by bit number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilitySets {
    /// Effective.
    pub effective: u64,
    /// Permitted.
    pub permitted: u64,
    /// Inheritable.
    pub inheritable: u64,
    /// Ambient.
    pub ambient: u64,
}

/// A scheduling policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduler {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// Nice value.
    pub nice: i32,
    /// Real-time priority.
    pub priority: u32,
    /// Nanoseconds.
    pub runtime: u64,
    /// Nanoseconds.
    pub deadline: u64,
    /// Nanoseconds.
    pub period: u64,
}

/// Where the descriptor of a filter's questions goes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SeccompListener {
    /// A connected stream socket.
    pub socket: Fd,
    /// The state that is sent with it (JSON), without the process's number; `{pid}` stands for that.
    pub state: String,
}
