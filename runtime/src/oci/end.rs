//! `kill` and `delete`.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Signal, pidfd_send_signal};

use super::state::{Container, Status};
use super::{OciError, hooks, system};
use crate::cgroup::Group;
use crate::stage::sync::wait_readable;

/// How long killed processes may take to be gone.
const GONE_DEADLINE: Duration = Duration::from_secs(10);
/// Pause between two looks at a group that is being emptied.
const LOOK: Duration = Duration::from_millis(2);

/// Sends a signal to the first process, or to all with `all`.
///
/// # Errors
/// `Status` when the container is neither created nor running.
pub fn kill(root: &Path, id: &str, signal: i32, all: bool) -> Result<(), OciError> {
    let container = Container::open(root, id)?;
    let pidfd = container.pidfd()?;
    if all && signal == libc::SIGKILL {
        kill_all(&container);
        return Ok(());
    }
    let signal = Signal::from_named_raw(signal)
        .ok_or_else(|| OciError::Spec(format!("signal {signal} cannot be sent")))?;
    pidfd_send_signal(&pidfd, signal).map_err(system("signal"))
}

/// Removes a container that is not running, or any with `force`.
///
/// # Errors
/// `Status` when it is running and `force` is not given; a failed hook after everything is removed.
pub fn delete(root: &Path, id: &str, force: bool) -> Result<(), OciError> {
    let container = match Container::open(root, id) {
        Err(OciError::Unknown(_)) if force => return Ok(()),
        other => other?,
    };
    let status = container.status();
    if status == Status::Running && !force {
        return Err(OciError::Status { id: id.to_owned(), status });
    }
    if let Ok(pidfd) = container.pidfd() {
        let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        wait_readable(pidfd.as_fd(), Instant::now() + GONE_DEADLINE).map_err(system("end of the process"))?;
    }
    if let Some(group) = group_of(&container) {
        empty(&group);
    }
    let state = container.shown(Status::Stopped);
    container.remove()?;
    match &container.spec.hooks {
        Some(wanted) => hooks::run(&wanted.poststop, &state),
        None => Ok(()),
    }
}

/// The container's group, if it still exists.
pub(super) fn group_of(container: &Container) -> Option<Group> {
    let path = Path::new("/sys/fs/cgroup").join(&container.record.cgroup);
    let (parent, name) = (path.parent()?, path.file_name()?.to_str()?);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = rustix::fs::open(parent, flags, Mode::empty()).ok()?;
    Group::open(parent.as_fd(), name).ok()
}

/// Kills every process of a container; one without a group has none left.
pub(super) fn kill_all(container: &Container) {
    if let Some(group) = group_of(container) {
        let _ = group.kill();
    }
}

/// Kills what lives in a group and removes it. What cannot be removed in time stays behind empty.
pub(super) fn empty(group: &Group) {
    let _ = group.kill();
    let deadline = Instant::now() + GONE_DEADLINE;
    while group.remove().is_err() && Instant::now() < deadline {
        std::thread::sleep(LOOK);
    }
}
