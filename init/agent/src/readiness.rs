//! Descriptors that tasks wait for.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Makes a descriptor nonblocking and waits for it with the runtime in force.
pub(crate) fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    // Unsound only for types whose descriptor may change or close under way; an `OwnedFd` never does.
    #[allow(deprecated, reason = "the replacement needs unsafe code")]
    AsyncFd::new(fd)
}
