//! `clone3` for a process with one thread: the child may run ordinary Rust.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::AssertUnwindSafe;

/// Exit code of a child whose closure panicked.
pub const PANICKED: i32 = 125;

/// Proof that the process had one thread when asked. Whoever holds it starts no thread.
#[derive(Clone, Copy, Debug)]
pub struct SingleThreaded(PhantomData<*const ()>);

impl SingleThreaded {
    /// Counts the threads of this process.
    ///
    /// # Errors
    /// `Unsupported` when there is more than one; what reading `/proc/self/status` says otherwise.
    pub fn check() -> io::Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let threads = status.lines().find_map(|line| line.strip_prefix("Threads:"));
        if threads.is_some_and(|count| count.trim() == "1") {
            Ok(Self(PhantomData))
        } else {
            Err(io::Error::new(io::ErrorKind::Unsupported, "the process has more than one thread"))
        }
    }
}

/// How the child differs from its maker.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'fd> {
    /// `CLONE_NEW*` flags.
    pub namespaces: u64,
    /// `CLONE_PARENT`: a child of this process's parent, which reaps it.
    pub sibling: bool,
    /// `CLONE_INTO_CGROUP`: the directory of a group of cgroup2.
    pub cgroup: Option<BorrowedFd<'fd>>,
}

/// A child: its pid as this process sees it, and its pidfd.
#[derive(Debug)]
pub struct Child {
    /// Pid in the maker's pid namespace.
    pub pid: i32,
    /// Its pidfd.
    pub pidfd: OwnedFd,
}

/// Makes a child that runs `run` and exits with its result; a panic exits with [`PANICKED`].
///
/// The child gets a copy of everything, as by `fork`: descriptors, memory, no other thread.
///
/// # Errors
/// What `clone3` says.
pub fn spawn(_proof: SingleThreaded, options: Options<'_>, run: impl FnOnce() -> i32) -> io::Result<Child> {
    let mut pidfd: RawFd = -1;
    let mut flags = options.namespaces | libc::CLONE_PIDFD as u64;
    let mut args = empty_args();
    if options.sibling {
        flags |= libc::CLONE_PARENT as u64;
    } else {
        args.exit_signal = libc::SIGCHLD as u64;
    }
    if let Some(group) = options.cgroup {
        flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(group.as_raw_fd().unsigned_abs());
    }
    args.flags = flags;
    args.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    // SAFETY: no CLONE_VM, so the child owns a copy of all memory and continues here like after fork; the token
    // says there is no other thread whose locks it could inherit. `args` and `pidfd` outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    let pid = crate::checked(result)?;
    if pid == 0 {
        let code = std::panic::catch_unwind(AssertUnwindSafe(run)).unwrap_or(PANICKED);
        crate::process::exit_now(code);
    }
    // SAFETY: the kernel stored a new descriptor here because of CLONE_PIDFD, and nobody else knows it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let pid = i32::try_from(pid).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok(Child { pid, pidfd })
}

/// `CLONE_INTO_CGROUP` (`linux/sched.h`); libc's constant does not fit its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

fn empty_args() -> libc::clone_args {
    // SAFETY: the struct consists of integers, for which all zeros is a value.
    unsafe { std::mem::zeroed() }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The test runner has threads of its own, so the token is made by hand; the children only compute.
    fn token() -> SingleThreaded {
        SingleThreaded(PhantomData)
    }

    fn wait(child: &Child) -> i32 {
        use rustix::process::{WaitId, WaitIdOptions, waitid};
        use std::os::fd::AsFd;
        let status = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED).unwrap().unwrap();
        status.exit_status().unwrap()
    }

    #[test]
    fn the_child_exits_with_what_the_closure_returns() {
        let child = spawn(token(), Options::default(), || 42).unwrap();
        assert_eq!(wait(&child), 42);
    }

    #[test]
    fn a_panicking_child_never_returns_into_its_makers_code() {
        std::panic::set_hook(Box::new(|_| {}));
        let child = spawn(token(), Options::default(), || panic!("in the child")).unwrap();
        assert_eq!(wait(&child), PANICKED);
    }

    #[test]
    fn a_process_with_threads_is_not_single_threaded() {
        let (send, receive) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || receive.recv());
        assert!(SingleThreaded::check().is_err());
        drop(send);
        thread.join().unwrap().unwrap_err();
    }
}
