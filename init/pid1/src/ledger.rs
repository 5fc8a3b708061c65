//! Which processes are registered, and every exit until the agent has acknowledged it.
//!
//! Exits carry a sequence number, so that a connection sends each once and needs no queue of its own.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::os::fd::OwnedFd;

use berth_control::{Exit, Name};
use berth_sys::signals::Ended;

/// Most registered processes and most kept exits, each. About 300 bytes an entry. Unit: entries.
pub(crate) const ENTRIES_MAX: usize = 16_384;

/// A registration that is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RegisterError {
    /// Too many.
    #[error("more than {ENTRIES_MAX} processes")]
    Full,
    /// Another process runs under the name.
    #[error("the name belongs to running process {0}")]
    Taken(i32),
}

/// A registered process that runs.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
}

/// Registered processes and unacknowledged exits.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    running: BTreeMap<Name, Running>,
    by_pid: HashMap<i32, Name>,
    exits: BTreeMap<u64, Exit>,
    exit_numbers: HashMap<Name, u64>,
    next_number: u64,
    dropped: u64,
}

impl Ledger {
    /// Notes that `pid` runs as `name`. A kept exit of the same name is forgotten: the agent has moved on.
    pub(crate) fn register(&mut self, name: Name, pid: i32, pidfd: OwnedFd) -> Result<(), RegisterError> {
        match self.running.get(&name) {
            Some(running) if running.pid == pid => return Ok(()),
            Some(running) => return Err(RegisterError::Taken(running.pid)),
            None if self.running.len() >= ENTRIES_MAX => return Err(RegisterError::Full),
            None => {}
        }
        // A process has one name: the later one counts.
        if let Some(old) = self.by_pid.insert(pid, name.clone()) {
            self.running.remove(&old);
        }
        self.acknowledge(&name);
        self.running.insert(name, Running { pid, pidfd });
        Ok(())
    }

    /// Notes an end; gives the name when the process was registered. The exit is then kept until acknowledged. When
    /// the ledger is full the oldest exit goes: that agent has not acknowledged 16,384 exits and will find the
    /// container gone.
    pub(crate) fn ended(&mut self, ended: Ended, at_unix_ns: i64) -> Option<&Exit> {
        let name = self.by_pid.remove(&ended.pid)?;
        self.running.remove(&name);
        if self.exits.len() >= ENTRIES_MAX
            && let Some((_, oldest)) = self.exits.pop_first()
        {
            self.exit_numbers.remove(&oldest.name);
            self.dropped = self.dropped.saturating_add(1);
        }
        let number = self.next_number;
        self.next_number = self.next_number.saturating_add(1);
        self.exit_numbers.insert(name.clone(), number);
        let Ended { pid, code, signal } = ended;
        Some(self.exits.entry(number).or_insert(Exit { name, pid, code, signal, at_unix_ns }))
    }

    /// Forgets the exit of `name`.
    pub(crate) fn acknowledge(&mut self, name: &Name) {
        if let Some(number) = self.exit_numbers.remove(name) {
            self.exits.remove(&number);
        }
    }

    /// The first kept exit with a number of at least `number`, and its number.
    pub(crate) fn exit_from(&self, number: u64) -> Option<(u64, &Exit)> {
        self.exits.range(number..).next().map(|(number, exit)| (*number, exit))
    }

    /// The running process after `name` in order of names; the first for `None`.
    pub(crate) fn running_after(&self, name: Option<&Name>) -> Option<(&Name, &Running)> {
        let start = name.map_or(Bound::Unbounded, Bound::Excluded);
        self.running.range((start, Bound::Unbounded)).next()
    }

    /// How many registered processes run.
    pub(crate) fn running_count(&self) -> usize {
        self.running.len()
    }

    /// How many exits were forgotten because nobody acknowledged them.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn fd() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    fn ended(pid: i32, code: i32) -> Ended {
        Ended { pid, code, signal: 0 }
    }

    fn exits(ledger: &Ledger) -> Vec<(String, i32)> {
        let mut found = vec![];
        let mut number = 0;
        while let Some((at, exit)) = ledger.exit_from(number) {
            found.push((exit.name.to_string(), exit.code));
            number = at + 1;
        }
        found
    }

    #[test]
    fn an_exit_is_kept_until_acknowledged() {
        let mut ledger = Ledger::default();
        ledger.register(name("c/1"), 7, fd()).unwrap();
        assert_eq!(ledger.running_count(), 1);
        assert!(ledger.ended(ended(8, 1), 5).is_none(), "nobody registered it");
        assert_eq!(ledger.ended(ended(7, 42), 5).unwrap().at_unix_ns, 5);
        assert_eq!(ledger.running_count(), 0);
        assert_eq!(exits(&ledger), [("c/1".to_owned(), 42)]);
        assert!(ledger.ended(ended(7, 1), 6).is_none(), "the pid was used again by a stranger");
        ledger.acknowledge(&name("c/1"));
        ledger.acknowledge(&name("c/1"));
        assert!(exits(&ledger).is_empty());
    }

    #[test]
    fn exits_come_in_the_order_they_happened() {
        let mut ledger = Ledger::default();
        for pid in 1..=5 {
            ledger.register(name(&format!("c/{}", 9 - pid)), pid, fd()).unwrap();
        }
        for pid in [3, 1, 5] {
            ledger.ended(ended(pid, pid), 0);
        }
        assert_eq!(exits(&ledger).iter().map(|(_, code)| *code).collect::<Vec<_>>(), [3, 1, 5]);
        assert_eq!(ledger.running_after(None).unwrap().0.as_str(), "c/5");
        assert_eq!(ledger.running_after(Some(&name("c/5"))).unwrap().0.as_str(), "c/7");
        assert!(ledger.running_after(Some(&name("c/7"))).is_none());
    }

    #[test]
    fn a_running_name_is_not_taken_over() {
        let mut ledger = Ledger::default();
        ledger.register(name("c/1"), 7, fd()).unwrap();
        assert_eq!(ledger.register(name("c/1"), 8, fd()), Err(RegisterError::Taken(7)));
        assert_eq!(ledger.register(name("c/1"), 7, fd()), Ok(()));
        ledger.ended(ended(7, 3), 0);
        assert_eq!(ledger.register(name("c/1"), 8, fd()), Ok(()));
        assert!(exits(&ledger).is_empty());
    }

    #[test]
    fn both_lists_are_bounded() {
        let mut ledger = Ledger::default();
        let most = i32::try_from(ENTRIES_MAX).unwrap();
        for pid in 1..=most {
            let (_, fd) = (0, std::fs::File::open("/dev/null"));
            let Ok(fd) = fd else { return };
            ledger.register(name(&format!("c/{pid}")), pid, fd.into()).unwrap();
            ledger.ended(ended(pid, 0), 0);
        }
        assert_eq!(ledger.dropped(), 0);
        ledger.register(name("new"), most + 1, fd()).unwrap();
        ledger.ended(ended(most + 1, 0), 0);
        assert_eq!(ledger.dropped(), 1);
        assert_eq!(ledger.exits.len(), ENTRIES_MAX);
        assert_eq!(ledger.exit_numbers.len(), ENTRIES_MAX);
        assert_eq!(exits(&ledger)[0].0, "c/2");
    }
}
