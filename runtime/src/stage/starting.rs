//! A process on its way from `clone3` to its program, as whoever makes it sees it: released, waited for, ended when
//! it takes too long.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use berth_sys::clone::{Options, SingleThreaded, spawn};
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};

use super::failure::{Step, failure};
use super::sync::{Go, Report, connection, wait_readable};
use crate::plan::Failure;
use crate::wire::{self, Incoming, Progress};

/// How long the first process may take to exist.
const CLONE_DEADLINE: Duration = Duration::from_secs(10);

/// A process on its way to its program.
#[derive(Debug)]
pub(crate) struct Starting {
    socket: OwnedFd,
    incoming: Incoming,
    pid: i32,
    pidfd: OwnedFd,
    terminal: Option<OwnedFd>,
    executing: bool,
    deadline: Instant,
}

/// A process that runs its program.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) pid: i32,
    /// Its pidfd, and its terminal's master side if it has one.
    pub(crate) fds: Vec<OwnedFd>,
}

/// Whose child a container becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parentage {
    /// A sibling of the maker: init reaps it.
    Sibling,
    /// A child of the maker, which reaps it or leaves it to a subreaper by ending.
    Child,
}

/// Runs `intermediate` in a process of its own, waits for the process it makes, registers that and lets it go.
pub(crate) fn clone_through(
    parentage: Parentage,
    intermediate: impl FnOnce(BorrowedFd<'_>) -> i32,
    single: SingleThreaded,
    register: impl FnOnce(i32, BorrowedFd<'_>) -> Result<(), Failure>,
    setup: Duration,
) -> Result<Starting, Failure> {
    let (ours, theirs) = connection().step("clone", "connection")?;
    let mut end = Some(ours);
    let options = Options { sibling: parentage == Parentage::Sibling, ..Options::default() };
    let helper = spawn(single, options, || {
        // Its copy of the launcher's end would hide the launcher's death from it.
        drop(end.take());
        intermediate(theirs.as_fd())
    })
    .step("clone", "intermediate")?;
    drop(theirs);
    let ours = end.ok_or_else(|| failure("clone", "connection", Errno::BADF))?;
    let first = wait_readable(ours.as_fd(), Instant::now() + CLONE_DEADLINE)
        .step("clone", "no first process in time")
        .and_then(|()| wire::receive::<Report>(ours.as_fd()).step("clone", "intermediate ended"));
    let (pid, pidfd) = match first {
        Ok((Report::Cloned { pid }, fds)) => {
            let pidfd = fds.into_iter().next();
            (pid, pidfd.ok_or_else(|| failure("clone", "no pidfd", Errno::BADMSG))?)
        }
        Ok((Report::Failed(failure), _)) => return Err(failure),
        Ok(_) => return Err(failure("clone", "unexpected report", Errno::BADMSG)),
        Err(failure) => {
            kill(helper.pidfd.as_fd());
            return Err(failure);
        }
    };
    let released = register(pid, pidfd.as_fd())
        .and_then(|()| wire::send(ours.as_fd(), &Go, &[]).step("start", "release"));
    if let Err(failure) = released {
        kill(pidfd.as_fd());
        return Err(failure);
    }
    Ok(Starting {
        socket: ours,
        incoming: Incoming::default(),
        pid,
        pidfd,
        terminal: None,
        executing: false,
        deadline: Instant::now() + setup,
    })
}

/// Kills a process of the launcher's making; one that is dead already is as good.
fn kill(pidfd: BorrowedFd<'_>) {
    let _ = pidfd_send_signal(pidfd, Signal::KILL);
}

impl Starting {
    /// What becomes readable when there is something to [`Starting::advance`].
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// When to call [`Starting::expire`].
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Takes one report; the outcome when that was the last.
    pub(crate) fn advance(&mut self) -> Option<Result<Running, Failure>> {
        match self.incoming.receive(self.socket.as_fd()) {
            Ok(Progress::Whole(Report::Terminal, fds)) => self.terminal = fds.into_iter().next(),
            Ok(Progress::Whole(Report::Executing, _)) => self.executing = true,
            Ok(Progress::Whole(Report::Created, _)) => return Some(self.running()),
            Ok(Progress::Whole(Report::Failed(failure), _)) => return Some(Err(failure)),
            Ok(Progress::Whole(Report::Cloned { .. }, _)) => {
                return Some(Err(self.abort("start", "unexpected report", Errno::BADMSG)));
            }
            Ok(Progress::Partial) => {}
            Ok(Progress::Closed) if self.executing => return Some(self.running()),
            Ok(Progress::Closed) => {
                return Some(Err(self.abort("start", "killed during set-up", Errno::CHILD)));
            }
            // The other end closed with something unread: it was killed before it read its release.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                return Some(Err(self.abort("start", "killed during set-up", Errno::CHILD)));
            }
            Err(error) => {
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                return Some(Err(self.abort("start", "connection", errno)));
            }
        }
        None
    }

    fn running(&mut self) -> Result<Running, Failure> {
        let pidfd = self.pidfd.try_clone().step("start", "pidfd")?;
        let fds = std::iter::once(pidfd).chain(self.terminal.take()).collect();
        Ok(Running { pid: self.pid, fds })
    }

    /// The deadline is over: ends the process and the start.
    pub(crate) fn expire(&mut self) -> Failure {
        self.abort("start", "not set up in time", Errno::TIMEDOUT)
    }

    fn abort(&mut self, step: &str, detail: &str, errno: Errno) -> Failure {
        kill(self.pidfd.as_fd());
        failure(step, detail, errno)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::sync::report;

    /// A start whose process is a `sleep`, and the end that process would report on.
    fn starting() -> (Starting, OwnedFd, std::process::Child) {
        let (ours, theirs) = connection().unwrap();
        let child = std::process::Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        let starting = Starting {
            socket: ours,
            incoming: Incoming::default(),
            pid: pid.as_raw_nonzero().get(),
            pidfd,
            terminal: None,
            executing: false,
            deadline: Instant::now(),
        };
        (starting, theirs, child)
    }

    fn is_killed(mut child: std::process::Child) -> bool {
        use std::os::unix::process::ExitStatusExt;
        child.wait().unwrap().signal() == Some(libc::SIGKILL)
    }

    fn end(mut child: std::process::Child) {
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn the_end_of_the_connection_after_the_announcement_means_it_runs() {
        let (mut starting, theirs, child) = starting();
        let master = std::fs::File::open("/dev/null").unwrap();
        report(theirs.as_fd(), &Report::Terminal, &[master.as_fd()]).unwrap();
        report(theirs.as_fd(), &Report::Executing, &[]).unwrap();
        drop(theirs);
        assert!(starting.advance().is_none());
        assert!(starting.advance().is_none());
        let running = starting.advance().unwrap().unwrap();
        assert_eq!(running.fds.len(), 2, "pidfd and terminal");
        end(child);
    }

    #[test]
    fn the_end_without_announcement_is_a_failure_and_kills() {
        let (mut starting, theirs, child) = starting();
        drop(theirs);
        assert_eq!(starting.advance().unwrap().unwrap_err().step, "start");
        assert!(is_killed(child));
    }

    #[test]
    fn a_failed_step_is_handed_on_even_after_the_announcement() {
        let (mut starting, theirs, child) = starting();
        report(theirs.as_fd(), &Report::Executing, &[]).unwrap();
        let failed = failure("exec", "exec /x: exec format error", Errno::NOEXEC);
        report(theirs.as_fd(), &Report::Failed(failed.clone()), &[]).unwrap();
        assert!(starting.advance().is_none());
        assert_eq!(starting.advance().unwrap().unwrap_err(), failed);
        end(child);
    }

    #[test]
    fn a_start_past_its_deadline_is_killed() {
        let (mut starting, _theirs, child) = starting();
        assert_eq!(starting.expire().errno, libc::ETIMEDOUT);
        assert!(is_killed(child));
    }

    #[test]
    fn nonsense_from_the_process_kills_it() {
        let (mut starting, theirs, child) = starting();
        rustix::net::send(&theirs, b"\0nonsense", rustix::net::SendFlags::empty()).unwrap();
        assert!(starting.advance().unwrap().is_err());
        assert!(is_killed(child));
    }
}
