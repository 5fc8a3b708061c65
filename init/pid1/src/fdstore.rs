//! Descriptors kept for the agent over its restarts.
//!
//! init never looks at them: a dead container's pipe still holds its last log lines, so a hang-up is no reason to
//! close. Only the agent removes.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::os::fd::OwnedFd;

use berth_control::{FDS_MAX, Name};

/// Most names; a container uses one or two. Unit: names.
pub(crate) const NAMES_MAX: usize = 16_384;
/// Most descriptors in all, far below init's `RLIMIT_NOFILE`. Unit: descriptors.
pub(crate) const TOTAL_MAX: usize = 65_536;

/// The store would grow beyond a limit; what was stored before stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StoreError {
    /// Too many for one name.
    #[error("more than {FDS_MAX} descriptors for one name")]
    PerName,
    /// Too many names.
    #[error("more than {NAMES_MAX} names")]
    Names,
    /// Too many descriptors.
    #[error("more than {TOTAL_MAX} descriptors")]
    Total,
}

/// Descriptors by name.
#[derive(Debug, Default)]
pub(crate) struct FdStore {
    entries: BTreeMap<Name, Vec<OwnedFd>>,
    total: usize,
}

impl FdStore {
    /// Keeps `fds` under `name` in place of what was there.
    pub(crate) fn store(&mut self, name: Name, fds: Vec<OwnedFd>) -> Result<(), StoreError> {
        if fds.len() > FDS_MAX {
            return Err(StoreError::PerName);
        }
        let old = self.entries.get(&name).map(Vec::len);
        if old.is_none() && self.entries.len() >= NAMES_MAX {
            return Err(StoreError::Names);
        }
        let total = self.total.saturating_sub(old.unwrap_or(0)).saturating_add(fds.len());
        if total > TOTAL_MAX {
            return Err(StoreError::Total);
        }
        self.total = total;
        self.entries.insert(name, fds);
        Ok(())
    }

    /// Closes what is stored under `name`.
    pub(crate) fn remove(&mut self, name: &Name) {
        if let Some(fds) = self.entries.remove(name) {
            self.total = self.total.saturating_sub(fds.len());
        }
    }

    /// The entry after `name` in order of names; the first for `None`.
    pub(crate) fn after(&self, name: Option<&Name>) -> Option<(&Name, &[OwnedFd])> {
        let start = name.map_or(Bound::Unbounded, Bound::Excluded);
        let (name, fds) = self.entries.range((start, Bound::Unbounded)).next()?;
        Some((name, fds.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe() -> (OwnedFd, OwnedFd) {
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
    }

    fn null(count: usize) -> Vec<OwnedFd> {
        (0..count).map(|_| std::fs::File::open("/dev/null").unwrap().into()).collect()
    }

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn is_open(write: &OwnedFd) -> bool {
        // SIGPIPE is ignored by Rust's runtime.
        rustix::io::write(write, b"x").is_ok()
    }

    #[test]
    fn a_new_store_replaces_and_closes_the_old() {
        let mut store = FdStore::default();
        let (first, first_write) = pipe();
        let (second, second_write) = pipe();
        store.store(name("log"), vec![first]).unwrap();
        store.store(name("log"), vec![second]).unwrap();
        assert!(!is_open(&first_write));
        assert!(is_open(&second_write));
        store.remove(&name("log"));
        assert!(!is_open(&second_write));
        store.remove(&name("log"));
    }

    #[test]
    fn the_walk_visits_every_name_once() {
        let mut store = FdStore::default();
        for text in ["b", "a", "c/1"] {
            store.store(name(text), null(2)).unwrap();
        }
        let mut seen = vec![];
        let mut last = None;
        while let Some((name, fds)) = store.after(last.as_ref()) {
            assert_eq!(fds.len(), 2);
            seen.push(name.to_string());
            last = Some(name.clone());
        }
        assert_eq!(seen, ["a", "b", "c/1"]);
    }

    #[test]
    fn quotas_hold_and_a_refusal_keeps_the_old() {
        let mut store = FdStore::default();
        assert_eq!(store.store(name("a"), null(FDS_MAX + 1)), Err(StoreError::PerName));
        store.store(name("a"), null(FDS_MAX)).unwrap();
        store.total = TOTAL_MAX;
        assert_eq!(store.store(name("b"), null(1)), Err(StoreError::Total));
        assert_eq!(store.store(name("a"), null(1)), Ok(()));
        assert_eq!(store.total, TOTAL_MAX - FDS_MAX + 1);
        for number in 1..NAMES_MAX {
            store.store(name(&number.to_string()), vec![]).unwrap();
        }
        assert_eq!(store.store(name("new"), vec![]), Err(StoreError::Names));
        assert_eq!(store.store(name("a"), vec![]), Ok(()));
        store.remove(&name("a"));
        assert_eq!(store.store(name("new"), vec![]), Ok(()));
    }
}
