//! What the API's handlers may use, in one place.

use std::sync::Arc;

use crate::command::Handle;
use crate::config::Loaded;
use crate::host::Host;
use crate::images::Images;
use crate::networks::Networks;
use crate::volumes::Volumes;

/// Everything a handler needs. State of containers changes only through `owner`.
#[derive(Clone, Debug)]
pub(crate) struct Services {
    /// Containers and exec sessions.
    pub(crate) owner: Handle,
    /// Images: the store and pulls.
    pub(crate) images: Arc<Images>,
    /// Networks.
    pub(crate) networks: Arc<Networks>,
    /// Volumes.
    pub(crate) volumes: Arc<Volumes>,
    /// The machine: status, power, crash.
    pub(crate) host: Arc<Host>,
    /// The machine file in force.
    pub(crate) config: Arc<Loaded>,
}
