//! A running guest: its console, QMP, forwarded ports and API. Killed when dropped.

use crate::accel::Accel;
use crate::artifacts::Artifacts;
use crate::console::{Console, Line};
use crate::docker::Docker;
use crate::machine::API_PORT;
use crate::pki::Pki;
use crate::qmp::Qmp;
use anyhow::{Context, Result, bail};
use berth_api::client::{Client, ClientError};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

/// QEMU makes its QMP socket before the guest runs; more than this means it failed.
const QMP_DEADLINE: Duration = Duration::from_secs(20);
/// Between two looks at something outside that gives no event.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// A QEMU process just started.
pub(crate) struct Started {
    child: Child,
    console: Console,
    qmp: Qmp,
    forwards: BTreeMap<u16, u16>,
    began: Instant,
}

impl Started {
    pub(crate) fn spawn(
        mut command: Command,
        forwards: BTreeMap<u16, u16>,
        qmp: &Path,
        artifacts: &Artifacts,
        echo: bool,
    ) -> Result<Self> {
        let began = Instant::now();
        // Ctrl-c on the terminal is for whoever started the guest, not for QEMU, which would end at once.
        let mut child = command.process_group(0).spawn().context("starting qemu-system-x86_64")?;
        let stdout = child.stdout.take().context("QEMU's console is not piped")?;
        let console = Console::read(stdout, &artifacts.path("console.log"), echo)?;
        let qmp = loop {
            if qmp.exists()
                && let Ok(qmp) = Qmp::connect(qmp)
            {
                break qmp;
            }
            if let Some(status) = child.try_wait()? {
                let log = fs::read_to_string(artifacts.path("qemu.log")).unwrap_or_default();
                bail!("QEMU ended with {status}: {}", log.trim());
            }
            if began.elapsed() > QMP_DEADLINE {
                child.kill()?;
                child.wait()?;
                bail!("QEMU opened no QMP socket within {QMP_DEADLINE:?}");
            }
            thread::sleep(Duration::from_millis(10));
        };
        Ok(Self { child, console, qmp, forwards, began })
    }
}

/// A guest.
pub struct Guest {
    started: Started,
    artifacts: Artifacts,
    runtime: tokio::runtime::Runtime,
    client: Option<Client>,
    accel: Accel,
    _sockets: tempfile::TempDir,
}

