//! What the agent is still to be told, without a queue: positions in what init keeps anyway.
//!
//! A slow agent costs nothing, a dead one is told everything again after its next Hello. Order of an answer:
//! stored descriptors, running processes, exits, services, Ready; then exits and services as they happen.

use std::io;
use std::os::fd::OwnedFd;

use berth_control::{FromInit, Name, PowerAction, ServiceHealth};

use crate::fdstore::FdStore;
use crate::ledger::Ledger;

/// Where the walk through what is kept stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    /// The agent has not said Hello.
    Silent,
    /// Stored descriptors, after this name.
    Stored(Option<Name>),
    /// Running processes, after this name.
    Running(Option<Name>),
    /// Exits and services by their own positions, then Ready when it is due.
    News,
}

/// What a connection still has to be sent.
#[derive(Debug)]
pub(crate) struct Outbox {
    stage: Stage,
    next_exit: u64,
    next_service: usize,
    ready_due: bool,
    shutdown: Option<(PowerAction, u32)>,
}

/// Everything a message may be made from.
#[derive(Clone, Copy)]
pub(crate) struct Sources<'a> {
    pub(crate) store: &'a FdStore,
    pub(crate) ledger: &'a Ledger,
    pub(crate) services: &'a [ServiceHealth],
}

/// How an [`Outbox`] moves on when a message was sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Shutdown,
    Stored(Name),
    Running(Name),
    Exit(u64),
    Service(usize),
    Ready,
}

impl Outbox {
    pub(crate) fn new() -> Self {
        Self { stage: Stage::Silent, next_exit: 0, next_service: 0, ready_due: false, shutdown: None }
    }

    /// The agent said Hello: from the start.
    pub(crate) fn hello(&mut self) {
        self.stage = Stage::Stored(None);
        self.next_exit = 0;
        self.next_service = 0;
        self.ready_due = true;
    }

    /// A service started or ended: all are told again.
    pub(crate) fn services_changed(&mut self) {
        self.next_service = 0;
    }

    /// The machine is to go down. Sent before everything else, even before Hello.
    pub(crate) fn shutdown(&mut self, action: PowerAction, deadline_s: u32) {
        self.shutdown = Some((action, deadline_s));
    }

    /// The next message and the step to be given to [`Self::sent`] once it is sent. `None`: nothing to say. An
    /// error means a descriptor could not be duplicated.
    pub(crate) fn next(&self, from: Sources<'_>) -> io::Result<Option<(FromInit, Step)>> {
        if let Some((action, deadline_s)) = self.shutdown {
            return Ok(Some((FromInit::Shutdown { action, deadline_s }, Step::Shutdown)));
        }
        if self.stage == Stage::Silent {
            return Ok(None);
        }
        if let Stage::Stored(last) = &self.stage
            && let Some((name, fds)) = from.store.after(last.as_ref())
        {
            let fds = fds.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>()?;
            return Ok(Some((FromInit::Stored { name: name.clone(), fds }, Step::Stored(name.clone()))));
        }
        let running = match &self.stage {
            Stage::Running(last) => from.ledger.running_after(last.as_ref()),
            Stage::Stored(_) => from.ledger.running_after(None),
            Stage::Silent | Stage::News => None,
        };
        if let Some((name, running)) = running {
            let message =
                FromInit::Running { name: name.clone(), pid: running.pid, pidfd: running.pidfd.try_clone()? };
            return Ok(Some((message, Step::Running(name.clone()))));
        }
        Ok(self.news(from))
    }

    fn news(&self, from: Sources<'_>) -> Option<(FromInit, Step)> {
        if let Some((number, exit)) = from.ledger.exit_from(self.next_exit) {
            return Some((FromInit::Exited(exit.clone()), Step::Exit(number)));
        }
        if let Some(health) = from.services.get(self.next_service) {
            return Some((FromInit::Service(health.clone()), Step::Service(self.next_service)));
        }
        self.ready_due.then_some((FromInit::Ready, Step::Ready))
    }

