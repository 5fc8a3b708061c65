//! What the launcher and the processes it makes tell each other while a container is set up.
//!
//! ```text
//! intermediate → launcher   Cloned, with the pidfd
//! launcher → container      Go (init knows the process by now)
//! container → launcher      Terminal, with the master side (only when asked for)
//! container → launcher      Created, when it goes on only at its gate (OCI `create` and `start`); the rest is for
//!                           whoever opens that
//! container → launcher      Executing, then the end of the connection when execve closes it
//!                           or Failed at any point before
//! ```

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::{Deserialize, Serialize};

use crate::plan::Failure;
use crate::wire;

/// From a process in set-up to the launcher.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The container's first process exists. Fd: its pidfd.
    Cloned {
        /// Pid in the host's pid namespace.
        pid: i32,
    },
    /// The terminal is there. Fd: its master side.
    Terminal,
    /// Everything is set up and the process waits at its gate.
    Created,
    /// The next thing is `execve`; the end of the connection means that it succeeded.
    Executing,
    /// A step failed; the process ends.
    Failed(Failure),
}

/// From the launcher to the container's first process: init knows you, go on.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Go;

/// A connection for one start: the launcher's end and the end of the processes it makes.
pub(crate) fn connection() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// Waits until `socket` has something to read or `deadline` is over (`ETIMEDOUT`).
pub(crate) fn wait_readable(socket: BorrowedFd<'_>, deadline: Instant) -> rustix::io::Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = timespec(left);
        let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return Err(Errno::TIMEDOUT),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// A duration as the kernel takes it.
pub(crate) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// Sends a report; when the launcher is gone there is nobody to tell.
pub(crate) fn report(socket: BorrowedFd<'_>, report: &Report, fds: &[BorrowedFd<'_>]) -> std::io::Result<()> {
    wire::send(socket, report, fds)
}
