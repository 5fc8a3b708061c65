//! Exits, and what follows: records, clean-up, restarts, removal.

use std::time::Duration;

use berth_control::Exit;

use super::container::{Leaving, Next};
use super::{Happening, Owner, save};
use crate::command::{Changed, Ended, Refusal, WaitEnd, WaitFor};
use crate::logs::now_ns;
use crate::phase::{Event, Phase};
use crate::restart;
use crate::start;
use crate::store::Status;

impl Owner {
    /// The first process of run `run` ended.
    pub(super) fn container_exited(&mut self, id: &str, run: u32, exit: &Exit) {
        let Some(container) = self.containers.get_mut(id) else {
            return self.machinery.init.acknowledge(&exit.name);
        };
        if container.record.attempt.as_ref().is_some_and(|attempt| attempt.run == run) {
            container.early = Some(exit.clone());
            return;
        }
        match container.record.running() {
            Some(running) if running.attempt.run == run => self.ended(id, exit),
            // Told before, or of a start that was undone.
            _ => self.machinery.init.acknowledge(&exit.name),
        }
    }

    fn ended(&mut self, id: &str, exit: &Exit) {
        let machinery = self.machinery.clone();
        let going_down = self.going_down.is_some();
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(run) = container.record.running().cloned() else { return };
        container.disarm();
        let live = container.live.take();
        let oom_killed =
            live.as_ref().is_some_and(|live| live.group.oom_kills().is_ok_and(|kills| kills > 0));
        let ended = Ended {
            code: i64::from(exit.code),
            oom_killed,
            started_ns: run.started_ns,
            finished_ns: exit.at_unix_ns,
            error: String::new(),
        };
        let record = &mut container.record;
        let wanted = matches!(container.next, Next::Policy) && !record.stopped_by_user && !going_down;
        let again = wanted && record.policy().again(ended.code, record.restart_count);
        record.interrupted = going_down && !record.stopped_by_user;
        let Some(_) = record.phase().after(Event::Exit { again }) else { return };
        record.status = Status::Exited(ended.clone());
        if again {
            let up = Duration::from_nanos(
                u64::try_from(ended.finished_ns.saturating_sub(ended.started_ns)).unwrap_or(0),
            );
            let last = run.attempt.wait_ms.map(Duration::from_millis);
            container.record.restart_count = container.record.restart_count.saturating_add(1);
            self.back_off(id, last, up);
        }
        let Some(container) = self.containers.get_mut(id) else { return };
        container.show();
        match save(&machinery, &container.record) {
            Ok(()) => machinery.init.acknowledge(&exit.name),
            // Not acknowledged: init tells it again to the next agent, which may have a disk that works.
            Err(error) => crate::log::error!("exit of {}: {error}", container.record.name),
        }
        crate::log::info!("container {} ended with code {}", container.record.name, ended.code);
        container.input.send_replace(None);
        container.leaving = Leaving { kernel: true, ..container.leaving };
        let stoppers = std::mem::take(&mut container.stoppers);
        let end = WaitEnd { code: ended.code, error: None };
        // An end that a restart follows is one as well: clients of the reference engine wait for it this way.
        container.tell_waiters(&[WaitFor::NextExit, WaitFor::NotRunning], &end);
        if oom_killed {
            self.announce(id, "oom", &[]);
        }
        let up_s = ended.finished_ns.saturating_sub(ended.started_ns) / 1_000_000_000;
        self.announce(id, "die", &[("exitCode", ended.code.to_string()), ("execDuration", up_s.to_string())]);
        self.tell_volumes(id, "unmount");
        if !stoppers.is_empty() {
            self.announce(id, "stop", &[]);
        }
        for stopper in stoppers {
            let _ = stopper.send(Ok(Changed::Yes));
        }
        let (id, run_number, base) = (id.to_owned(), run.attempt.run, run.attempt.base);
        self.spawn(move || {
            start::clean(&machinery, &id, live.map(|live| live.group), base);
            Happening::Cleaned(id, run_number)
        });
        self.check_shutdown();
    }

    /// Waits before the next start; the record says so.
    pub(super) fn back_off(&mut self, id: &str, last: Option<Duration>, up: Duration) {
        let wait = restart::backoff(last, up);
        let Some(container) = self.containers.get_mut(id) else { return };
        let last = super::view::last_end(&container.record);
        let wait_ns = i64::try_from(wait.as_nanos()).unwrap_or(i64::MAX);
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let next_ns = now_ns().saturating_add(wait_ns);
        container.record.status = Status::Restarting { last, next_ns, wait_ms };
        container.show();
        let run = container.record.run;
        let timer = self.later(wait, Happening::Due(id.to_owned(), run));
        if let Some(container) = self.containers.get_mut(id) {
            container.timer = Some(timer);
        }
    }

    pub(super) fn due(&mut self, id: &str, run: u32) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if container.record.run != run || container.record.phase() != Phase::Restarting {
            return;
        }
        container.timer = None;
        if matches!(container.next, Next::Policy) {
            container.next = Next::Due;
        }
        self.settle(id);
    }

    pub(super) fn cleaned(&mut self, id: &str, run: u32) {
        if let Some(container) = self.containers.get_mut(id).filter(|container| container.record.run == run) {
            container.leaving.kernel = false;
            self.settle(id);
        }
    }

    pub(super) fn drained(&mut self, id: &str, run: u32) {
        let machinery = self.machinery.clone();
        start::forget_streams(&machinery.init, id, run);
        if let Some(container) = self.containers.get_mut(id).filter(|container| container.record.run == run) {
            container.leaving.output = false;
            container.log.end(run);
            self.settle(id);
        }
    }

    /// Goes on once nothing of the last run is left.
    pub(super) fn settle(&mut self, id: &str) {
        let going_down = self.going_down.is_some();
        let Some(container) = self.containers.get_mut(id) else { return };
        let phase = container.record.phase();
        if phase.is_live() || phase == Phase::Removing || !container.leaving.is_over() {
            return;
        }
        match std::mem::take(&mut container.next) {
            Next::Remove { volumes, answers } => {
                container.next = Next::Remove { volumes, answers };
                self.remove_now(id);
            }
            Next::Start(answers) if !going_down => self.start_again(id, answers),
            Next::Start(answers) => {
                for answer in answers {
                    let _ = answer.send(Err(Refusal::Unavailable("the machine is going down".to_owned())));
                }
            }
            Next::Due => {
                if let Status::Restarting { wait_ms, .. } = container.record.status {
                    self.begin(id, Some(Duration::from_millis(wait_ms)));
                }
            }
            Next::Policy => {
                let finished = matches!(phase, Phase::Exited) || container.failed_to_start();
                if container.record.host_config.auto_remove && finished && !going_down {
                    self.remove_now(id);
                }
            }
        }
    }

    fn start_again(&mut self, id: &str, answers: Vec<crate::command::Answer<()>>) {
        if let Some(container) = self.containers.get_mut(id) {
            for answer in answers {
                let (sender, receiver) = tokio::sync::oneshot::channel();
                container.starters.push(sender);
                tokio::spawn(async move {
                    let gone = || Err(Refusal::Unavailable("the agent is shutting down".to_owned()));
                    let result = receiver.await.unwrap_or_else(|_| gone());
                    drop(answer.send(result.map(|_| ())));
                });
            }
            container.record.stopped_by_user = false;
        }
        self.begin(id, None);
        self.announce(id, "restart", &[]);
    }
}

impl super::container::Container {
    /// A first start was tried and failed.
    fn failed_to_start(&self) -> bool {
        matches!(&self.record.status, Status::Created { error: Some(_), .. })
    }
}
