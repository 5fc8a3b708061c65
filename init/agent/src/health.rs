//! Health checks: a command run inside the container again and again, and what its outcomes mean.
//!
//! The rules are pure ([`Settings`], [`after`]); one task per container with a check runs it through the owner like any
//! exec session, so a check that hangs holds up nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_api::docker::containers::ContainerConfig;
use berth_api::docker::exec::ExecBody;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::command::{ExecCreate, ExecStart, Handle, Health, Id, Refusal, State};
use crate::logs::now_ns;

/// Docker's defaults.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u32 = 3;
/// Probes remembered.
const LOG_MAX: usize = 5;
/// Output of a probe that is remembered, bytes.
const OUTPUT_MAX: usize = 4096;

/// A check, decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    command: Vec<String>,
    interval: Duration,
    timeout: Duration,
    start_period: Duration,
    start_interval: Duration,
    retries: u32,
}

impl Settings {
    /// The check of a container; none when it has none.
    pub(crate) fn of(config: &ContainerConfig) -> Option<Self> {
        let check = config.healthcheck.as_ref()?;
        let (kind, rest) = check.test.as_ref()?.split_first()?;
        let command = match kind.as_str() {
            "CMD" => rest.to_vec(),
            "CMD-SHELL" => {
                let shell = config.shell.clone().filter(|shell| !shell.is_empty());
                let mut command = shell.unwrap_or_else(|| vec!["/bin/sh".to_owned(), "-c".to_owned()]);
                command.extend(rest.first().cloned());
                command
            }
            _ => return None,
        };
        let time = |ns: i64, default: Duration| match u64::try_from(ns) {
            Ok(ns) if ns > 0 => Duration::from_nanos(ns),
            _ => default,
        };
        let retries = u32::try_from(check.retries).ok().filter(|retries| *retries > 0);
        (!command.is_empty()).then(|| Self {
            command,
            interval: time(check.interval, INTERVAL),
            timeout: time(check.timeout, TIMEOUT),
            start_period: time(check.start_period, Duration::ZERO),
            start_interval: time(check.start_interval, START_INTERVAL),
            retries: retries.unwrap_or(RETRIES),
        })
    }

    fn pause(&self, health: &Health, up: Duration) -> Duration {
        if health.status == "starting" && up < self.start_period {
            self.start_interval
        } else {
            self.interval
        }
    }
}

/// Health of a container that just started.
pub(crate) fn starting() -> Health {
    Health { status: "starting".to_owned(), failing_streak: 0, log: Vec::new() }
}

/// One run of the check.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Probe {
    start_ns: i64,
    end_ns: i64,
    code: i64,
    output: String,
}

/// Health after a probe, `up` after the container's start. Failures within the start period do not count until the
/// first success.
fn after(mut health: Health, probe: Probe, settings: &Settings, up: Duration) -> Health {
    let ok = probe.code == 0;
    health.log.push((probe.start_ns, probe.end_ns, probe.code, probe.output));
    let surplus = health.log.len().saturating_sub(LOG_MAX);
    health.log.drain(..surplus);
    if ok {
        health.failing_streak = 0;
        "healthy".clone_into(&mut health.status);
    } else if health.status != "starting" || up >= settings.start_period {
        health.failing_streak = health.failing_streak.saturating_add(1);
        if health.failing_streak >= settings.retries {
            "unhealthy".clone_into(&mut health.status);
        }
    }
    health
}

/// Checks every running container that wants it, for ever.
pub(crate) async fn run(owner: Handle) {
    let mut events = owner.events();
    let mut watched: BTreeMap<Id, AbortHandle> = BTreeMap::new();
    watch_all(&owner, &mut watched).await;
    loop {
        match events.recv().await {
            Ok(event) if event.kind == "container" && event.action == "start" => {
                watch(&owner, &mut watched, &event.id).await;
            }
            Ok(event) if event.kind == "container" && event.action == "die" => {
                if let Some(task) = watched.remove(&event.id) {
                    task.abort();
                }
            }
            Ok(_) => {}
            Err(RecvError::Lagged(_)) => watch_all(&owner, &mut watched).await,
            Err(RecvError::Closed) => return,
        }
    }
}

async fn watch_all(owner: &Handle, watched: &mut BTreeMap<Id, AbortHandle>) {
    for view in owner.list().await.unwrap_or_default() {
        if matches!(view.state, State::Running { .. }) && !watched.contains_key(&view.id) {
            watch(owner, watched, &view.id).await;
        }
    }
}

