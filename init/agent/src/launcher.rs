//! Calls to the launcher, and namespaces made ahead of containers.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_runtime::client::{LaunchError, Launcher, Slot};

use crate::slots::{RANGE, Ranges};

/// Slots kept ready: the next starts need not wait for namespaces.
const WARM: usize = 2;

/// A connection of its own for each call: the launcher may be started anew at any time, and a fresh connection never
/// leaves open what became of an earlier request.
pub(crate) fn connect() -> Result<Launcher, LaunchError> {
    Launcher::connect(Path::new(berth_control::LAUNCHER_SOCKET)).map_err(LaunchError::Connection)
}

/// A user namespace with its range of ids, and a network namespace owned by it.
#[derive(Debug)]
pub(crate) struct OwnedSlot {
    /// First host id.
    pub(crate) base: u32,
    /// The namespaces.
    pub(crate) slot: Slot,
}

/// Why there is no slot.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SlotError {
    /// Every range is in use.
    #[error("no range of ids is free")]
    Exhausted,
    /// The launcher could not make it.
    #[error("make namespaces")]
    Launcher(#[source] LaunchError),
}

/// Ready-made slots and the ranges in use.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slots {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    ranges: Ranges,
    ready: VecDeque<OwnedSlot>,
    filling: bool,
}

impl Slots {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot. Blocks on the launcher when none is ready.
    pub(crate) fn take(&self) -> Result<OwnedSlot, SlotError> {
        if let Some(slot) = self.lock().ready.pop_front() {
            return Ok(slot);
        }
        self.make()
    }

    fn make(&self) -> Result<OwnedSlot, SlotError> {
        let base = self.lock().ranges.allocate().ok_or(SlotError::Exhausted)?;
        match connect().and_then(|mut launcher| launcher.make_slot(base, RANGE)) {
            Ok(slot) => Ok(OwnedSlot { base, slot }),
            Err(error) => {
                self.release(base);
                Err(SlotError::Launcher(error))
            }
        }
    }

    /// Gives a range back once nothing runs in it any more.
    pub(crate) fn release(&self, base: u32) {
        self.lock().ranges.release(base);
    }

    /// The range of a container that outlived the agent.
    pub(crate) fn adopt(&self, base: u32) {
        self.lock().ranges.adopt(base);
    }

    /// Makes slots until enough are ready. Blocks; one caller works, others return at once.
    pub(crate) fn fill(&self) {
        {
            let mut inner = self.lock();
            if inner.filling {
                return;
            }
            inner.filling = true;
        }
        while self.lock().ready.len() < WARM {
            match self.make() {
                Ok(slot) => self.lock().ready.push_back(slot),
                Err(error) => {
                    crate::log::warning!("making a slot ahead failed: {}, continuing", crate::log::chain(&error));
                    break;
                }
            }
        }
        self.lock().filling = false;
    }
}
