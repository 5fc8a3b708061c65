//! What is remembered of a container.

use std::collections::BTreeMap;

use berth_api::docker::containers::{ContainerConfig, EndpointSettings, HostConfig};
use serde::{Deserialize, Serialize};

use crate::command::{Ended, Id};
use crate::phase::Phase;
use crate::restart::Policy;

/// The format this agent writes. Older ones are read.
pub(crate) const FORMAT: u32 = 1;

/// A container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// See [`FORMAT`].
    pub(crate) format: u32,
    /// Id, 64 hex digits.
    pub(crate) id: Id,
    /// Name without slash.
    pub(crate) name: String,
    /// Creation, ns since the epoch.
    pub(crate) created_ns: i64,
    /// The image as typed.
    pub(crate) image_name: String,
    /// Digest of the image's config.
    pub(crate) image_id: String,
    /// Entrypoint and command joined.
    pub(crate) args: Vec<String>,
    /// Config with the image's values filled in.
    pub(crate) config: ContainerConfig,
    /// As sent, with defaults.
    pub(crate) host_config: HostConfig,
    /// Networks wanted, by name, with what was asked of each.
    pub(crate) networks: BTreeMap<String, EndpointSettings>,
    /// What is mounted, resolved.
    pub(crate) mounts: Vec<MountRecord>,
    /// The unit that owns it.
    pub(crate) unit: Option<String>,
    /// Number of the last run, 0 before the first.
    pub(crate) run: u32,
    /// State, with what belongs to it.
    pub(crate) status: Status,
    /// A start under way. After a kill of the agent: one to be undone or adopted.
    pub(crate) attempt: Option<Attempt>,
    /// A user stopped it: restart policies rest.
    pub(crate) stopped_by_user: bool,
    /// The machine's end interrupted it, nobody's wish.
    #[serde(default)]
    pub(crate) interrupted: bool,
    /// Restarts by policy since a user's start.
    pub(crate) restart_count: u32,
}

/// See [`Record::status`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    /// Never ran; why the last start failed, and the code shown for it.
    Created {
        /// Error text.
        error: Option<String>,
        /// 0, or 126, 127, 128.
        code: i64,
    },
    /// Runs.
    Running(RunRecord),
    /// Waits for its next start.
    Restarting {
        /// How the last run ended.
        last: Ended,
        /// When, ns since the epoch.
        next_ns: i64,
        /// The wait, ms.
        wait_ms: u64,
    },
    /// Ended.
    Exited(Ended),
    /// To be removed; a kill of the agent does not change that.
    Removing,
}

/// A run that is being started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attempt {
    /// Its number.
    pub(crate) run: u32,
    /// Boot it happens in: after another boot nothing of it is left.
    pub(crate) boot: String,
    /// First host id of its user namespace; none for the host's.
    pub(crate) base: Option<u32>,
    /// The wait that led here, ms, when by restart policy.
    pub(crate) wait_ms: Option<u64>,
}

/// A run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunRecord {
    /// The attempt it came of.
    pub(crate) attempt: Attempt,
    /// Host pid; init's registration tells whether it is still the same process.
    pub(crate) pid: i32,
    /// Start, ns since the epoch.
    pub(crate) started_ns: i64,
    /// Frozen.
    pub(crate) paused: bool,
    /// Places in networks, by network name.
    pub(crate) endpoints: BTreeMap<String, EndpointRecord>,
}

/// A place in a network. Of what it has not, the text is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct EndpointRecord {
    /// Network id.
    pub(crate) network_id: String,
    /// Endpoint id.
    pub(crate) endpoint_id: String,
    /// IPv4 address.
    pub(crate) ip: String,
    /// Prefix length.
    pub(crate) prefix: u8,
    /// Gateway.
    pub(crate) gateway: String,
    /// IPv6 address.
    pub(crate) ip6: String,
    /// Its prefix length.
    pub(crate) prefix6: u8,
    /// Its gateway.
    pub(crate) gateway6: String,
    /// Ethernet address.
    pub(crate) mac: String,
    /// Name of the interface inside.
    pub(crate) interface: String,
    /// Name of the host's side; empty for an interface without one.
    pub(crate) host_name: String,
    /// Published: container port and protocol (`80/tcp`), host address, host port.
    pub(crate) ports: Vec<(String, String, u16)>,
}

/// What a mount shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum MountKind {
    /// A volume.
    Volume {
        /// Its name.
        name: String,
        /// Goes with the container (`rm -v`, `--rm`).
        anonymous: bool,
        /// Fill from the image when empty.
        copy_up: bool,
        /// Only this directory or file of it; empty for all.
        #[serde(default)]
        subpath: String,
    },
    /// A directory or file of the host.
    Bind {
        /// Its path.
        source: String,
        /// Made as a directory when missing.
        create: bool,
        /// `slave` instead of private.
        slave: bool,
    },
    /// Memory.
    Tmpfs {
        /// Options of the file system and of the mount.
        options: Vec<String>,
    },
}

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MountRecord {
    /// Path inside the container.
    pub(crate) target: String,
    /// What.
    pub(crate) kind: MountKind,
    /// Read-only.
    pub(crate) readonly: bool,
    /// The third part of a bind, as typed, for inspect.
    pub(crate) mode: String,
}

impl Record {
    /// Where in its life it is.
    pub(crate) fn phase(&self) -> Phase {
        if self.attempt.is_some() {
            return Phase::Starting;
        }
        match &self.status {
            Status::Created { .. } => Phase::Created,
            Status::Running(run) if run.paused => Phase::Paused,
            Status::Running(_) => Phase::Running,
            Status::Restarting { .. } => Phase::Restarting,
            Status::Exited(_) => Phase::Exited,
            Status::Removing => Phase::Removing,
        }
    }

    /// Names it goes by in a network: its own, its short id, its aliases there.
    pub(crate) fn names_in(&self, network: &str) -> Vec<String> {
        let settings = self.networks.get(network);
        let aliases = settings.and_then(|settings| settings.aliases.clone()).unwrap_or_default();
        let mut names = vec![self.name.clone(), crate::id::short(&self.id).to_owned()];
        names.extend(aliases);
        names
    }

    /// Its restart policy.
    pub(crate) fn policy(&self) -> Policy {
        let policy = &self.host_config.restart_policy;
        Policy::of(&policy.name, policy.maximum_retry_count)
    }

    /// The run, when it runs.
    pub(crate) fn running(&self) -> Option<&RunRecord> {
        match &self.status {
            Status::Running(run) => Some(run),
            _ => None,
        }
    }

    /// Under which name init knows run `run` of it.
    pub(crate) fn process_name(&self, run: u32) -> String {
        format!("c/{}/{run}", self.id)
    }
}
