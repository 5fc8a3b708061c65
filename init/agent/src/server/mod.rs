//! The Docker Engine API and the host API over HTTP.
//!
//! Principles: handlers parse a request, ask the owner, translate the answer; what they translate with are pure
//! functions. Every error has the form `{"message": …}` and the reference engine's words. Everything a client sends has
//! a limit. Heads of streams are sent before their first byte is there, because clients wait for them.
//!
//! Rooms in reading order: [`listen`] (sockets, TLS, caps), [`routes`] (paths, versions), [`request`] and [`query`]
//! (what came), [`respond`], [`errors`], [`stream`] and [`bulk`] (what goes), then one room per group of routes.

pub(crate) mod archives;
pub(crate) mod author;
pub(crate) mod bulk;
pub(crate) mod containers;
pub(crate) mod credentials;
pub(crate) mod errors;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod host;
pub(crate) mod images;
pub(crate) mod listen;
pub(crate) mod networks;
pub(crate) mod progress;
pub(crate) mod pull;
pub(crate) mod push;
pub(crate) mod query;
pub(crate) mod registry;
pub(crate) mod request;
pub(crate) mod respond;
pub(crate) mod routes;
pub(crate) mod stream;
pub(crate) mod system;
pub(crate) mod takeover;
pub(crate) mod time;
pub(crate) mod volumes;
pub(crate) mod websocket;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use berth_image::{Puller, Store};

use crate::command::Handle;

/// Version told to clients: the engine release whose behaviour is followed, and ours behind it.
pub(crate) const ENGINE_VERSION: &str = concat!("28.5.2+berth-", env!("CARGO_PKG_VERSION"));

/// All that handlers share.
pub(crate) struct Api {
    /// The owner task.
    pub(crate) owner: Handle,
    /// What happened lately and what happens now.
    pub(crate) journal: events::Journal,
    /// The images on disk.
    pub(crate) images: Store,
    /// Brings images there.
    pub(crate) puller: Puller,
    /// The machine itself.
    pub(crate) machine: Arc<dyn host::Machine>,
}

impl Api {
    /// What handlers share. Keeps a journal of events from now on; needs a runtime.
    pub(crate) fn new(
        owner: Handle,
        images: Store,
        puller: Puller,
        machine: Arc<dyn host::Machine>,
    ) -> Arc<Self> {
        let journal = events::Journal::start(owner.events());
        Arc::new(Self { owner, journal, images, puller, machine })
    }
}
