//! Containers: what `POST /containers/create` and its kin take, what inspect and list answer.

mod config;
mod host_config;
mod inspect;
mod networking;
mod summary;

pub use config::{ContainerConfig, HealthConfig};
pub use host_config::{
    BindOptions, DeviceMapping, DeviceRequest, Driver, HostConfig, ImageOptions, LogConfig, Mount,
    PortBinding, PortMap, RestartPolicy, ThrottleDevice, TmpfsOptions, Ulimit, VolumeOptions, WeightDevice,
};
pub use inspect::{
    ContainerInspect, ContainerState, GraphDriver, HealthState, MountPoint, NetworkSettings, ProbeResult,
};
pub use networking::{EndpointIpamConfig, EndpointSettings, NetworkingConfig};
pub use summary::{ContainerSummary, Port, SummaryHostConfig, SummaryNetworkSettings};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Body of `POST /containers/create`: the config's fields at the top, host and networking configuration below them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CreateBody {
    #[serde(flatten)]
    pub config: ContainerConfig,
    #[serde(rename = "HostConfig")]
    pub host_config: HostConfig,
    #[serde(rename = "NetworkingConfig")]
    pub networking_config: NetworkingConfig,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Beside {
    host_config: HostConfig,
    networking_config: NetworkingConfig,
}

impl CreateBody {
    /// Decodes a request body by the rules of [`crate::decode`].
    pub fn from_value(value: Value) -> Result<Self, serde_json::Error> {
        let Beside { host_config, networking_config } = crate::decode::from_value(value.clone())?;
        Ok(Self { config: crate::decode::from_value(value)?, host_config, networking_config })
    }
}

impl<'de> Deserialize<'de> for CreateBody {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::from_value(Value::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

/// Answer of `POST /containers/create`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct CreateAnswer {
    pub id: String,
    pub warnings: Vec<String>,
}

/// Body of `POST /containers/{id}/update`: resources of [`HostConfig`] and the restart policy. Zero means unchanged.
pub type UpdateBody = HostConfig;

/// Answer of `POST /containers/{id}/update`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct UpdateAnswer {
    pub warnings: Option<Vec<String>>,
}

/// Answer of `POST /containers/{id}/wait`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct WaitAnswer {
    pub status_code: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<WaitError>,
}

/// Why a container could not be waited for or started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct WaitError {
    pub message: String,
}

/// Answer of `POST /containers/prune`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct PruneAnswer {
    pub containers_deleted: Option<Vec<String>>,
    pub space_reclaimed: u64,
}

/// Answer of `GET /containers/{id}/top`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TopAnswer {
    pub processes: Vec<Vec<String>>,
    pub titles: Vec<String>,
}

/// One entry of `GET /containers/{id}/changes`: 0 modified, 1 added, 2 deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Change {
    pub path: String,
    pub kind: u8,
}

/// What `X-Docker-Container-Path-Stat` holds, base64 of JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PathStat {
    pub name: String,
    pub size: i64,
    /// Go's `os.FileMode` bits, not the kernel's.
    pub mode: u32,
    pub mtime: String,
    pub link_target: String,
}
