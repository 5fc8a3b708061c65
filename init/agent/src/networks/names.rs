//! Names of containers, answered on each network's gateway to the containers in it. The default network has no names,
//! as in Docker: its containers get the machine's name servers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use berth_net::Upstreams;
use berth_net::dns::{Host, Server, Sockets, Table, View};
use tokio::sync::watch;

use super::record::DEFAULT;

/// Whether a network's names are answered.
pub(super) fn served(network: &str) -> bool {
    network != DEFAULT
}

/// The name servers and what they know.
pub(super) struct Names {
    table: Table,
    servers: Mutex<BTreeMap<String, Vec<Server>>>,
    upstreams: watch::Receiver<Upstreams>,
}

impl std::fmt::Debug for Names {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Names")
    }
}

impl Names {
    /// Nobody serves and nothing is known.
    pub(super) fn new(upstreams: watch::Receiver<Upstreams>) -> Self {
        Self { table: Table::new(), servers: Mutex::default(), upstreams }
    }

    /// Serves a network's names on its gateways. A failure is logged: the network works without names.
    pub(super) fn serve(&self, network: &str, gateways: &[IpAddr]) {
        let mut serving = Vec::new();
        for gateway in gateways {
            let server = Sockets::bind(*gateway).and_then(|sockets| {
                Server::start(network, sockets, self.table.clone(), self.upstreams.clone())
            });
            match server {
                Ok(server) => serving.push(server),
                Err(error) => {
                    crate::log::warning!(
                        "name server of network {network} at {gateway}: {error}, continuing"
                    );
                }
            }
        }
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        servers.insert(network.to_owned(), serving);
    }

    /// Ends a network's servers and forgets its names.
    pub(super) fn remove(&self, network: &str) {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner).remove(network);
        self.table.remove(network);
    }

    /// Puts a network's names in force, in place of what it had.
    pub(super) fn set(&self, network: &str, internal: bool, hosts: Vec<Host>) {
        self.table.set(network, &View { internal, hosts });
    }
}
