//! Starting and stopping.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use berth_runtime::signal;
use rustix::process::{Signal, pidfd_send_signal};
use tokio::io::unix::AsyncFd;

use super::container::{Container, Leaving, Live, Next};
use super::{Happening, Owner, save};
use crate::command::{Answer, Changed, Health, Id, Refusal, WaitEnd, WaitFor};
use crate::health;
use crate::logs::{Source, now_ns};
use crate::phase::{Event, Phase};
use crate::start::{self, Ends, Joined, Launched, StartError};
use crate::store::{Attempt, RunRecord, Status};

/// Docker's time between stop signal and SIGKILL.
const STOP_TIMEOUT_S: i64 = 10;
const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;

impl Owner {
    /// A user's start.
    pub(super) fn start(&mut self, id: &str, answer: Answer<Changed>) {
        let going_down = self.going_down.is_some();
        let container = match self.get(id) {
            Ok(container) => container,
            Err(error) => return drop(answer.send(Err(error))),
        };
        let id = container.record.id.clone();
        let refusal = match container.record.phase() {
            _ if going_down => Refusal::Unavailable("the machine is going down".to_owned()),
            Phase::Running => return drop(answer.send(Ok(Changed::No))),
            Phase::Paused => {
                Refusal::Conflict("cannot start a paused container, try unpause instead".to_owned())
            }
            Phase::Removing => {
                Refusal::Conflict("container is marked for removal and cannot be started".to_owned())
            }
            Phase::Starting => return container.starters.push(answer),
            Phase::Created | Phase::Exited | Phase::Restarting => {
                container.starters.push(answer);
                container.record.stopped_by_user = false;
                container.record.restart_count = 0;
                if container.leaving.is_over() {
                    self.begin(&id, None);
                } else if matches!(container.next, Next::Policy | Next::Due) {
                    container.next = Next::Start(Vec::new());
                }
                return;
            }
        };
        drop(answer.send(Err(refusal)));
    }

    /// Begins a run. `wait` is the back-off that led here, none for a user's start.
    pub(super) fn begin(&mut self, id: &str, wait: Option<Duration>) {
        let joined = self.joined(id);
        let machinery = self.machinery.clone();
        let boot = self.boot.clone();
        let Some(container) = self.containers.get_mut(id) else { return };
        container.disarm();
        let event = if wait.is_some() { Event::Due } else { Event::Start };
        let Some(Phase::Starting) = container.record.phase().after(event) else { return };
        let run = container.record.run.saturating_add(1);
        let wait_ms = wait.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        let attempt = Attempt { run, boot, base: None, wait_ms };
        container.record.run = run;
        container.record.attempt = Some(attempt.clone());
        container.record.interrupted = false;
        container.log.begin(run);
        let prepared = match joined {
            Err(error) => Err(error),
            // The record of the run that follows is the durable one.
            Ok(joined) => machinery
                .store
                .note(&container.record)
                .map(|()| joined)
                .map_err(|error| StartError::failed(crate::log::chain(&error))),
        };
        let joined = match prepared {
            Ok(joined) => joined,
            Err(error) => return self.launched(id, run, Err(error)),
        };
        let record = container.record.clone();
        self.spawn_networked(move || {
            let launched = start::start(&machinery, &record, &attempt, joined.as_ref());
            Happening::Launched(record.id, run, launched.map(Box::new))
        });
    }

    /// The container whose network this one joins.
    fn joined(&self, id: &str) -> Result<Option<Joined>, StartError> {
        let mode = self.containers.get(id).map(|container| container.record.host_config.network_mode.clone());
        let mode = mode.unwrap_or_default();
        let Some(other) = mode.strip_prefix("container:") else { return Ok(None) };
        let other = self.find(other).map_err(|error| StartError::failed(error.to_string()))?;
        let running = other.record.running().zip(other.live.as_ref());
        let (run, live) = running.ok_or_else(|| {
            StartError::failed(format!("cannot join network of a non running container: {}", other.record.id))
        })?;
        let pidfd = live.pidfd.try_clone().map_err(|error| StartError::failed(error.to_string()))?;
        Ok(Some(Joined { pidfd, pid: run.pid, id: other.record.id.clone() }))
    }

    /// A start is over.
    pub(super) fn launched(&mut self, id: &str, run: u32, result: Result<Launched, StartError>) {
        match result {
            Ok(launched) => self.runs(id, run, launched),
            Err(error) => self.failed(id, run, &error),
        }
    }

