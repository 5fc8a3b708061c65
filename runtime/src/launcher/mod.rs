//! The launcher: turns requests into running containers. One thread, restartable at any time.
//!
//! [`serve`] reads requests and answers them, `start` drives one start from plan to program, `slot` makes
//! namespaces ahead of time. A start is waited for in the same loop as everything else, so a container that is slow
//! to set up keeps nobody waiting.

mod serve;
mod slot;
mod start;
pub(crate) mod target;

use std::io;
use std::os::fd::BorrowedFd;

pub use serve::{ServeError, serve};
pub(crate) use slot::make_user;

/// What the launcher needs from the program around it.
pub trait Host {
    /// Tells init that `pid` belongs to `name`, before the process is let into its program.
    ///
    /// # Errors
    /// When init cannot be told; the start fails then.
    fn register(&mut self, name: &str, pid: i32, pidfd: BorrowedFd<'_>) -> io::Result<()>;

    /// Says something worth a line in the log.
    fn log(&mut self, line: &str);
}
