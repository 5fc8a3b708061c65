//! The image configuration: what the image's author wants run, and which layers it consists of.
//!
//! image-spec config.md. Docker writes `null` where OCI leaves a field out; both read as empty.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::Digest;
use crate::manifest::LAYERS_MAX;

/// History lines kept; an image has few more than it has layers.
const HISTORY_MAX: usize = 4096;

/// An image configuration. Field names in JSON are those of the specification.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// GOARCH name.
    #[serde(default, deserialize_with = "null_is_default")]
    pub architecture: String,
    /// CPU level, where the author gave one.
    #[serde(default, deserialize_with = "null_is_default")]
    pub variant: String,
    /// GOOS name.
    #[serde(default, deserialize_with = "null_is_default")]
    pub os: String,
    /// RFC 3339 time as the author wrote it, empty when absent.
    #[serde(default, deserialize_with = "null_is_default")]
    pub created: String,
    /// Who made the image.
    #[serde(default, deserialize_with = "null_is_default")]
    pub author: String,
    /// Defaults for containers.
    #[serde(default, deserialize_with = "null_is_default")]
    pub config: RunConfig,
    /// Layers by content.
    pub rootfs: RootFs,
    /// How each layer came to be.
    #[serde(default, deserialize_with = "null_is_default")]
    pub history: Vec<History>,
}

/// What containers of the image run unless told otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RunConfig {
    /// `user[:group]`, names or numbers, unchecked.
    #[serde(default, deserialize_with = "null_is_default")]
    pub user: String,
    /// Keys such as `80/tcp`.
    #[serde(default, deserialize_with = "null_is_default")]
    pub exposed_ports: BTreeMap<String, Empty>,
    /// `NAME=value`.
    #[serde(default, deserialize_with = "null_is_default")]
    pub env: Vec<String>,
    /// First words of the command; `None` and empty differ when an image is extended.
    pub entrypoint: Option<Vec<String>>,
    /// Words after the entry point.
    pub cmd: Option<Vec<String>>,
    /// Paths that get a volume.
    #[serde(default, deserialize_with = "null_is_default")]
    pub volumes: BTreeMap<String, Empty>,
    /// Directory the command starts in.
    #[serde(default, deserialize_with = "null_is_default")]
    pub working_dir: String,
    /// Labels, unchecked.
    #[serde(default, deserialize_with = "null_is_default")]
    pub labels: BTreeMap<String, String>,
    /// Signal that stops the container, empty for SIGTERM.
    #[serde(default, deserialize_with = "null_is_default")]
    pub stop_signal: String,
    /// Health check.
    pub healthcheck: Option<Healthcheck>,
    /// Shell of `CMD-SHELL` forms.
    #[serde(default, deserialize_with = "null_is_default")]
    pub shell: Vec<String>,
    /// Triggers for builds.
    #[serde(default, deserialize_with = "null_is_default")]
    pub on_build: Vec<String>,
}

/// A JSON `{}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// A health check as the image gives it. Times in nanoseconds, zero for the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", …]`.
    #[serde(default, deserialize_with = "null_is_default")]
    pub test: Vec<String>,
    /// Time between checks.
    #[serde(default)]
    pub interval: i64,
    /// Time one check may take.
    #[serde(default)]
    pub timeout: i64,
    /// Grace after start.
    #[serde(default)]
    pub start_period: i64,
    /// Time between checks within the grace.
    #[serde(default)]
    pub start_interval: i64,
    /// Failures in a row that make it unhealthy.
    #[serde(default)]
    pub retries: i64,
}

/// Layers by the digest of their uncompressed bytes, lowest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Digests of the plain tar streams.
    #[serde(deserialize_with = "null_is_default")]
    pub diff_ids: Vec<Digest>,
}

/// One step of the image's making.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// RFC 3339 time.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub created: String,
    /// Command.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    /// Author.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// Comment.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// The step made no layer.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON of the expected form.
    #[error("image configuration is not valid")]
    Json(#[source] serde_json::Error),
    /// Too many layers or history lines, or an unknown `rootfs.type`.
    #[error("image configuration has {what}")]
    Limit {
        /// What is wrong.
        what: &'static str,
    },
    /// Manifest and configuration count layers differently.
    #[error("image configuration lists {listed} layers but the manifest has {layers}")]
    LayerCount {
        /// `rootfs.diff_ids`.
        listed: usize,
        /// Layers of the manifest.
        layers: usize,
    },
}

impl ImageConfig {
    /// Parses a configuration of an image with `layers` layers.
    pub fn parse(bytes: &[u8], layers: usize) -> Result<Self, ConfigError> {
        let config: Self = serde_json::from_slice(bytes).map_err(ConfigError::Json)?;
        if config.rootfs.kind != "layers" {
            return Err(ConfigError::Limit { what: "an unknown rootfs type" });
        }
        if config.history.len() > HISTORY_MAX || config.rootfs.diff_ids.len() > LAYERS_MAX {
            return Err(ConfigError::Limit { what: "too many layers" });
        }
        if config.rootfs.diff_ids.len() != layers {
            return Err(ConfigError::LayerCount { listed: config.rootfs.diff_ids.len(), layers });
        }
        Ok(config)
    }
}

/// Chain ids of a list of diff ids (image-spec config.md, "Layer ChainID"): one per layer, naming it and all below.
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => diff_id.clone(),
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_read_as_empty_and_absent_commands_stay_absent() {
        let text = br#"{"architecture":"amd64","os":"linux","created":null,
            "config":{"Env":null,"Cmd":["sh"],"Entrypoint":null,"Volumes":{"/data":{}},"Labels":null},
            "rootfs":{"type":"layers","diff_ids":null},"history":null}"#;
        let config = ImageConfig::parse(text, 0).unwrap();
        assert_eq!(config.config.cmd, Some(vec!["sh".to_owned()]));
        assert_eq!(config.config.entrypoint, None);
        assert!(config.config.volumes.contains_key("/data"));
        assert!(config.created.is_empty());
    }

    #[test]
    fn layer_counts_must_agree() {
        let text = format!(r#"{{"rootfs":{{"type":"layers","diff_ids":["sha256:{}"]}}}}"#, "a".repeat(64));
        assert!(ImageConfig::parse(text.as_bytes(), 1).is_ok());
        for layers in [0, 2] {
            assert!(matches!(
                ImageConfig::parse(text.as_bytes(), layers),
                Err(ConfigError::LayerCount { listed: 1, .. })
            ));
        }
    }

    #[test]
    fn chain_ids_follow_the_specification() {
        let a = Digest::of(b"a");
        let b = Digest::of(b"b");
        let chain = chain_ids(&[a.clone(), b.clone()]);
        assert_eq!(chain[0], a);
        assert_eq!(chain[1], Digest::of(format!("{a} {b}").as_bytes()));
        assert!(chain_ids(&[]).is_empty());
    }
}