    fn runs(&mut self, id: &str, run: u32, launched: Launched) {
        let machinery = self.machinery.clone();
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(Phase::Running) = container.record.phase().after(Event::Started) else { return };
        let Some(mut attempt) = container.record.attempt.take() else { return };
        attempt.base = launched.base;
        container.record.status = Status::Running(RunRecord {
            attempt,
            pid: launched.pid,
            started_ns: now_ns(),
            paused: false,
            endpoints: launched.endpoints.into_iter().collect(),
        });
        container.leaving = Leaving { kernel: true, output: true };
        container.live = Some(Live { pidfd: launched.pidfd, group: launched.group });
        container.health = health::Settings::of(&container.record.config).map(|_| health::starting());
        container.show();
        if let Err(error) = save(&machinery, &container.record) {
            crate::log::warning!("{}: {error}, continuing", container.record.name);
        }
        let starters = std::mem::take(&mut container.starters);
        let name = container.record.name.clone();
        self.copy_output(id, run, launched.ends);
        crate::log::info!("container {name} started, pid {}", launched.pid);
        self.tell_volumes(id, "mount");
        self.announce(id, "start", &[]);
        for starter in starters {
            let _ = starter.send(Ok(Changed::Yes));
        }
        self.catch_up(id);
    }

    /// What was asked, or happened, while the container was starting.
    fn catch_up(&mut self, id: &str) {
        let going_down = self.going_down.is_some();
        let Some(container) = self.containers.get_mut(id) else { return };
        if let Some(exit) = container.early.take() {
            return self.exited(&exit);
        }
        if let Some((number, timeout)) = container.stop_after_start.take() {
            self.signal_and_wait(id, number, timeout);
        } else if going_down {
            let (number, timeout) = stop_request(container, None, None);
            self.signal_and_wait(id, number, timeout);
        }
    }

    fn failed(&mut self, id: &str, run: u32, error: &StartError) {
        let machinery = self.machinery.clone();
        let Some(container) = self.containers.get_mut(id) else { return };
        let first = matches!(container.record.status, Status::Created { .. });
        if container.record.phase().after(Event::Failed { first }).is_none() {
            return;
        }
        let name = container.record.name.clone();
        crate::log::error!("container {name} not started: {}", error.text);
        let attempt = container.record.attempt.take();
        if let Some(exit) = container.early.take() {
            machinery.init.acknowledge(&exit.name);
        }
        container.log.end(run);
        container.stop_after_start = None;
        let retry = attempt.and_then(|attempt| attempt.wait_ms).map(Duration::from_millis);
        container.failed_status(error);
        let again = retry.filter(|_| !container.record.stopped_by_user);
        match again {
            // Docker gives up here; a container that shall always run is worth another try.
            Some(wait) => self.back_off(id, Some(wait), Duration::ZERO),
            None => container.show(),
        }
        let Some(container) = self.containers.get_mut(id) else { return };
        if let Err(error) = save(&machinery, &container.record) {
            crate::log::warning!("{name}: {error}, continuing");
        }
        for starter in std::mem::take(&mut container.starters) {
            let _ = starter.send(Err(error.refusal()));
        }
        for stopper in std::mem::take(&mut container.stoppers) {
            let _ = stopper.send(Ok(Changed::Yes));
        }
        let end = WaitEnd { code: error.code, error: Some(error.text.clone()) };
        if again.is_none() {
            container.tell_waiters(&[WaitFor::NotRunning, WaitFor::NextExit], &end);
        }
        self.announce(id, "die", &[("exitCode", error.code.to_string())]);
        self.settle(id);
    }