impl Guest {
    pub(crate) fn new(
        started: Started,
        artifacts: Artifacts,
        sockets: tempfile::TempDir,
        accel: Accel,
    ) -> Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting tokio")?;
        Ok(Self { started, artifacts, runtime, client: None, accel, _sockets: sockets })
    }

    /// The console.
    pub fn console(&self) -> &Console {
        &self.started.console
    }

    /// When QEMU was started.
    pub fn began(&self) -> Instant {
        self.started.began
    }

    /// KVM or TCG.
    pub fn accel(&self) -> Accel {
        self.accel
    }

    /// A deadline that a machine with KVM keeps, made longer for TCG.
    pub fn within(&self, seconds: u32) -> Duration {
        Duration::from_secs(u64::from(seconds * self.accel.patience()))
    }

    /// The case's folder.
    pub fn artifacts(&self) -> &Artifacts {
        &self.artifacts
    }

    /// The case passed: nothing of it needs keeping.
    pub fn passed(&mut self) {
        self.artifacts.passed();
    }

    /// Waits for a console line, from the beginning on.
    pub fn wait_for_line(&self, needle: &str, within: Duration) -> Result<Line> {
        self.started.console.wait_for(0, needle, within)
    }

    /// Where a forwarded port is reached from here.
    pub fn address(&self, guest_port: u16) -> Result<SocketAddr> {
        let port = self
            .started
            .forwards
            .get(&guest_port)
            .with_context(|| format!("port {guest_port} is not forwarded"))?;
        Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, *port)))
    }

    /// Opens the API with these certificates and waits until it answers.
    pub fn connect_api(&mut self, pki: &Pki, within: Duration) -> Result<()> {
        let client = self.client_with(pki)?;
        let deadline = Instant::now() + within;
        loop {
            let asked =
                self.runtime.block_on(client.with_deadline(Duration::from_secs(5)).get_bytes("/_ping"));
            let Err(error) = asked else { break };
            if let Some(status) = self.started.child.try_wait()? {
                bail!("QEMU ended with {status} before the API answered");
            }
            if let Some(panic) = self.console().find("Kernel panic - not syncing") {
                bail!("the API never answered: {}", panic.text);
            }
            if Instant::now() > deadline {
                return Err(error).with_context(|| format!("the API does not answer within {within:?}"));
            }
            thread::sleep(LOOK_PAUSE);
        }
        self.client = Some(client);
        Ok(())
    }

    /// A client with certificates of the caller's choice, not checked against anything.
    pub fn client_with(&self, pki: &Pki) -> Result<Client> {
        let address = self.address(API_PORT)?;
        Ok(Client::tls(address, "localhost", &pki.authority, &pki.client.certificate, &pki.client.key)?)
    }

    /// Runs a request of the API client to its end.
    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// The API client.
    pub fn client(&self) -> Result<&Client> {
        self.client.as_ref().context("the API is not connected yet")
    }

    /// `GET` of JSON.
    pub fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T> {
        Ok(self.block_on(self.client()?.get(path))?)
    }

    /// `POST` of JSON, answered by JSON or nothing.
    pub fn post(&self, path: &str, body: &Value) -> Result<Value> {
        Ok(self.block_on(self.client()?.post(path, body))?)
    }

    /// `POST` that must be refused; gives status and message.
    pub fn refused(&self, path: &str, body: &Value) -> Result<(u16, String)> {
        let answer: Result<Value, ClientError> = self.block_on(self.client()?.post(path, body));
        match answer {
            Err(ClientError::Refused { status, message, .. }) => Ok((status, message)),
            Err(error) => Err(error.into()),
            Ok(value) => bail!("POST {path} was not refused: {value}"),
        }
    }

    /// Asks again and again until `wanted` gives a value.
    pub fn until<T>(
        &self,
        what: &str,
        within: Duration,
        mut wanted: impl FnMut(&Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let deadline = Instant::now() + within;
        loop {
            let last = match wanted(self) {
                Ok(Some(value)) => return Ok(value),
                Ok(None) => String::from("not yet"),
                Err(error) => format!("{error:#}"),
            };
            if Instant::now() > deadline {
                bail!("{what} did not come within {within:?}: {last}");
            }
            thread::sleep(LOOK_PAUSE);
        }
    }

    /// The docker command line for this guest.
    pub fn docker(&self, pki: &Pki) -> Result<Docker> {
        let folder = self.artifacts.path("pki");
        pki.save(&folder)?;
        Ok(Docker::new(self.address(API_PORT)?.port(), &folder))
    }

    /// Runs a QMP command.
    pub fn qmp(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        self.started.qmp.execute(command, arguments)
    }

    /// Presses the power button.
    pub fn press_power_button(&mut self) -> Result<()> {
        self.qmp("system_powerdown", &json!({})).map(drop)
    }

    /// Presses the power button and waits until the machine is off.
    pub fn power_down(&mut self, within: Duration) -> Result<()> {
        self.press_power_button()?;
        self.wait_off(within)
    }

    /// Presses the reset button: what power loss looks like to the guest.
    pub fn reset(&mut self) -> Result<()> {
        self.qmp("system_reset", &json!({})).map(drop)
    }

    /// Waits until the machine has switched itself off.
    pub fn wait_off(&mut self, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.started.child.try_wait()? {
                return off(status);
            }
            if Instant::now() > deadline {
                let lines = self.console().lines();
                let last: Vec<_> = lines.iter().rev().take(15).map(|line| line.text.clone()).collect();
                bail!(
                    "the machine is not off within {within:?}; last lines, newest first:\n  {}",
                    last.join("\n  ")
                );
            }
            thread::sleep(LOOK_PAUSE);
        }
    }

    /// Pulls the plug.
    pub fn kill(&mut self) -> Result<()> {
        self.started.child.kill().context("killing QEMU")?;
        self.started.child.wait().map(drop).context("waiting for QEMU")
    }

    /// True while QEMU runs.
    pub fn running(&mut self) -> bool {
        matches!(self.started.child.try_wait(), Ok(None))
    }
}

fn off(status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("QEMU ended with {status}");
    }
    Ok(())
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may be gone already, which is as good.
        let _ = self.kill();
    }
}
