//! What the name servers know: for each network the names of its containers. Shared between the agent, which
//! changes it, and the servers, which read it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

/// The names of one network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    /// Names outside the table get no answer from upstream: an internal network must not leak through name service.
    pub internal: bool,
    /// The hosts.
    pub hosts: Vec<Host>,
}

/// One host of a network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Host {
    /// Its names: container name, short id, aliases, hostname. The first answers reverse questions. Compared without
    /// regard to case. Several hosts may share a name; all their addresses are answered.
    pub names: Vec<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// The table: network name to [`View`]. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Table {
    networks: Arc<RwLock<BTreeMap<String, Arc<Index>>>>,
}

/// A view made ready for look-up.
#[derive(Debug, Default)]
pub(crate) struct Index {
    pub(crate) internal: bool,
    names: BTreeMap<String, Vec<IpAddr>>,
    addresses: BTreeMap<IpAddr, String>,
}

impl Table {
    /// An empty table.
    pub fn new() -> Table {
        Table::default()
    }

    /// Puts the names of `network` in force, replacing all it had.
    pub fn set(&self, network: &str, view: &View) {
        let index = Arc::new(Index::new(view));
        let mut networks = self.networks.write().unwrap_or_else(PoisonError::into_inner);
        networks.insert(network.to_owned(), index);
    }

    /// Forgets a network.
    pub fn remove(&self, network: &str) {
        self.networks.write().unwrap_or_else(PoisonError::into_inner).remove(network);
    }

    /// The addresses `name` has in `network`, for callers inside the process.
    pub fn lookup(&self, network: &str, name: &str) -> Vec<IpAddr> {
        self.index(network).lookup(name).map(<[IpAddr]>::to_vec).unwrap_or_default()
    }

    pub(crate) fn index(&self, network: &str) -> Arc<Index> {
        let networks = self.networks.read().unwrap_or_else(PoisonError::into_inner);
        networks.get(network).cloned().unwrap_or_default()
    }
}

impl Index {
    pub(crate) fn new(view: &View) -> Index {
        let mut index = Index { internal: view.internal, ..Index::default() };
        for host in &view.hosts {
            for name in &host.names {
                let addresses = index.names.entry(canonical(name)).or_default();
                for address in &host.addresses {
                    if !addresses.contains(address) {
                        addresses.push(*address);
                    }
                }
            }
            if let Some(name) = host.names.first() {
                for address in &host.addresses {
                    index.addresses.entry(*address).or_insert_with(|| canonical(name));
                }
            }
        }
        index
    }

    /// The addresses of `name`; `None` when no host has the name.
    pub(crate) fn lookup(&self, name: &str) -> Option<&[IpAddr]> {
        self.names.get(&canonical(name)).map(Vec::as_slice)
    }

    /// The name of `address`.
    pub(crate) fn reverse(&self, address: IpAddr) -> Option<&str> {
        self.addresses.get(&address).map(String::as_str)
    }
}

fn canonical(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}
