//! The built-in init of a container (`--init`): reaps what is orphaned, hands signals on, ends with its child.
//!
//! It is this very process, confined like the program and never replaced by a file of the image.

use berth_sys::process::{close_from, exit_now};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Exit code when the child can no longer be waited for.
const LOST: i32 = 255;

/// Blocks every signal, so that none is lost between making the child and waiting for signals.
pub(super) fn block_signals() -> nix::Result<()> {
    SigSet::all().thread_block()
}

/// Waits for `child` to end and ends with its exit code, or 128 and the signal that killed it.
pub(super) fn wait_for(child: i32) -> ! {
    // From here on nothing is read or written. The streams go too: whoever reads them sees the end of the program.
    let _ = close_from(0);
    let child = Pid::from_raw(child);
    let all = SigSet::all();
    loop {
        match all.wait() {
            Ok(Signal::SIGCHLD) => {
                if let Some(code) = reap(child) {
                    exit_now(code);
                }
            }
            // These stop a reader or writer of a terminal in the background, and that is not what is meant.
            Ok(Signal::SIGTTIN | Signal::SIGTTOU | Signal::SIGTSTP) => {}
            Ok(signal) => {
                // The child may have ended meanwhile; its SIGCHLD comes next.
                let _ = kill(child, signal);
            }
            Err(_) => exit_now(LOST),
        }
    }
}

/// Reaps all that ended; the code to exit with when `child` is among them.
fn reap(child: Pid) -> Option<i32> {
    let mut code = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == child => code = Some(status),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => code = Some(128 + signal as i32),
            Ok(WaitStatus::StillAlive) => return code,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return code.or(Some(LOST)),
        }
    }
}
