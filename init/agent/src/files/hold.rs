//! A stopped container's writable layer has one user at a time: who copies its files, or the start of the container.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::io::Errno;

/// Between two tries to get a layer that somebody uses.
const PAUSE: Duration = Duration::from_millis(20);

/// Takes the writable layer in `dir` for as long as the descriptor lives, waiting no longer than `patience`.
///
/// The lock goes with its holder, so nothing is left of it when a process is killed.
pub(crate) fn take(dir: &Path, patience: Duration) -> io::Result<OwnedFd> {
    let fd = open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let deadline = Instant::now() + patience;
    loop {
        match flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(fd),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(PAUSE),
            Err(Errno::WOULDBLOCK) => {
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, "its files are being copied"));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = take(dir.path(), Duration::ZERO).unwrap();
        assert_eq!(take(dir.path(), Duration::ZERO).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        drop(first);
        assert!(take(dir.path(), Duration::ZERO).is_ok());
    }
}
