//! What must be known of a running container before a process joins it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use crate::plan::Failure;

/// Longest `uid_map` read, in bytes: 340 lines of at most 33 bytes.
const MAP_MAX: u64 = 16 * 1024;

/// Facts about the first process of a container.
#[derive(Debug)]
pub(crate) struct Target {
    /// Its control group namespace.
    pub(crate) cgroup: OwnedFd,
    /// The host's id of its root, 0 in the host's user namespace.
    pub(crate) host_root: u32,
    pid: i32,
    pidfd: OwnedFd,
}

/// Where control groups are, in the host's mount namespace and the launcher's.
const GROUPS: &str = "/sys/fs/cgroup";

/// A group whose processes were moved into groups below it takes none itself: the container has divided its own.
pub(crate) fn is_divided(failure: &Failure) -> bool {
    failure.step == "clone" && failure.errno == libc::EBUSY
}

impl Target {
    /// The group the container's first process is in now, which is its own or one below it.
    pub(crate) fn group(&self) -> io::Result<OwnedFd> {
        let text = read_short(&format!("/proc/{}/cgroup", self.pid))?;
        if ended(self.pidfd.as_fd())? {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
        let path = path.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(GROUPS, flags, Mode::empty())?;
        if path.is_empty() {
            return Ok(root);
        }
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        Ok(openat2(root.as_fd(), path, flags, Mode::empty(), how)?)
    }
}

/// Looks at the process behind a pidfd. Procfs knows it by number only, so it must still live afterwards: then the
/// number was its own all the time.
pub(crate) fn inspect(pidfd: BorrowedFd<'_>) -> io::Result<Target> {
    let pid = pid_of(pidfd)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let cgroup = rustix::fs::open(format!("/proc/{pid}/ns/cgroup"), flags, Mode::empty())?;
    let map = read_short(&format!("/proc/{pid}/uid_map"))?;
    let host_root = host_root(&map).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    if ended(pidfd)? {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(Target { cgroup, host_root, pid, pidfd: pidfd.try_clone_to_owned()? })
}

fn pid_of(pidfd: BorrowedFd<'_>) -> io::Result<i32> {
    let info = read_short(&format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    pid.filter(|pid| *pid > 0).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}

fn read_short(path: &str) -> io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAP_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// The host's id for id 0, from lines of `inside host count`.
fn host_root(map: &str) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (inside, host) = (fields.next()?, fields.next()?);
        (inside == "0").then(|| host.parse().ok()).flatten()
    })
}

fn ended(pidfd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut fds = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    Ok(poll(&mut fds, Some(&Timespec::default()))? > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_of_a_map_is_found() {
        assert_eq!(host_root("         0     100000      65536\n"), Some(100_000));
        assert_eq!(host_root("         0          0 4294967295\n"), Some(0));
        assert_eq!(host_root("1 2 3\n0 7 1\n"), Some(7));
        assert_eq!(host_root(""), None);
    }

    #[test]
    fn a_live_process_is_inspected_and_a_dead_one_refused() {
        use rustix::process::{Pid, PidfdFlags, pidfd_open};
        let mut child = std::process::Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        assert!(inspect(pidfd.as_fd()).is_ok());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(inspect(pidfd.as_fd()).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