    /// A message was sent.
    pub(crate) fn sent(&mut self, step: Step) {
        match step {
            Step::Shutdown => self.shutdown = None,
            Step::Stored(name) => self.stage = Stage::Stored(Some(name)),
            Step::Running(name) => self.stage = Stage::Running(Some(name)),
            Step::Exit(number) => {
                self.stage = Stage::News;
                self.next_exit = number.saturating_add(1);
            }
            Step::Service(index) => {
                self.stage = Stage::News;
                self.next_service = index.saturating_add(1);
            }
            Step::Ready => {
                self.stage = Stage::News;
                self.ready_due = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_sys::signals::Ended;

    fn fd() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn label(message: &FromInit) -> String {
        match message {
            FromInit::Stored { name, fds } => format!("stored {name} {}", fds.len()),
            FromInit::Running { name, pid, .. } => format!("running {name} {pid}"),
            FromInit::Exited(exit) => format!("exited {} {}", exit.name, exit.code),
            FromInit::Service(health) => format!("service {}", health.service),
            FromInit::Ready => "ready".into(),
            FromInit::Shutdown { .. } => "shutdown".into(),
        }
    }

    fn all(outbox: &mut Outbox, from: Sources<'_>) -> Vec<String> {
        let mut told = vec![];
        while let Some((message, step)) = outbox.next(from).unwrap() {
            told.push(label(&message));
            outbox.sent(step);
        }
        told
    }

    fn end(ledger: &mut Ledger, pid: i32) {
        ledger.ended(Ended { pid, code: pid, signal: 0 }, 0);
    }

    #[test]
    fn hello_is_answered_whole_and_news_follow_once() {
        let services =
            ["agent", "launcher"].map(|service| ServiceHealth { service: service.into(), pid: 1, starts: 1 });
        let mut store = FdStore::default();
        store.store(name("log"), vec![fd(), fd()]).unwrap();
        store.store(name("api"), vec![fd()]).unwrap();
        let mut ledger = Ledger::default();
        for pid in 1..=4 {
            ledger.register(name(&format!("c/{pid}")), pid, fd()).unwrap();
        }
        end(&mut ledger, 3);
        end(&mut ledger, 1);
        let mut outbox = Outbox::new();
        macro_rules! all {
            () => {
                all(&mut outbox, Sources { store: &store, ledger: &ledger, services: &services })
            };
        }
        assert!(all!().is_empty(), "nothing before Hello");
        outbox.hello();
        let answer = [
            "stored api 1",
            "stored log 2",
            "running c/2 2",
            "running c/4 4",
            "exited c/3 3",
            "exited c/1 1",
            "service agent",
            "service launcher",
            "ready",
        ];
        assert_eq!(all!(), answer);
        assert!(all!().is_empty());
        end(&mut ledger, 2);
        assert_eq!(all!(), ["exited c/2 2"]);
        outbox.services_changed();
        assert_eq!(all!(), ["service agent", "service launcher"]);
        ledger.acknowledge(&name("c/3"));
        outbox.hello();
        outbox.shutdown(PowerAction::Off, 90);
        let again = [
            "shutdown",
            "stored api 1",
            "stored log 2",
            "running c/4 4",
            "exited c/1 1",
            "exited c/2 2",
            "service agent",
            "service launcher",
            "ready",
        ];
        assert_eq!(all!(), again);
    }

    #[test]
    fn an_exit_in_the_middle_of_the_answer_is_told_once() {
        let store = FdStore::default();
        let mut ledger = Ledger::default();
        for pid in 1..=3 {
            ledger.register(name(&format!("c/{pid}")), pid, fd()).unwrap();
        }
        let mut outbox = Outbox::new();
        outbox.hello();
        let (message, step) =
            outbox.next(Sources { store: &store, ledger: &ledger, services: &[] }).unwrap().unwrap();
        assert_eq!(label(&message), "running c/1 1");
        outbox.sent(step);
        end(&mut ledger, 1);
        end(&mut ledger, 2);
        let rest = all(&mut outbox, Sources { store: &store, ledger: &ledger, services: &[] });
        assert_eq!(rest, ["running c/3 3", "exited c/1 1", "exited c/2 2", "ready"]);
    }
}
