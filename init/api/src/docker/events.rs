//! Events.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::is_zero;

/// A line of `GET /events`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct EventMessage {
    /// The action, for containers and images (kept for old clients).
    #[serde(rename = "status", skip_serializing_if = "is_zero")]
    pub status: String,
    /// The actor's id, for containers and images (kept for old clients).
    #[serde(rename = "id", skip_serializing_if = "is_zero")]
    pub id: String,
    /// The image, for containers (kept for old clients).
    #[serde(rename = "from", skip_serializing_if = "is_zero")]
    pub from: String,
    #[serde(rename = "Type")]
    pub kind: String,
    pub action: String,
    pub actor: Actor,
    #[serde(rename = "scope", skip_serializing_if = "is_zero")]
    pub scope: String,
    #[serde(rename = "time", skip_serializing_if = "is_zero")]
    pub time: i64,
    #[serde(rename = "timeNano", skip_serializing_if = "is_zero")]
    pub time_nano: i64,
}

/// Who it happened to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Actor {
    #[serde(rename = "ID")]
    pub id: String,
    pub attributes: BTreeMap<String, String>,
}
