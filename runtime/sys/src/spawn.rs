//! Turns a fresh child into another program with exactly the descriptors it shall have.

use std::convert::Infallible;
use std::ffi::{CStr, c_char};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Descriptors a program may be given, 0 to 15.
pub const TARGETS_MAX: usize = 16;
/// Where sources are put aside while the targets are filled.
const ASIDE: i32 = 64;

/// A program to become.
#[derive(Clone, Copy, Debug)]
pub struct Program<'a> {
    /// Absolute path.
    pub path: &'a CStr,
    /// Arguments, from `argv[0]`.
    pub args: &'a [&'a CStr],
    /// Environment, `NAME=value`.
    pub env: &'a [&'a CStr],
    /// `fds[n]` becomes descriptor `n`; everything else must be close-on-exec already.
    pub fds: &'a [BorrowedFd<'a>],
}

/// Replaces this process by `program`. For a child of [`crate::clone::spawn`]; signals are not touched here (see
/// [`crate::signals::reset`]).
///
/// # Errors
/// Returns only when it failed: `InvalidInput` with more than [`TARGETS_MAX`] descriptors, else what `dup` or
/// `execve` say. Low descriptors may have been replaced by then: all that is left to do is to exit.
pub fn exec(program: &Program<'_>) -> io::Result<Infallible> {
    if program.fds.len() > TARGETS_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut aside = [-1_i32; TARGETS_MAX];
    for (slot, fd) in aside.iter_mut().zip(program.fds) {
        // SAFETY: makes a new descriptor; nothing we own changes.
        *slot = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, ASIDE) };
        crate::checked((*slot).into())?;
    }
    for (target, source) in (0..).zip(&aside[..program.fds.len()]) {
        // SAFETY: replaces low descriptors of a process that has nothing left to do but execve or _exit, and all
        // sources are above the targets.
        let result = unsafe { libc::dup2(*source, target) };
        crate::checked(result.into())?;
    }
    let args = null_terminated(program.args);
    let env = null_terminated(program.env);
    // SAFETY: path and the texts behind both arrays are C strings that live until the call returns; both arrays
    // end with a null pointer.
    let result = unsafe { libc::execve(program.path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    crate::checked(result.into())?;
    Err(io::ErrorKind::Other.into())
}

fn null_terminated(texts: &[&CStr]) -> Vec<*const c_char> {
    texts.iter().map(|text| text.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
}
