//! The plan of a container: every choice made, every limit set. Effects take only these types.
//!
//! Built by the agent (from the Docker API or a unit) or by the OCI command line (from `config.json`), carried to
//! the launcher as postcard with descriptors beside it, never as JSON. A [`Fd`] is an index into those descriptors.

use serde::{Deserialize, Serialize};

/// Index of a descriptor sent beside the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fd(pub u16);

/// Everything the launcher needs to turn descriptors into a running container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Name under which init keeps the exit (`berth_control::Name` text), e.g. `c/<id>/<run>`.
    pub name: String,
    /// Directory of the container's cgroup (an open directory of cgroup2).
    pub cgroup: Fd,
    /// Namespaces.
    pub namespaces: Namespaces,
    /// UTS host name.
    pub hostname: String,
    /// NIS domain name, empty for none.
    pub domainname: String,
    /// Root file system.
    pub root: Root,
    /// Mounts in order, after the root and before `pivot_root`.
    pub mounts: Vec<Mount>,
    /// Device nodes bound into `/dev` beside the six of the OCI default set.
    pub devices: Vec<Device>,
    /// Paths inside the container that are hidden.
    pub masked_paths: Vec<String>,
    /// Paths inside the container that are made read-only.
    pub readonly_paths: Vec<String>,
    /// Namespaced sysctls, `net.ipv4.ip_unprivileged_port_start` form.
    pub sysctls: Vec<(String, String)>,
    /// The first process.
    pub process: Process,
    /// Run the built-in init as pid 1 of the container and the process as its child.
    pub init: bool,
    /// What only OCI bundles ask for.
    pub special: Special,
}

mod special;

pub use special::{
    CapabilitySets, MountSpecial, Node, NodeKind, ProcessSpecial, Propagation, Scheduler, SeccompListener,
    Special, TimeNamespace, TimeOffset,
};

/// Which namespaces are new, joined or the host's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Namespaces {
    /// User namespace: id 0 of the container is `base` on the host.
    pub user: UserNamespace,
    /// Network namespace.
    pub net: Namespace,
    /// Pid namespace.
    pub pid: Namespace,
    /// IPC namespace.
    pub ipc: Namespace,
    /// UTS namespace.
    pub uts: Namespace,
    /// Cgroup namespace.
    pub cgroup: Namespace,
}

/// A user namespace made ahead by the launcher (`make_slot`), or none for privileged host use.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum UserNamespace {
    /// Ids `base..base+count` of the host; descriptor of the user namespace.
    Own {
        /// Open `/proc/…/ns/user`.
        fd: Fd,
        /// First host id.
        base: u32,
        /// How many ids.
        count: u32,
    },
    /// The host's. Only when asked for by name (`--userns=host`, `--privileged`).
    Host,
}

/// Where one namespace comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Namespace {
    /// A fresh one.
    New,
    /// Join this one.
    Join(Fd),
    /// Stay in the host's.
    Host,
}

/// The root file system: overlay of layers, or one directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Root {
    /// Layer directories, lowest first. With no `writable` and one layer: a bind of that directory.
    pub layers: Vec<Fd>,
    /// Directory holding `fs` (upper) and `work`; none for a bare bind or a read-only overlay.
    pub writable: Option<Fd>,
    /// Mount the result read-only.
    pub readonly: bool,
}

/// One mount inside the container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path inside the container; resolved with `RESOLVE_IN_ROOT`, made when missing.
    pub target: String,
    /// What is mounted.
    pub source: MountSource,
    /// Read-only.
    pub readonly: bool,
    /// `nosuid`.
    pub nosuid: bool,
    /// `nodev`.
    pub nodev: bool,
    /// `noexec`.
    pub noexec: bool,
    /// What only OCI bundles ask for.
    pub special: MountSpecial,
}

/// What a mount shows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum MountSource {
    /// A host file or directory by descriptor.
    Bind {
        /// The file or directory.
        fd: Fd,
        /// Shift owners by the container's user namespace (idmapped mount). Off for device-like files. Where the
        /// file system cannot (tmpfs on Linux 6.1), the files belong to nobody inside.
        idmap: bool,
        /// Include mounts below it.
        recursive: bool,
        /// Copy the image's content at `target` into the directory when it is empty (Docker volumes).
        copy_up: bool,
        /// Propagation `MS_SLAVE` instead of private.
        slave: bool,
    },
    /// A file system by name with options: proc, sysfs, cgroup, tmpfs, devpts, mqueue.
    Fs {
        /// Kernel name of the file system (`cgroup` means cgroup2).
        kind: String,
        /// `key=value` or flag options.
        options: Vec<String>,
    },
}

