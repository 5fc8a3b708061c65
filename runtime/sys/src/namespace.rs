//! Questions about namespaces (`ioctl_ns(2)`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `_IO(0xb7, 1)`.
const NS_GET_USERNS: libc::c_ulong = 0xb701;

/// The user namespace that owns `namespace`.
///
/// # Errors
/// `EPERM` when the owner is outside the caller's user namespace; `ENOTTY` when the descriptor is no namespace.
pub fn owner(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: the request takes no argument and returns a descriptor.
    let result = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS as _) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor (close-on-exec) for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(result) })
}
