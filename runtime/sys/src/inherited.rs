//! Descriptors a program is given at fixed numbers by whoever started it.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers taken so far, one bit each, so that none gets two owners.
static TAKEN: AtomicU64 = AtomicU64::new(0);

/// Takes descriptor `number` (3 to 63), once, and marks it close-on-exec. To be called at the start of `main`,
/// before anything else opens descriptors.
///
/// # Errors
/// `EBADF` when it is not open, was taken already or is out of range.
pub fn take(number: RawFd) -> io::Result<OwnedFd> {
    if !(3..64).contains(&number) || TAKEN.fetch_or(1 << number, Ordering::Relaxed) >> number & 1 == 1 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: changes a flag of a descriptor, which fails when it is not open.
    let result = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: open, inherited from the program that started this one, and the bit above says that no other caller
    // was given it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_streams_and_closed_descriptors_are_not_given_out() {
        for number in [-1, 0, 2, 63, 64] {
            assert!(take(number).is_err(), "{number}");
        }
    }
}
