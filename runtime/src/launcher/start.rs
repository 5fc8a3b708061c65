//! One start, from a plan to a program that runs: what is done at once, and what is waited for.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use berth_sys::clone::{Options, SingleThreaded, spawn};
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};

use super::{Host, slot, target};
use crate::plan::{ExecPlan, Failure, Plan, Process, Request, Seccomp, Stdio, UserNamespace};
use crate::seccomp::Filter;
use crate::stage::container::{self, Ready};
use crate::stage::failure::{Step, failure};
use crate::stage::intermediate::{self, Context};
use crate::stage::sources::{self, Fds, MountNamespaces};
use crate::stage::streams::give_pipe;
use crate::stage::sync::{Go, Report, connection, wait_readable};
use crate::stage::{overlay, scratch};
use crate::wire::{self, Incoming, Progress};

/// How long the first process may take to exist.
const CLONE_DEADLINE: Duration = Duration::from_secs(10);
/// How long set-up may take from there to `execve`. A volume may have to be filled from the image first.
const SETUP_DEADLINE: Duration = Duration::from_secs(60);
/// The same when a volume is filled; below the client's own limit.
const COPY_DEADLINE: Duration = Duration::from_secs(240);
/// Compiled default filters that are kept, one for each set of capabilities.
const FILTERS_MAX: usize = 64;

/// Makes processes.
#[derive(Debug)]
pub(super) struct Starter {
    single: SingleThreaded,
    namespaces: MountNamespaces,
    filters: BTreeMap<u64, Filter>,
}

/// A process on its way to its program.
#[derive(Debug)]
pub(super) struct Starting {
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
pub(super) struct Running {
    pub(super) pid: i32,
    /// Its pidfd, and its terminal's master side if it has one.
    pub(super) fds: Vec<OwnedFd>,
}

/// What a request leads to.
#[derive(Debug)]
pub(super) enum Begun {
    /// A slot is made.
    Slot([OwnedFd; 2]),
    /// A start is under way.
    Starting(Box<Starting>),
}

impl Starter {
    /// Moves the process into its private mount namespace, for good.
    pub(super) fn new(single: SingleThreaded) -> Result<Self, Failure> {
        let open = || {
            let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
            rustix::fs::open("/proc/self/ns/mnt", flags, rustix::fs::Mode::empty())
        };
        let host = open().step("scratch", "mount namespace")?;
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).step("scratch", "mount namespace")?;
        scratch::make_private()?;
        scratch::prepare()?;
        let own = open().step("scratch", "mount namespace")?;
        Ok(Self { single, namespaces: MountNamespaces { host, own }, filters: BTreeMap::new() })
    }

    /// Does what a request asks, as far as it can be done at once.
    pub(super) fn begin(
        &mut self,
        request: &Request,
        fds: &[OwnedFd],
        host: &mut dyn Host,
    ) -> Result<Begun, Failure> {
        let starting = match request {
            Request::MakeSlot { base, count } => {
                return slot::make(self.single, *base, *count).map(Begun::Slot);
            }
            Request::Launch(plan) => self.launch(plan, Fds(fds), host)?,
            Request::Exec(plan) => self.exec(plan, Fds(fds), host)?,
        };
        Ok(Begun::Starting(Box::new(starting)))
    }

    fn launch(&mut self, plan: &Plan, fds: Fds<'_>, host: &mut dyn Host) -> Result<Starting, Failure> {
        let filter = self.filter(&plan.process)?;
        let host_root = match plan.namespaces.user {
            UserNamespace::Own { base, .. } => base,
            UserNamespace::Host => 0,
        };
        let mut sources = sources::detach(plan, fds, &self.namespaces)?;
        let root = overlay::assemble(&mut sources, host_root)?;
        give_pipes(&plan.process.stdio, fds, host_root)?;
        let ready = Ready { root, sources, filter };
        let single = self.single;
        let deadline = setup_deadline(plan);
        clone_through(
            |sync| {
                let context = Context { single, sync, fds };
                intermediate::launch(context, plan, || container::launch(context, plan, &ready))
            },
            single,
            |pid, pidfd| host.register(&plan.name, pid, pidfd).step("register", &plan.name),
            deadline,
        )
    }

    fn exec(&mut self, plan: &ExecPlan, fds: Fds<'_>, host: &mut dyn Host) -> Result<Starting, Failure> {
        let filter = self.filter(&plan.process)?;
        let target = target::inspect(fds.get(plan.target)?).step("container", "not running")?;
        give_pipes(&plan.process.stdio, fds, target.host_root)?;
        let single = self.single;
        clone_through(
            |sync| {
                let context = Context { single, sync, fds };
                let cgroup = target.cgroup.as_fd();
                intermediate::exec(context, plan, || container::exec(context, plan, &filter, cgroup))
            },
            single,
            |pid, pidfd| host.register(&plan.name, pid, pidfd).step("register", &plan.name),
            SETUP_DEADLINE,
        )
    }

    fn filter(&mut self, process: &Process) -> Result<Filter, Failure> {
        let default = matches!(process.seccomp, Seccomp::Default);
        if let Some(known) = self.filters.get(&process.capabilities).filter(|_| default) {
            return Ok(known.clone());
        }
        let filter = Filter::new(&process.seccomp, process.capabilities)
            .map_err(|error| failure("seccomp", &error.to_string(), Errno::INVAL))?;
        if default && self.filters.len() < FILTERS_MAX {
            self.filters.insert(process.capabilities, filter.clone());
        }
        Ok(filter)
    }
}

fn setup_deadline(plan: &Plan) -> Duration {
    let copies = plan
        .mounts
        .iter()
        .any(|mount| matches!(mount.source, crate::plan::MountSource::Bind { copy_up: true, .. }));
    if copies { COPY_DEADLINE } else { SETUP_DEADLINE }
}

/// Pipes are made by the host's root, whom the container's root is not; from here on they are the container's, which
/// can hand them on to its user.
fn give_pipes(stdio: &Stdio, fds: Fds<'_>, host_root: u32) -> Result<(), Failure> {
    if host_root != 0 {
        for fd in sources::streams(stdio, fds)?.into_iter().flatten() {
            give_pipe(fd, host_root, host_root);
        }
    }
    Ok(())
}

/// Runs `intermediate` in a sibling of this process, waits for the process it makes, registers that and lets it go.
fn clone_through(
    intermediate: impl FnOnce(BorrowedFd<'_>) -> i32,
    single: SingleThreaded,
    register: impl FnOnce(i32, BorrowedFd<'_>) -> Result<(), Failure>,
    setup: Duration,
) -> Result<Starting, Failure> {
    let (ours, theirs) = connection().step("clone", "connection")?;
    let mut end = Some(ours);
    let options = Options { sibling: true, ..Options::default() };
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
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// When to call [`Starting::expire`].
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Takes one report; the outcome when that was the last.
    pub(super) fn advance(&mut self) -> Option<Result<Running, Failure>> {
        match self.incoming.receive(self.socket.as_fd()) {
            Ok(Progress::Whole(Report::Terminal, fds)) => self.terminal = fds.into_iter().next(),
            Ok(Progress::Whole(Report::Executing, _)) => self.executing = true,
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
    pub(super) fn expire(&mut self) -> Failure {
        self.abort("start", "not set up in time", Errno::TIMEDOUT)
    }

    fn abort(&mut self, step: &str, detail: &str, errno: Errno) -> Failure {
        kill(self.pidfd.as_fd());
        failure(step, detail, errno)
    }
}
