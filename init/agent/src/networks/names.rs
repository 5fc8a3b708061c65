//! Names of containers, answered on each network's gateway to the containers in it. init keeps the servers' sockets, so
//! that questions wait in them while the agent starts again. The default network has no names,
//! as in Docker: its containers get the machine's name servers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use berth_net::Upstreams;
use berth_net::dns::{Host, Server, Sockets, Table, View};
use tokio::sync::watch;

use super::record::DEFAULT;
use crate::init_link::Init;

/// Descriptors by the names init knows them by.
pub(crate) type Stored = BTreeMap<String, Vec<OwnedFd>>;

/// Whether a network's names are answered.
pub(super) fn served(network: &str) -> bool {
    network != DEFAULT
}

/// What init calls the sockets, before the network's id.
const KEPT: &str = "dns/";

/// The name servers and what they know.
pub(super) struct Names {
    table: Table,
    init: Init,
    /// Sockets of a former agent, not yet served.
    kept: Mutex<Stored>,
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
    pub(super) fn new(upstreams: watch::Receiver<Upstreams>, init: Init, kept: Stored) -> Self {
        Self { table: Table::new(), init, kept: Mutex::new(kept), servers: Mutex::default(), upstreams }
    }

    /// Serves a network's names on its gateways. A failure is logged: the network works without names.
    pub(super) fn serve(&self, network: &str, id: &str, gateways: &[IpAddr]) {
        let mut serving = Vec::new();
        for gateway in gateways {
            let server = self.sockets(&stored_name(id, *gateway), *gateway).and_then(|sockets| {
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

    /// The sockets of a former agent, or new ones, which init is given too.
    fn sockets(&self, name: &str, gateway: IpAddr) -> std::io::Result<Sockets> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        if let Some(Ok([udp, tcp])) = kept.map(<[OwnedFd; 2]>::try_from) {
            let sockets = Sockets { udp, tcp };
            if sockets.address()?.ip() == gateway {
                return Ok(sockets);
            }
        }
        let sockets = Sockets::bind(gateway)?;
        let Sockets { udp, tcp } = sockets.try_clone()?;
        if let Err(error) = self.init.store(name, vec![udp, tcp]) {
            crate::log::warning!("init does not keep {name}: {error}, continuing");
        }
        Ok(sockets)
    }

    /// Has init close what no network took over.
    pub(super) fn forget_kept(&self) {
        for name in std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner)).keys() {
            self.init.remove(name);
        }
    }

    /// Ends a network's servers and forgets its names.
    pub(super) fn remove(&self, network: &str, id: &str, pools: &[IpAddr]) {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner).remove(network);
        self.table.remove(network);
        for gateway in pools {
            self.init.remove(&stored_name(id, *gateway));
        }
    }

    /// Puts a network's names in force, in place of what it had.
    pub(super) fn set(&self, network: &str, internal: bool, hosts: Vec<Host>) {
        self.table.set(network, &View { internal, hosts });
    }
}

/// Takes the name servers' sockets out of what init kept.
pub(crate) fn take_kept(stored: &mut Stored) -> Stored {
    let (ours, others) = std::mem::take(stored).into_iter().partition(|(name, _)| name.starts_with(KEPT));
    *stored = others;
    ours
}

fn stored_name(id: &str, gateway: IpAddr) -> String {
    let family = if gateway.is_ipv4() { "4" } else { "6" };
    format!("{KEPT}{}/{family}", crate::id::short(id))
}
