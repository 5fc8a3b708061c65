//! The end and the surroundings of a process: exit, close-on-exec for all, session keyring.

use std::io;

/// `_exit`: no destructors, no `atexit`, no flushing.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: never returns and touches no memory.
    unsafe { libc::_exit(code) }
}

/// Marks every descriptor from `first` on close-on-exec.
///
/// # Errors
/// What `close_range` says.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: only flags of descriptors change; nobody relies on one of ours surviving an exec.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    crate::checked(result).map(drop)
}

/// Closes every descriptor from `first` on, for a process that keeps no owner of one: whatever Rust object
/// still names such a descriptor must never be dropped or used.
///
/// # Errors
/// What `close_range` says.
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: the caller goes on without descriptors (the built-in init, which only waits and signals) and ends
    // by `exit_now`, so no owner runs its destructor afterwards.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    crate::checked(result).map(drop)
}

/// Gives the process a new session keyring, so that it shares none with its maker.
///
/// # Errors
/// `ENOSYS` on kernels without keyrings; `EDQUOT` when the owner has too many.
pub fn new_session_keyring() -> io::Result<()> {
    // SAFETY: KEYCTL_JOIN_SESSION_KEYRING with a null name makes an anonymous keyring; no memory is passed.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, 0usize) };
    crate::checked(result).map(drop)
}
