//! What the owner knows of one container beside its record.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use berth_control::Exit;
use berth_runtime::cgroup::Group;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};
use tokio::task::AbortHandle;

use super::view;
use crate::command::{Answer, Changed, Health, Id, View, WaitEnd, WaitFor};
use crate::logs::Log;
use crate::store::Record;

/// Where attached clients write.
pub(super) type Input = Option<Arc<AsyncFd<OwnedFd>>>;

/// A container.
pub(super) struct Container {
    /// What is on disk.
    pub(super) record: Record,
    /// What others see; made anew after every change.
    pub(super) view: Arc<View>,
    /// Its output.
    pub(super) log: Arc<Log>,
    /// Standard input or terminal of the run.
    pub(super) input: watch::Sender<Input>,
    /// The run.
    pub(super) live: Option<Live>,
    /// What of the last run is not gone yet.
    pub(super) leaving: Leaving,
    /// What follows once it is gone.
    pub(super) next: Next,
    /// An exit that came before its start was reported.
    pub(super) early: Option<Exit>,
    /// Wanted while it was starting: signal and timeout.
    pub(super) stop_after_start: Option<(i32, Option<Duration>)>,
    /// Those who wait for the outcome of a start.
    pub(super) starters: Vec<Answer<Changed>>,
    /// Those who wait for the end of the run.
    pub(super) stoppers: Vec<Answer<Changed>>,
    /// Those who wait for more.
    pub(super) waiters: Vec<(WaitFor, oneshot::Sender<WaitEnd>)>,
    /// Timer of a stop or a restart.
    pub(super) timer: Option<AbortHandle>,
    /// Outcome of its health check.
    pub(super) health: Option<Health>,
    /// Exec sessions that run.
    pub(super) execs: BTreeSet<Id>,
    /// Exit code told to those who wait for the removal.
    pub(super) removed_code: i64,
}

/// The processes of a run.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) pidfd: OwnedFd,
    pub(super) group: Group,
}

/// What is left of a run that ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Leaving {
    /// Cgroup, network, ids.
    pub(super) kernel: bool,
    /// Output not yet in the log.
    pub(super) output: bool,
}

impl Leaving {
    /// Nothing is left.
    pub(super) fn is_over(self) -> bool {
        !self.kernel && !self.output
    }
}

/// What follows the end of a run.
#[derive(Default)]
pub(super) enum Next {
    /// What the restart policy says.
    #[default]
    Policy,
    /// The wait of the restart policy is over.
    Due,
    /// A start.
    Start(Vec<Answer<()>>),
    /// Removal.
    Remove {
        /// With its anonymous volumes.
        volumes: bool,
        /// Who wants to know.
        answers: Vec<Answer<()>>,
    },
}

impl Container {
    /// A container that does not run.
    pub(super) fn new(record: Record, log: Arc<Log>) -> Self {
        let (input, _) = watch::channel(None);
        Self {
            view: Arc::new(view::of(&record, &BTreeSet::new(), None)),
            record,
            log,
            input,
            live: None,
            leaving: Leaving::default(),
            next: Next::Policy,
            early: None,
            stop_after_start: None,
            starters: Vec::new(),
            stoppers: Vec::new(),
            waiters: Vec::new(),
            timer: None,
            health: None,
            execs: BTreeSet::new(),
            removed_code: 0,
        }
    }

    /// Shows others what changed.
    pub(super) fn show(&mut self) {
        self.view = Arc::new(view::of(&self.record, &self.execs, self.health.as_ref()));
    }

    /// Forgets a timer.
    pub(super) fn disarm(&mut self) {
        if let Some(timer) = self.timer.take() {
            timer.abort();
        }
    }

    /// Answers those who wait for one of `what`.
    pub(super) fn tell_waiters(&mut self, what: &[WaitFor], end: &WaitEnd) {
        for (until, waiter) in std::mem::take(&mut self.waiters) {
            if what.contains(&until) {
                // Who waited may have gone.
                let _ = waiter.send(end.clone());
            } else if !waiter.is_closed() {
                self.waiters.push((until, waiter));
            }
        }
    }
}