    /// Copies a run's output into its log and opens its input to attached clients.
    pub(super) fn copy_output(&mut self, id: &str, run: u32, ends: Ends) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let (source, input) = match ends {
            Ends::Pipes { out, err, input } => (Ok(Source::Pipes(out, err)), input.map(open_input)),
            Ends::Terminal(master) => match open_input(master) {
                Ok(master) => (Ok(Source::Terminal(master.clone())), Some(Ok(master))),
                Err(error) => (Err(error), None),
            },
        };
        match input.transpose() {
            Ok(input) => drop(container.input.send_replace(input)),
            Err(error) => crate::log::warning!("standard input: {error}, continuing"),
        }
        let drained = {
            let (happenings, id) = (self.happenings.clone(), id.to_owned());
            move || drop(tokio::spawn(async move { happenings.send(Happening::Drained(id, run)).await }))
        };
        match source {
            Ok(source) => self.copier.copy(source, container.log.clone(), drained),
            Err(error) => {
                crate::log::warning!("terminal: {error}, continuing");
                drained();
            }
        }
    }

    /// A user's stop.
    pub(super) fn stop(
        &mut self,
        id: &str,
        timeout_s: Option<i64>,
        signal: Option<&str>,
        answer: Answer<Changed>,
    ) {
        let machinery = self.machinery.clone();
        let container = match self.get(id) {
            Ok(container) => container,
            Err(error) => return drop(answer.send(Err(error))),
        };
        let id: Id = container.record.id.clone();
        match container.record.phase() {
            Phase::Created | Phase::Exited | Phase::Removing => drop(answer.send(Ok(Changed::No))),
            Phase::Restarting => {
                container.record.stopped_by_user = true;
                container.cancel_restart();
                let saved = save(&machinery, &container.record);
                let _ = answer.send(saved.map(|()| Changed::Yes));
                self.settle(&id);
            }
            Phase::Starting => {
                let request = stop_request(container, timeout_s, signal);
                container.record.stopped_by_user = true;
                container.stop_after_start = Some(request);
                container.stoppers.push(answer);
            }
            Phase::Running | Phase::Paused => {
                let (number, timeout) = stop_request(container, timeout_s, signal);
                container.record.stopped_by_user = true;
                if let Err(error) = save(&machinery, &container.record) {
                    return drop(answer.send(Err(error)));
                }
                container.stoppers.push(answer);
                self.signal_and_wait(&id, number, timeout);
            }
        }
    }

    /// Sends the stop signal, and SIGKILL when the time is over.
    pub(super) fn signal_and_wait(&mut self, id: &str, number: i32, timeout: Option<Duration>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(live) = &container.live else { return };
        if let Err(error) = send(live, number) {
            crate::log::warning!("{}: {error}, continuing", container.record.name);
        }
        // A frozen container cannot answer a signal.
        if let Err(error) = live.group.freeze(false) {
            crate::log::warning!("{}: {error}, continuing", container.record.name);
        }
        let run = container.record.run;
        container.disarm();
        if let Some(timeout) = timeout {
            let timer = self.later(timeout, Happening::StopTimeout(id.to_owned(), run));
            if let Some(container) = self.containers.get_mut(id) {
                container.timer = Some(timer);
            }
        }
        self.announce(id, "kill", &[("signal", number.to_string())]);
    }

    pub(super) fn stop_timeout(&mut self, id: &str, run: u32) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(live) = container.live.as_ref().filter(|_| container.record.run == run) else { return };
        if let Err(error) = live.group.kill() {
            crate::log::warning!("killing {}: {error}, continuing", container.record.name);
        }
        self.announce(id, "kill", &[("signal", SIGKILL.to_string())]);
    }

    /// A user's restart.
    pub(super) fn restart(
        &mut self,
        id: &str,
        timeout_s: Option<i64>,
        signal: Option<&str>,
        answer: Answer<()>,
    ) {
        let container = match self.get(id) {
            Ok(container) => container,
            Err(error) => return drop(answer.send(Err(error))),
        };
        let id: Id = container.record.id.clone();
        match container.record.phase() {
            Phase::Running | Phase::Paused => {
                let (number, timeout) = stop_request(container, timeout_s, signal);
                match &mut container.next {
                    Next::Start(answers) => answers.push(answer),
                    Next::Remove { .. } => {
                        let text = "container is marked for removal and cannot be started".to_owned();
                        return drop(answer.send(Err(Refusal::Conflict(text))));
                    }
                    next => *next = Next::Start(vec![answer]),
                }
                self.signal_and_wait(&id, number, timeout);
            }
            _ => {
                let (sender, receiver) = tokio::sync::oneshot::channel();
                self.start(&id, sender);
                tokio::spawn(async move {
                    let gone = || Err(Refusal::Unavailable("the agent is shutting down".to_owned()));
                    let result = receiver.await.unwrap_or_else(|_| gone());
                    drop(answer.send(result.map(|_| ())));
                });
            }
        }
    }

    pub(super) fn kill(&mut self, id: &str, text: &str) -> Result<(), Refusal> {
        let text = if text.is_empty() { "KILL" } else { text };
        let number =
            signal::parse(text).ok_or_else(|| Refusal::Invalid(format!("invalid signal: {text}")))?;
        let machinery = self.machinery.clone();
        let container = self.get(id)?;
        let name = container.record.name.clone();
        let stop_signal = stop_request(container, None, None).0;
        let Some(live) = &container.live else {
            let id = &container.record.id;
            return Err(Refusal::Conflict(format!(
                "cannot kill container: {name}: container {id} is not running"
            )));
        };
        if number == SIGKILL || number == stop_signal {
            container.record.stopped_by_user = true;
            save(&machinery, &container.record)?;
        }
        let sent = if number == SIGKILL { live.group.kill() } else { send(live, number) };
        sent.map_err(|error| Refusal::Failed(format!("cannot kill container: {name}: {error}")))?;
        let id = container.record.id.clone();
        self.announce(&id, "kill", &[("signal", number.to_string())]);
        Ok(())
    }

    /// Shows what a health check found.
    pub(super) fn health(&mut self, id: &str, health: Health) -> Result<(), Refusal> {
        let container = self.get(id)?;
        if container.live.is_none() {
            return Err(Refusal::Conflict(format!("container {id} is not running")));
        }
        let status = health.status.clone();
        let changed = container.health.as_ref().is_none_or(|former| former.status != status);
        container.health = Some(health);
        container.show();
        if changed {
            self.announce(id, &format!("health_status: {status}"), &[]);
        }
        Ok(())
    }

    pub(super) fn pause(&mut self, id: &str, freeze: bool) -> Result<(), Refusal> {
        let machinery = self.machinery.clone();
        let container = self.get(id)?;
        let id = container.record.id.clone();
        let event = if freeze { Event::Pause } else { Event::Thaw };
        let phase = container.record.phase();
        if phase.after(event).is_none() {
            return Err(Refusal::Conflict(match (phase, freeze) {
                (Phase::Paused, true) => format!("container {id} is already paused"),
                (Phase::Running, false) => format!("Container {id} is not paused"),
                _ => format!("container {id} is not running"),
            }));
        }
        let (Some(live), Status::Running(run)) = (&container.live, &mut container.record.status) else {
            return Err(Refusal::Conflict(format!("container {id} is not running")));
        };
        live.group.freeze(freeze).map_err(|error| Refusal::Failed(format!("cgroup: {error}")))?;
        run.paused = freeze;
        container.show();
        save(&machinery, &container.record)?;
        self.announce(&id, if freeze { "pause" } else { "unpause" }, &[]);
        Ok(())
    }
}

