//! The messages, as types.

use std::os::fd::OwnedFd;

/// A name of a registered process or of stored descriptors: 1 to 128 bytes of `[a-zA-Z0-9_.:/-]`.
///
/// For containers `c/<64 hex id>/<run number>`, for exec sessions `e/<64 hex id>`, for descriptors the agent's choice.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

/// The text is not a [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a name (1 to 128 bytes of [a-zA-Z0-9_.:/-]): {0:?}")]
pub struct NameError(pub String);

impl std::str::FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:/-".contains(&byte);
        if text.is_empty() || text.len() > Self::MAX || !text.bytes().all(legal) {
            return Err(NameError(text.chars().take(160).collect()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl Name {
    /// Longest name in bytes; with the other fields a message stays far below [`crate::MESSAGE_MAX`].
    pub const MAX: usize = 128;

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.0)
    }
}

/// How a registered process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The name it was registered under.
    pub name: Name,
    /// Its pid in the host's pid namespace.
    pub pid: i32,
    /// Exit code, or `128 + signal` when a signal ended it.
    pub code: i32,
    /// The signal that ended it, 0 when it exited by itself.
    pub signal: i32,
    /// `CLOCK_REALTIME` at reaping, in nanoseconds since the epoch.
    pub at_unix_ns: i64,
}

/// What the machine shall do in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerAction {
    /// Power off.
    Off,
    /// Reboot.
    Reboot,
}

/// A supervised service of init (agent, launcher), for status pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceHealth {
    /// `agent` or `launcher`.
    pub service: String,
    /// Its pid, 0 while it is down.
    pub pid: i32,
    /// How often it was started since boot, at least 1.
    pub starts: u32,
}

/// What agent and launcher ask of init.
#[derive(Debug)]
#[expect(missing_docs, reason = "the variants describe their fields")]
pub enum ToInit {
    /// The agent is up and wants everything it left behind. init answers with every [`FromInit::Stored`],
    /// [`FromInit::Running`], [`FromInit::Exited`] and [`FromInit::Service`], then [`FromInit::Ready`].
    Hello,
    /// A child of init by `CLONE_PARENT` belongs to `name`; its exit is kept until acknowledged.
    /// Fd: its pidfd.
    Register { name: Name, pid: i32, pidfd: OwnedFd },
    /// The exit of `name` was made durable and may be forgotten.
    Acknowledge { name: Name },
    /// Keep these descriptors under `name`, in place of what was there. At most [`crate::FDS_MAX`].
    Store { name: Name, fds: Vec<OwnedFd> },
    /// Close the descriptors stored under `name`.
    Remove { name: Name },
    /// The agent's heartbeat; sent every 5 s. `ready` once the API answers.
    Alive { ready: bool },
    /// All containers are stopped; finish the shutdown.
    Power(PowerAction),
}

/// What init tells the agent.
#[derive(Debug)]
#[expect(missing_docs, reason = "the variants describe their fields")]
pub enum FromInit {
    /// Descriptors that were stored under `name` (duplicates; init keeps its own).
    Stored { name: Name, fds: Vec<OwnedFd> },
    /// A registered process still runs. Fd: its pidfd.
    Running { name: Name, pid: i32, pidfd: OwnedFd },
    /// A registered process ended; sent at once when it happens, and again after each `Hello` until acknowledged.
    Exited(Exit),
    /// State of a supervised service.
    Service(ServiceHealth),
    /// End of the answer to `Hello`.
    Ready,
    /// The machine is to go down (signal, ctrl-alt-del, power button): stop the containers in order, then send
    /// [`ToInit::Power`]. init waits at most `deadline_s` seconds, then goes on alone.
    Shutdown { action: PowerAction, deadline_s: u32 },
}
