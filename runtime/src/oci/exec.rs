//! `exec`: a further process in a running container, confined as its first one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use berth_sys::clone::SingleThreaded;

use super::create::wait;
use super::end::group_of;
use super::mounts::Fds as Collected;
use super::plan::{process, stdio};
use super::spec::ProcessSpec;
use super::state::{Container, Status};
use super::{OciError, system};
use crate::launcher::target;
use crate::plan::ExecPlan;
use crate::seccomp::Filter;
use crate::stage::container;
use crate::stage::failure::Step;
use crate::stage::intermediate::{self, Context};
use crate::stage::sources::Fds;
use crate::stage::starting::{Parentage, clone_through};

/// How long set-up may take.
const SETUP_DEADLINE: Duration = Duration::from_secs(60);

/// Starts `wanted` in a running container, a child of this process; gives its pidfd and the terminal's master side.
///
/// # Errors
/// `Status` when it is not running; the step that failed.
pub fn exec(
    single: SingleThreaded,
    root: &Path,
    id: &str,
    wanted: &ProcessSpec,
) -> Result<(i32, Vec<OwnedFd>), OciError> {
    let container = Container::open(root, id)?;
    let status = container.status();
    if status != Status::Running {
        return Err(OciError::Status { id: id.to_owned(), status });
    }
    super::refuse::check_process(wanted)?;
    let mut fds = Collected::default();
    let pidfd = container.pidfd()?;
    let inspected = target::inspect(pidfd.as_fd()).map_err(system("container"))?;
    let target = fds.add(pidfd)?;
    let stopped = || OciError::Status { id: id.to_owned(), status: Status::Stopped };
    let group = group_of(&container).ok_or_else(stopped)?;
    let cgroup = fds.add(group.dir().try_clone_to_owned().map_err(system("control group"))?)?;
    let linux = container.spec.linux.clone().unwrap_or_default();
    let stdio = stdio(wanted, &mut fds)?;
    let plan = ExecPlan {
        name: id.to_owned(),
        target,
        cgroup,
        user_namespace: container.record.user_namespace,
        process: process(wanted, &linux, stdio)?,
    };
    let filter = Filter::new(&plan.process.seccomp, plan.process.capabilities)
        .map_err(|error| OciError::Spec(error.to_string()))?;
    let fds = Fds(&fds.0);
    let attempt = |group: BorrowedFd<'_>| {
        clone_through(
            Parentage::Child,
            |sync| {
                let context = Context { single, sync, fds, gate: None };
                let namespace = inspected.cgroup.as_fd();
                let child = || container::exec(context, &plan, &filter, namespace);
                intermediate::exec(context, &plan, group, child)
            },
            single,
            |_pid, _pidfd| Ok::<_, std::io::Error>(()).step("exec", "register"),
            SETUP_DEADLINE,
        )
    };
    let starting = match attempt(group.dir()) {
        Err(failure) if target::is_divided(&failure) => {
            attempt(inspected.group().step("cgroup", "of the first process")?.as_fd())?
        }
        result => result?,
    };
    let running = wait(starting)?;
    Ok((running.pid, running.fds))
}