/// A device node bound from the host's `/dev`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Device {
    /// The host's node.
    pub fd: Fd,
    /// Path inside the container.
    pub target: String,
}

/// The process to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Process {
    /// Program and arguments; the program is looked up in the container's `PATH` when it has no slash.
    pub args: Vec<String>,
    /// `KEY=value`.
    pub env: Vec<String>,
    /// Working directory inside the container; made when missing.
    pub cwd: String,
    /// `user[:group]`, names or numbers, resolved inside the container; empty is root.
    pub user: String,
    /// Supplementary groups, names or numbers.
    pub groups: Vec<String>,
    /// Capabilities by bit number, for bounding, permitted and effective sets; ambient and inheritable stay empty.
    pub capabilities: u64,
    /// `no_new_privs`.
    pub no_new_privileges: bool,
    /// System call filter.
    pub seccomp: Seccomp,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// `oom_score_adj`, -1000 to 1000.
    pub oom_score_adj: i32,
    /// File creation mask.
    pub umask: u32,
    /// Where standard input, output and error come from.
    pub stdio: Stdio,
    /// What only OCI bundles ask for.
    pub special: ProcessSpecial,
}

/// Standard streams of the process.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Stdio {
    /// Three descriptors.
    Fds([Fd; 3]),
    /// A new terminal of the container's own devpts; the master comes back with the answer.
    Terminal {
        /// Rows, 0 for unset.
        rows: u16,
        /// Columns, 0 for unset.
        columns: u16,
    },
}

/// System call filter.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Seccomp {
    /// None. Only for privileged containers.
    Unconfined,
    /// The built-in default, at least as tight as Docker's, fitted to the capabilities.
    Default,
    /// A compiled classic BPF program: `(code, jt, jf, k)`.
    Program(Vec<(u16, u8, u8, u32)>),
}

/// One resource limit.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Rlimit {
    /// `RLIMIT_*` number of Linux.
    pub resource: u32,
    /// Soft limit, `u64::MAX` for unlimited.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// A further process in a running container: joins exactly the container's confinement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExecPlan {
    /// Name under which init keeps the exit, e.g. `e/<exec id>`.
    pub name: String,
    /// Pidfd of the container's first process, whose namespaces and root are joined.
    pub target: Fd,
    /// Directory of the container's cgroup.
    pub cgroup: Fd,
    /// True when the container has a user namespace of its own.
    pub user_namespace: bool,
    /// The process.
    pub process: Process,
}

/// A request to the launcher.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Make a user namespace with ids `base..base+count` and a network namespace owned by it.
    /// Answer: [`Reply::Slot`] with descriptors `[user namespace, network namespace]`.
    MakeSlot {
        /// First host id.
        base: u32,
        /// How many ids.
        count: u32,
    },
    /// Start a container. Answer: [`Reply::Started`] with `[pidfd]` or `[pidfd, pty master]`.
    Launch(Box<Plan>),
    /// Start a process in a running container. Same answer.
    Exec(Box<ExecPlan>),
}

/// The launcher's answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Reply {
    /// The slot is made.
    Slot,
    /// The program runs (its `execve` succeeded).
    Started {
        /// Pid in the host's pid namespace.
        pid: i32,
    },
    /// A step failed; everything made so far is undone.
    Failed(Failure),
}

/// A failed step, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{step}: {detail}: {}", std::io::Error::from_raw_os_error(*errno))]
pub struct Failure {
    /// The step's name: `clone`, `root`, `mount`, `user`, `group`, `cwd`, `exec`, …
    pub step: String,
    /// What it was about: the path, the name of an unknown user or group. For `exec` the whole text.
    pub detail: String,
    /// The kernel's error number.
    pub errno: i32,
}

impl Failure {
    /// The text Docker's users know: what is wrong with their program or user by itself, other steps by name.
    pub fn message(&self) -> String {
        match self.step.as_str() {
            "exec" => self.detail.clone(),
            "user" => format!("unable to find user {}: no matching entries in passwd file", self.detail),
            "group" => format!("unable to find group {}: no matching entries in group file", self.detail),
            _ => self.to_string(),
        }
    }
}
