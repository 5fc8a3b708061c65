//! The agent's side of the launcher's socket: blocking calls, one request at a time on each connection.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use serde::Serialize;

use crate::plan::{ExecPlan, Failure, Plan, Reply};
use crate::wire;

/// How long the client waits for an answer. Longer than the launcher's own longest deadline, so it only fires
/// when the launcher itself hangs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);

/// A connection to the launcher.
#[derive(Debug)]
pub struct Launcher {
    socket: OwnedFd,
}

/// Namespaces made ahead of a container.
#[derive(Debug)]
pub struct Slot {
    /// The user namespace.
    pub user: OwnedFd,
    /// A network namespace owned by it.
    pub net: OwnedFd,
}

/// A program that runs: its `execve` succeeded.
#[derive(Debug)]
pub struct Started {
    /// Pid in the host's pid namespace.
    pub pid: i32,
    /// Its pidfd.
    pub pidfd: OwnedFd,
    /// Master side of its terminal, when the plan asked for one.
    pub terminal: Option<OwnedFd>,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A step failed. Everything made was undone; the connection stays usable.
    #[error("{0}")]
    Step(Failure),
    /// The connection is broken or the answer made no sense: connect anew. What became of the request is unknown.
    #[error("connection to the launcher")]
    Connection(#[source] io::Error),
}

/// [`crate::plan::Request`] by reference: the same bytes without a copy of the plan.
#[derive(Serialize)]
enum Asked<'a> {
    MakeSlot { base: u32, count: u32 },
    Launch(&'a Plan),
    Exec(&'a ExecPlan),
}

impl Launcher {
    /// Connects to the launcher's socket (`berth_control::LAUNCHER_SOCKET`).
    ///
    /// # Errors
    /// What `socket` and `connect` say.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Self::from_socket(socket)
    }

    /// A client on a connected `SOCK_SEQPACKET` socket.
    ///
    /// # Errors
    /// What `setsockopt` says.
    pub fn from_socket(socket: OwnedFd) -> io::Result<Self> {
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        Ok(Self { socket })
    }

    /// Makes a user namespace whose ids `0..count` are `base..base+count` of the host, and a network namespace
    /// owned by it. Nested user namespaces are forbidden inside.
    pub fn make_slot(&mut self, base: u32, count: u32) -> Result<Slot, LaunchError> {
        let (reply, fds) = self.ask(&Asked::MakeSlot { base, count }, &[])?;
        match (reply, <[OwnedFd; 2]>::try_from(fds)) {
            (Reply::Slot, Ok([user, net])) => Ok(Slot { user, net }),
            (Reply::Failed(failure), _) => Err(LaunchError::Step(failure)),
            _ => Err(senseless()),
        }
    }

    /// Starts a container; `fds` are what the plan's `Fd`s count in. At most [`wire::FDS_MAX`].
    pub fn launch(&mut self, plan: &Plan, fds: &[BorrowedFd<'_>]) -> Result<Started, LaunchError> {
        let answer = self.ask(&Asked::Launch(plan), fds)?;
        started(answer)
    }

    /// Starts a process in a running container.
    pub fn exec(&mut self, plan: &ExecPlan, fds: &[BorrowedFd<'_>]) -> Result<Started, LaunchError> {
        let answer = self.ask(&Asked::Exec(plan), fds)?;
        started(answer)
    }

    fn ask(
        &mut self,
        request: &Asked<'_>,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), LaunchError> {
        wire::send(self.socket.as_fd(), request, fds).map_err(LaunchError::Connection)?;
        wire::receive(self.socket.as_fd()).map_err(LaunchError::Connection)
    }
}

fn started((reply, fds): (Reply, Vec<OwnedFd>)) -> Result<Started, LaunchError> {
    let mut fds = fds.into_iter();
    match (reply, fds.next(), fds.next(), fds.next()) {
        (Reply::Started { pid }, Some(pidfd), terminal, None) => Ok(Started { pid, pidfd, terminal }),
        (Reply::Failed(failure), ..) => Err(LaunchError::Step(failure)),
        _ => Err(senseless()),
    }
}

fn senseless() -> LaunchError {
    LaunchError::Connection(io::Error::new(io::ErrorKind::InvalidData, "answer does not fit the request"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Fd, Process, Request, Seccomp, Stdio};

    fn exec_plan() -> ExecPlan {
        let process = Process {
            args: vec!["sh".to_owned()],
            env: vec!["A=b".to_owned()],
            cwd: "/".to_owned(),
            user: "app".to_owned(),
            groups: Vec::new(),
            capabilities: 7,
            no_new_privileges: true,
            seccomp: Seccomp::Program(vec![(6, 0, 0, 0x7fff_0000)]),
            rlimits: Vec::new(),
            oom_score_adj: -1,
            umask: 0o22,
            stdio: Stdio::Terminal { rows: 1, columns: 2 },
            special: crate::plan::ProcessSpecial::default(),
        };
        ExecPlan { name: "e/1".to_owned(), target: Fd(0), cgroup: Fd(1), user_namespace: true, process }
    }

    #[test]
    fn a_request_by_reference_is_read_as_a_request() {
        let plan = exec_plan();
        let bytes = postcard::to_allocvec(&Asked::Exec(&plan)).unwrap();
        let request: Request = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(format!("{request:?}"), format!("{:?}", Request::Exec(Box::new(plan))));
        let bytes = postcard::to_allocvec(&Asked::MakeSlot { base: 7, count: 9 }).unwrap();
        assert!(matches!(postcard::from_bytes(&bytes), Ok(Request::MakeSlot { base: 7, count: 9 })));
    }

    #[test]
    fn an_answer_that_does_not_fit_breaks_the_connection_not_the_caller() {
        let answer = started((Reply::Started { pid: 1 }, Vec::new()));
        assert!(matches!(answer, Err(LaunchError::Connection(_))));
        let answer = started((Reply::Slot, Vec::new()));
        assert!(matches!(answer, Err(LaunchError::Connection(_))));
    }
}
