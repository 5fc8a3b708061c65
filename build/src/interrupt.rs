//! Ctrl-c as a message: the command powers the guest down in order instead of dying under it.

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use std::sync::mpsc::{self, Receiver};
use std::thread;

/// From now on SIGINT and SIGTERM come as messages. Must be called while the process has one thread; programs started
/// later get an empty mask from the standard library.
pub(crate) fn watch() -> Result<Receiver<()>> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    signals.thread_block().context("blocking SIGINT")?;
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || while signals.wait().is_ok() && sender.send(()).is_ok() {});
    Ok(receiver)
}