impl Container {
    /// The record's status after a start that failed.
    fn failed_status(&mut self, error: &StartError) {
        match &mut self.record.status {
            Status::Exited(ended) => {
                ended.error.clone_from(&error.text);
                ended.code = error.code;
            }
            Status::Restarting { last, .. } => {
                let mut ended = last.clone();
                ended.error.clone_from(&error.text);
                ended.code = error.code;
                self.record.status = Status::Exited(ended);
            }
            status => *status = Status::Created { error: Some(error.text.clone()), code: error.code },
        }
    }

    /// No further start is wanted.
    pub(super) fn cancel_restart(&mut self) {
        self.disarm();
        let allowed = self.record.phase().after(Event::Cancel).is_some();
        if let Status::Restarting { last, .. } = &self.record.status
            && allowed
        {
            self.record.status = Status::Exited(last.clone());
            let end = WaitEnd { code: super::view::last_end(&self.record).code, error: None };
            self.tell_waiters(&[WaitFor::NotRunning], &end);
        }
        self.show();
    }
}

/// Signal and time of a stop: as asked, else the container's, else Docker's. No time means for ever.
pub(super) fn stop_request(
    container: &Container,
    timeout_s: Option<i64>,
    signal: Option<&str>,
) -> (i32, Option<Duration>) {
    let config = &container.record.config;
    let number = signal.filter(|text| !text.is_empty()).and_then(signal::parse);
    let number = number.or_else(|| signal::parse(&config.stop_signal)).unwrap_or(SIGTERM);
    let seconds = timeout_s.or(config.stop_timeout).unwrap_or(STOP_TIMEOUT_S);
    (number, u64::try_from(seconds).ok().map(Duration::from_secs))
}

fn send(live: &Live, number: i32) -> std::io::Result<()> {
    let Some(signal) = Signal::from_named_raw(number) else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    match pidfd_send_signal(&live.pidfd, signal) {
        // It ended meanwhile, which is what most signals want.
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn open_input(fd: OwnedFd) -> std::io::Result<Arc<AsyncFd<OwnedFd>>> {
    Ok(Arc::new(crate::readiness::register(fd)?))
}
