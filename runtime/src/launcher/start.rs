//! One start, from a plan to a program that runs: what is done at once, and what is waited for.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use berth_sys::clone::SingleThreaded;
use rustix::io::Errno;

use super::{Host, slot, target};
use crate::plan::{ExecPlan, Failure, Plan, Process, Request, Seccomp, Stdio, UserNamespace};
use crate::seccomp::Filter;
use crate::stage::container::{self, Ready};
use crate::stage::failure::{Step, failure};
use crate::stage::intermediate::{self, Context};
use crate::stage::sources::{self, Fds, MountNamespaces, Owners};
use crate::stage::starting::{Parentage, Starting, clone_through};
use crate::stage::streams::give_pipe;
use crate::stage::{overlay, scratch};

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
        let mut sources = sources::detach(plan, fds, &self.namespaces, Owners::Shifted)?;
        let root = overlay::assemble(&mut sources, host_root)?;
        give_pipes(plan.process.stdio, fds, host_root)?;
        let ready = Ready { root, sources, filter };
        let single = self.single;
        let deadline = setup_deadline(plan);
        clone_through(
            Parentage::Sibling,
            |sync| {
                let context = Context { single, sync, fds, gate: None };
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
        give_pipes(plan.process.stdio, fds, target.host_root)?;
        let single = self.single;
        let group = fds.get(plan.cgroup)?;
        let namespace = target.cgroup.as_fd();
        let mut attempt = |group: BorrowedFd<'_>| {
            clone_through(
                Parentage::Sibling,
                |sync| {
                    let context = Context { single, sync, fds, gate: None };
                    let child = || container::exec(context, plan, &filter, namespace);
                    intermediate::exec(context, plan, group, child)
                },
                single,
                |pid, pidfd| host.register(&plan.name, pid, pidfd).step("register", &plan.name),
                SETUP_DEADLINE,
            )
        };
        match attempt(group) {
            Err(failure) if target::is_divided(&failure) => {
                attempt(target.group().step("cgroup", "of the first process")?.as_fd())
            }
            result => result,
        }
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
fn give_pipes(stdio: Stdio, fds: Fds<'_>, host_root: u32) -> Result<(), Failure> {
    if host_root != 0 {
        for fd in sources::streams(stdio, fds)?.into_iter().flatten() {
            give_pipe(fd, host_root, host_root);
        }
    }
    Ok(())
}
