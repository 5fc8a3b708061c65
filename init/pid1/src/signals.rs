//! Signals as events: all are blocked and read from a descriptor, so nothing ever interrupts init.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use berth_control::PowerAction;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Children ended.
    Reap,
    /// The machine shall go down.
    Power(PowerAction),
}

/// The descriptor.
#[derive(Debug)]
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// Blocks all signals and opens the descriptor. Ctrl-alt-del comes as SIGINT from now on.
    pub(crate) fn open() -> io::Result<Self> {
        let all = SigSet::all();
        all.thread_block()?;
        if let Err(error) = rustix::system::reboot(rustix::system::RebootCommand::CadOff) {
            crate::kmsg::warn!("ctrl-alt-del reboots at once: {error}, continuing");
        }
        Ok(Self(SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?))
    }

    /// The next one that means something; `None` when none is left.
    pub(crate) fn next(&self) -> Option<Asked> {
        loop {
            let signal = self.0.read_signal().ok()??;
            let signal =
                i32::try_from(signal.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
            if let Some(asked) = signal.and_then(meaning) {
                return Some(asked);
            }
        }
    }
}

/// SIGINT is ctrl-alt-del; SIGPWR a power supply that gives up; the others are by custom.
fn meaning(signal: Signal) -> Option<Asked> {
    match signal {
        Signal::SIGCHLD => Some(Asked::Reap),
        Signal::SIGINT => Some(Asked::Power(PowerAction::Reboot)),
        Signal::SIGTERM | Signal::SIGPWR | Signal::SIGUSR2 => Some(Asked::Power(PowerAction::Off)),
        _ => None,
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
