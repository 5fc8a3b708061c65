//! What is done to a container that is there: `kill`, `pause`, `resume`, `update`, `delete`.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use berth_sys::signals::send;
use rustix::fs::{Mode, OFlags};
use rustix::mount::UnmountFlags;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::spec::Resources;
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
    if all {
        return signal_all(&container, signal);
    }
    send(pidfd.as_fd(), signal).map_err(system("signal"))
}

/// A process that is born meanwhile is missed, as with any signal but the one that kills.
fn signal_all(container: &Container, signal: i32) -> Result<(), OciError> {
    let Some(group) = group_of(container) else { return Ok(()) };
    for pid in group.processes().map_err(system("processes"))? {
        let pid = rustix::process::Pid::from_raw(pid);
        // One that is gone needs no signal.
        if let Some(Ok(pidfd)) = pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
            let _ = send(pidfd.as_fd(), signal);
        }
    }
    Ok(())
}

/// Stops every process of a container, or lets them go on.
///
/// # Errors
/// `Status` when it is not running, or not paused.
pub fn pause(root: &Path, id: &str, paused: bool) -> Result<(), OciError> {
    let container = Container::open(root, id)?;
    let status = container.status();
    let wanted = if paused { Status::Running } else { Status::Paused };
    let group = group_of(&container).filter(|_| status == wanted);
    let group = group.ok_or_else(|| OciError::Status { id: id.to_owned(), status })?;
    group.freeze(paused).map_err(system("freeze"))?;
    let deadline = Instant::now() + GONE_DEADLINE;
    while group.frozen().map_err(system("freeze"))? != paused {
        if Instant::now() > deadline {
            return Err(OciError::System { what: "freeze", source: std::io::ErrorKind::TimedOut.into() });
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// The processes of a container, by their numbers on the host.
///
/// # Errors
/// `Unknown`; what the kernel says.
pub fn processes(root: &Path, id: &str) -> Result<Vec<i32>, OciError> {
    let container = Container::open(root, id)?;
    group_of(&container).map_or(Ok(Vec::new()), |group| group.processes().map_err(system("processes")))
}

/// Sets limits of a container anew; what is not named stays.
///
/// # Errors
/// A field that is not supported, or what the kernel says.
pub fn update(root: &Path, id: &str, wanted: &Resources) -> Result<(), OciError> {
    let container = Container::open(root, id)?;
    let status = container.status();
    super::refuse::resources(wanted)?;
    let group = group_of(&container).filter(|_| status != Status::Stopped);
    let group = group.ok_or_else(|| OciError::Status { id: id.to_owned(), status })?;
    group.set(&super::resources::limits(wanted)?).map_err(system("limits"))?;
    super::create::set_files(&group, wanted)
}

/// Removes a container that is not running, or any with `force`.
///
/// Gives what `poststop` hooks failed, which is worth a warning (runtime-spec, lifecycle).
///
/// # Errors
/// `Status` when it is running and `force` is not given.
pub fn delete(root: &Path, id: &str, force: bool) -> Result<Vec<OciError>, OciError> {
    let container = match Container::open(root, id) {
        Err(OciError::Unknown(_)) if force => return Ok(Vec::new()),
        other => other?,
    };
    let status = container.status();
    if matches!(status, Status::Running | Status::Paused) && !force {
        return Err(OciError::Status { id: id.to_owned(), status });
    }
    if let Ok(pidfd) = container.pidfd() {
        let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        wait_readable(pidfd.as_fd(), Instant::now() + GONE_DEADLINE).map_err(system("end of the process"))?;
    }
    if let Some(group) = group_of(&container) {
        empty(&group);
    }
    unmount_root(&container);
    let state = container.shown(Status::Stopped);
    container.remove()?;
    let wanted = container.spec.hooks.iter().flat_map(|hooks| &hooks.poststop);
    Ok(wanted.filter_map(|hook| hooks::run(std::slice::from_ref(hook), &state).err()).collect())
}

/// A container without a mount namespace of its own has mounted its root in the host's, all else below it.
pub(super) fn unmount_root(container: &Container) {
    let spec = &container.spec;
    let shares =
        spec.linux.as_ref().is_some_and(|linux| !linux.namespaces.iter().any(|one| one.kind == "mount"));
    if let (true, Some(root)) = (shares, &spec.root) {
        let path = container.record.bundle.join(&root.path);
        // What is not mounted needs nothing.
        let _ = rustix::mount::unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
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
