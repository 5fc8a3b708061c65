//! What PID 1 needs of signals and children beyond rustix and nix: which child ended (nix gives an error for
//! real-time signals, rustix no pid), and the dispositions a new program expects.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// A child that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its pid in this process's pid namespace.
    pub pid: i32,
    /// Exit code, or `128 + signal` when a signal ended it.
    pub code: i32,
    /// The signal that ended it (real-time signals too), 0 when it exited by itself.
    pub signal: i32,
}

/// A child that has ended, left as a zombie so that its pid stays taken; `None` when no child has ended.
///
/// # Errors
/// `ECHILD` when there are no children.
pub fn peek_ended() -> io::Result<Option<Ended>> {
    wait(libc::P_ALL, 0, libc::WNOWAIT)
}

/// Reaps the child `pid`; `None` when it has not ended.
///
/// # Errors
/// `ECHILD` when it is not a child; `InvalidInput` when `pid` is not positive.
pub fn reap(pid: i32) -> io::Result<Option<Ended>> {
    let id = libc::id_t::try_from(pid).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    if id == 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    wait(libc::P_PID, id, 0)
}

fn wait(kind: libc::idtype_t, id: libc::id_t, flags: libc::c_int) -> io::Result<Option<Ended>> {
    // SAFETY: siginfo_t consists of integers and pointers, for which all zeros is a value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // __WALL: children by CLONE_PARENT may have been made without SIGCHLD.
    let flags = flags | libc::WEXITED | libc::WNOHANG | libc::__WALL;
    // SAFETY: `info` is valid for writes and outlives the call.
    let result = unsafe { libc::waitid(kind, id, &raw mut info, flags) };
    crate::checked(result.into())?;
    // SAFETY: waitid filled the fields of SIGCHLD, or left the zeros with WNOHANG and nothing ended.
    let pid = unsafe { info.si_pid() };
    if pid == 0 {
        return Ok(None);
    }
    // SAFETY: as for si_pid.
    let status = unsafe { info.si_status() };
    let (code, signal) = match info.si_code {
        libc::CLD_EXITED => (status, 0),
        _ => (status.saturating_add(128), status),
    };
    Ok(Some(Ended { pid, code, signal }))
}

/// Sends a signal by number, real-time ones included, to the process behind a pidfd.
///
/// # Errors
/// `ESRCH` when it has ended, `EINVAL` when there is no such signal.
pub fn send(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: no memory is passed; what a signal does to another process breaks nothing here.
    let result = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<()>(), 0)
    };
    crate::checked(result).map(drop)
}

/// Sets every signal to its default action and unblocks all: Rust ignores SIGPIPE, and PID 1 blocks everything.
///
/// For a fresh child before `execve`, which keeps ignored signals and the mask.
///
/// # Errors
/// What `sigprocmask` says.
pub fn reset() -> io::Result<()> {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL runs no code of ours. Signals that cannot be changed give an error, which is right.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: sigset_t consists of integers, for which all zeros is a value.
    let mut none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `none` is valid for writes.
    unsafe { libc::sigemptyset(&raw mut none) };
    // SAFETY: `none` is initialised and the old mask is not asked for.
    let result = unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) };
    crate::checked(result.into()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[expect(clippy::zombie_processes, reason = "reaped below, by what is tested")]
    fn end_of(mut command: Command) -> Ended {
        let child = command.spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        loop {
            if let Some(ended) = reap(pid).unwrap() {
                return ended;
            }
            std::thread::yield_now();
        }
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn exit_codes_and_signals_are_told_apart() {
        for (script, code, signal) in
            [("exit 0", 0, 0), ("exit 137", 137, 0), ("kill -9 $$", 137, 9), ("kill -40 $$", 168, 40)]
        {
            let ended = end_of(shell(script));
            assert_eq!((ended.code, ended.signal), (code, signal), "{script}");
        }
    }

    #[test]
    fn who_is_no_child_is_an_error() {
        assert_eq!(reap(1).unwrap_err().raw_os_error(), Some(libc::ECHILD));
        assert_eq!(reap(0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(reap(-1).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
