//! Types of the host API under `/host/v1`.

use serde::{Deserialize, Serialize};

/// `GET /host/v1/status`: the machine at a glance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Host name.
    pub name: String,
    /// Version of Berth.
    pub version: String,
    /// Kernel release.
    pub kernel: String,
    /// Seconds since boot.
    pub uptime_s: f64,
    /// Memory in the machine, bytes.
    pub memory_total_bytes: u64,
    /// Memory that can be had without swapping, bytes.
    pub memory_available_bytes: u64,
    /// Resident memory of the agent, bytes.
    pub agent_rss_bytes: u64,
    /// Resident memory of PID 1, bytes.
    pub init_rss_bytes: u64,
    /// State disk: capacity in bytes.
    pub state_total_bytes: u64,
    /// State disk: bytes left.
    pub state_free_bytes: u64,
    /// What is wrong with the machine file: empty when nothing is. One line each, naming source, line and key.
    pub config_errors: Vec<String>,
    /// Network interfaces of the host.
    pub interfaces: Vec<Interface>,
    /// Name servers in use.
    pub dns: Vec<String>,
    /// Units of the machine file.
    pub units: Vec<Unit>,
    /// Times of the boot, by phase name, in seconds since the kernel started.
    pub boot: Vec<Phase>,
}

/// A network interface of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Interface {
    /// Kernel name.
    pub name: String,
    /// MAC address.
    pub mac: String,
    /// Addresses with prefix length.
    pub addresses: Vec<String>,
    /// Default gateway, when it has one.
    pub gateway: Option<String>,
    /// Carrier present.
    pub up: bool,
}

/// A unit: a `[[container]]` of the machine file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Unit {
    /// Unit name.
    pub name: String,
    /// `pulling`, `starting`, `running`, `waiting`, `failed`.
    pub state: String,
    /// Why it is in that state, when that is not plain.
    pub message: String,
    /// The container, once it exists.
    pub container: Option<String>,
}

/// A phase of the boot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Phase {
    /// Its name.
    pub name: String,
    /// When it was reached, seconds since the kernel started.
    pub at_s: f64,
    /// How long the processors idled until then, all together, seconds.
    pub idle_s: f64,
}

/// `GET /host/v1/config`: the machine file in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Where it came from.
    pub source: String,
    /// Its text, with private keys left out.
    pub text: String,
    /// See [`Status::config_errors`].
    pub errors: Vec<String>,
}