async fn watch(owner: &Handle, watched: &mut BTreeMap<Id, AbortHandle>, id: &str) {
    let Ok(view) = owner.view(id).await else { return };
    let Some(settings) = Settings::of(&view.config) else { return };
    let (owner, id) = (owner.clone(), view.id.clone());
    let task = tokio::spawn(check(owner, id.clone(), settings)).abort_handle();
    if let Some(former) = watched.insert(id, task) {
        former.abort();
    }
}

async fn check(owner: Handle, id: Id, settings: Settings) {
    let started = Instant::now();
    let mut health = starting();
    loop {
        sleep(settings.pause(&health, started.elapsed())).await;
        match probe(&owner, &id, &settings).await {
            Ok(probe) => health = after(health, probe, &settings, started.elapsed()),
            // Paused: it is asked again later.
            Err(Refusal::Conflict(text)) if text.contains("is paused") => continue,
            Err(_) => return,
        }
        if owner.health(&id, health.clone()).await.is_err() {
            return;
        }
    }
}

async fn probe(owner: &Handle, id: &str, settings: &Settings) -> Result<Probe, Refusal> {
    let start_ns = now_ns();
    let docker = ExecBody {
        attach_stdout: true,
        attach_stderr: true,
        cmd: Some(settings.command.clone()),
        ..ExecBody::default()
    };
    let exec = owner.exec_create(id, ExecCreate { docker }).await?;
    let done = |code, output: &[u8]| Probe {
        start_ns,
        end_ns: now_ns(),
        code,
        output: String::from_utf8_lossy(output).into_owned(),
    };
    let start = ExecStart { detach: false, tty: false, size: None };
    let mut output = Vec::new();
    let attachment = match owner.exec_start(&exec, start).await {
        Ok(attachment) => attachment,
        // The command cannot be run: that is a failed check.
        Err(refusal @ (Refusal::Invalid(_) | Refusal::Failed(_))) => {
            return Ok(done(-1, refusal.to_string().as_bytes()));
        }
        Err(refusal) => return Err(refusal),
    };
    let reading = async {
        let Some(mut attachment) = attachment else { return };
        while let Some(chunk) = attachment.output.recv().await {
            let room = OUTPUT_MAX.saturating_sub(output.len()).min(chunk.bytes.len());
            output.extend_from_slice(chunk.bytes.get(..room).unwrap_or_default());
        }
    };
    if timeout(settings.timeout, reading).await.is_err() {
        owner.exec_kill(&exec).await?;
        let text = format!("Health check exceeded timeout ({:?})", settings.timeout);
        return Ok(done(-1, text.as_bytes()));
    }
    let code = owner.exec_view(&exec).await?.code.unwrap_or(-1);
    Ok(done(code, &output))
}

#[cfg(test)]
mod tests {
    use berth_api::docker::containers::HealthConfig;

    use super::*;

    fn settings(test: &[&str], check: &HealthConfig) -> Option<Settings> {
        let test = Some(test.iter().map(|word| (*word).to_owned()).collect());
        let healthcheck = Some(HealthConfig { test, ..check.clone() });
        Settings::of(&ContainerConfig { healthcheck, ..ContainerConfig::default() })
    }

    #[test]
    fn commands_are_read_in_every_form() {
        let command =
            |test: &[&str]| settings(test, &HealthConfig::default()).map(|settings| settings.command);
        assert_eq!(command(&["CMD", "a", "b"]), Some(vec!["a".to_owned(), "b".to_owned()]));
        let shell = ["/bin/sh", "-c", "a && b"].map(str::to_owned).to_vec();
        assert_eq!(command(&["CMD-SHELL", "a && b"]), Some(shell));
        for none in [&["NONE"][..], &[], &["CMD"]] {
            assert_eq!(command(none), None);
        }
    }

    #[test]
    fn it_takes_retries_in_a_row_to_be_unhealthy_and_one_success_to_be_healthy() {
        let check = HealthConfig { retries: 2, start_period: 10_000_000_000, ..HealthConfig::default() };
        let settings = settings(&["CMD", "x"], &check).expect("a check");
        let mut health = starting();
        let mut seen = Vec::new();
        for (code, up_s) in [(1, 1), (1, 2), (1, 3), (0, 4), (1, 5), (1, 6), (0, 7), (1, 20), (1, 21)] {
            let probe = Probe { start_ns: 0, end_ns: 0, code, output: String::new() };
            health = after(health, probe, &settings, Duration::from_secs(up_s));
            seen.push(health.status.clone());
        }
        let expected = [
            "starting",
            "starting",
            "starting",
            "healthy",
            "healthy",
            "unhealthy",
            "healthy",
            "healthy",
            "unhealthy",
        ];
        assert_eq!(seen, expected);
        assert_eq!(health.log.len(), LOG_MAX);
    }
}
