//! The machine itself: its status, its names, its end.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use berth_api::host::{Config, Interface, Phase, Status, Unit};
use berth_control::PowerAction;
use berth_net::host::Status as NetworkStatus;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{mpsc, watch};

use crate::config::Loaded;
use crate::owner::Happening;
use crate::server::host::{Facts, Machine, Power};

/// Where state lives.
const STATE: &str = "/var";
/// Host name file and machine id's directory.
/// Init's phases of the boot.
const TIMELINE: &str = "/run/berth/boot-timeline";
const MACHINE_ID: &str = "/var/lib/berth/machine-id";

/// States of units by name, shared with those who change them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Board {
    units: Arc<Mutex<BTreeMap<String, Unit>>>,
    phases: Arc<Mutex<Vec<Phase>>>,
}

impl Board {
    /// Shows a unit's state.
    pub(crate) fn unit(&self, name: &str, state: &str, message: &str, container: Option<String>) {
        let unit =
            Unit { name: name.to_owned(), state: state.to_owned(), message: message.to_owned(), container };
        self.units.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), unit);
    }

    /// A phase of the boot was reached now.
    pub(crate) fn phase(&self, name: &str) {
        let phase = Phase { name: name.to_owned(), at_s: uptime_s(), idle_s: idle_s() };
        self.phases.lock().unwrap_or_else(PoisonError::into_inner).push(phase);
    }
}

/// What the host API is answered from.
pub(crate) struct Host {
    /// The machine file in force.
    pub(crate) config: Arc<Loaded>,
    /// Units and phases.
    pub(crate) board: Board,
    /// The network.
    pub(crate) network: watch::Receiver<NetworkStatus>,
    /// Where the machine's end is asked for.
    pub(crate) owner: mpsc::Sender<Happening>,
    /// Stable id of the machine.
    pub(crate) id: String,
}

impl Host {
    /// The phases that init reached, then the agent's.
    fn boot(&self) -> Vec<Phase> {
        let text = std::fs::read_to_string(TIMELINE).unwrap_or_default();
        let mut phases: Vec<Phase> = text.lines().filter_map(init_phase).collect();
        phases.extend(self.board.phases.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
        phases
    }
}

/// A line of init's timeline: nanoseconds, idle seconds, name.
fn init_phase(line: &str) -> Option<Phase> {
    let mut words = line.splitn(3, ' ');
    let at: u64 = words.next()?.parse().ok()?;
    let idle_s = words.next()?.parse().ok()?;
    let at_s = std::time::Duration::from_nanos(at).as_secs_f64();
    Some(Phase { name: words.next()?.to_owned(), at_s, idle_s })
}

impl Machine for Host {
    fn status(&self) -> Status {
        let memory = MemInfo::read();
        let state = rustix::fs::statvfs(STATE).ok();
        let network = self.network.borrow().clone();
        let bytes = |blocks: u64| state.as_ref().map_or(0, |state| blocks.saturating_mul(state.f_frsize));
        Status {
            name: self.config.machine.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            uptime_s: uptime_s(),
            memory_total_bytes: memory.total,
            memory_available_bytes: memory.available,
            agent_rss_bytes: rss("self"),
            init_rss_bytes: rss("1"),
            state_total_bytes: bytes(state.as_ref().map_or(0, |state| state.f_blocks)),
            state_free_bytes: bytes(state.as_ref().map_or(0, |state| state.f_bavail)),
            config_errors: self.config.error.iter().map(ToString::to_string).collect(),
            interfaces: network.interfaces.iter().map(interface).collect(),
            dns: network.dns.iter().map(ToString::to_string).collect(),
            units: self
                .board
                .units
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .values()
                .cloned()
                .collect(),
            boot: self.boot(),
        }
    }

    fn config(&self) -> Config {
        Config {
            source: self.config.source.clone(),
            text: without_keys(&self.config.text),
            errors: self.config.error.iter().map(ToString::to_string).collect(),
        }
    }

    fn power(&self, power: Power) {
        let action = match power {
            Power::Off => PowerAction::Off,
            Power::Reboot => PowerAction::Reboot,
        };
        let owner = self.owner.clone();
        tokio::spawn(async move { drop(owner.send(Happening::PowerWanted(action)).await) });
    }

    fn facts(&self) -> Facts {
        let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let pretty = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
        Facts {
            id: self.id.clone(),
            name: self.config.machine.name.clone(),
            insecure_registries: self.config.machine.registries.insecure.clone(),
            operating_system: pretty.unwrap_or("Berth").trim_matches('"').to_owned(),
        }
    }
}

fn interface(status: &berth_net::host::InterfaceStatus) -> Interface {
    Interface {
        name: status.name.clone(),
        mac: status.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        addresses: status.addresses.iter().map(|(address, _)| address.to_string()).collect(),
        gateway: status.gateways.first().map(ToString::to_string),
        up: status.carrier,
    }
}

/// The text without what is between the lines of a private key.
fn without_keys(text: &str) -> String {
    let mut inside = false;
    let mut kept = String::new();
    for line in text.lines() {
        let (begin, end) =
            (line.contains("-----BEGIN") && line.contains("PRIVATE KEY"), line.contains("-----END"));
        if begin {
            kept.push_str("(private key left out)\n");
            inside = true;
        }
        if !inside {
            kept.push_str(line);
            kept.push('\n');
        }
        if end && inside {
            // What closes the TOML string stays.
            let rest = line.rsplit("-----").next().unwrap_or_default();
            kept.push_str(rest);
            kept.push('\n');
            inside = false;
        }
    }
    kept
}

struct MemInfo {
    total: u64,
    available: u64,
}

impl MemInfo {
    fn read() -> Self {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let value = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            kib.unwrap_or(0).saturating_mul(1024)
        };
        Self { total: value("MemTotal:"), available: value("MemAvailable:") }
    }
}

/// Resident memory of a process in bytes, 0 when it cannot be read.
fn rss(process: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

fn uptime_s() -> f64 {
    let now = clock_gettime(ClockId::Boottime);
    let whole = std::time::Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    );
    whole.as_secs_f64()
}

/// The second number of `/proc/uptime`.
fn idle_s() -> f64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    text.split_ascii_whitespace().nth(1).and_then(|idle| idle.parse().ok()).unwrap_or(0.0)
}

/// The kernel's id of this boot.
pub(crate) fn boot_id() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// The machine's id: made once, kept on the state disk.
pub(crate) fn machine_id() -> String {
    let path = Path::new(MACHINE_ID);
    if let Ok(text) = std::fs::read_to_string(path)
        && !text.trim().is_empty()
    {
        return text.trim().to_owned();
    }
    let id = crate::id::random().unwrap_or_default();
    let id = id.get(..32).unwrap_or_default().to_owned();
    if let Err(error) = crate::store::write_durably(path, format!("{id}\n").as_bytes()) {
        crate::log::warning!("keeping the machine id failed: {error}, continuing");
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_keys_are_not_shown() {
        let text = "a = 1\nkey = \"\"\"-----BEGIN PRIVATE KEY-----\nSECRET\n-----END PRIVATE KEY-----\"\"\"\nb = 2\n";
        let shown = without_keys(text);
        assert!(!shown.contains("SECRET") && shown.contains("a = 1") && shown.contains("b = 2"), "{shown}");
    }
}
