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
    /// Its other networks, where its own questions are looked up too.
    pub networks: Vec<String>,
    /// Names that only its own questions have: the name and the host it stands for.
    pub links: Vec<(String, String)>,
}

/// The table: network name to [`View`]. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Table {
    networks: Arc<RwLock<BTreeMap<String, Arc<Index>>>>,
}

/// A view made ready for look-up.
#[derive(Debug, Default)]
pub(crate) struct Index {
    internal: bool,
    names: BTreeMap<String, Vec<IpAddr>>,
    addresses: BTreeMap<IpAddr, String>,
    askers: BTreeMap<IpAddr, Asker>,
}

/// What a host's own questions see beside the network they come in by.
#[derive(Debug, Clone, Default)]
struct Asker {
    networks: Vec<String>,
    links: BTreeMap<String, String>,
}

/// Where one question is looked up: in the network it came in by, then in the asker's others.
#[derive(Debug, Default)]
pub(crate) struct Scope {
    indexes: Vec<Arc<Index>>,
    links: BTreeMap<String, String>,
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
        let networks = self.networks.read().unwrap_or_else(PoisonError::into_inner);
        let index = networks.get(network);
        index.and_then(|index| index.lookup(name)).map(<[IpAddr]>::to_vec).unwrap_or_default()
    }

    /// Where a question from `asker` to the server of `network` is looked up.
    pub(crate) fn scope(&self, network: &str, asker: IpAddr) -> Scope {
        let networks = self.networks.read().unwrap_or_else(PoisonError::into_inner);
        let own = networks.get(network).cloned().unwrap_or_default();
        let asker = own.askers.get(&asker).cloned().unwrap_or_default();
        let others = asker.networks.iter().filter_map(|other| networks.get(other).cloned());
        Scope { indexes: [own].into_iter().chain(others).collect(), links: asker.links }
    }
}

impl Scope {
    /// One network alone.
    #[cfg(test)]
    pub(crate) fn of(index: Index) -> Scope {
        Scope { indexes: vec![Arc::new(index)], links: BTreeMap::new() }
    }

    /// Whether no network of the asker leads outside.
    pub(crate) fn internal(&self) -> bool {
        self.indexes.iter().all(|index| index.internal)
    }

    /// The addresses of `name`; `None` when no host has the name.
    pub(crate) fn lookup(&self, name: &str) -> Option<&[IpAddr]> {
        let name = canonical(name);
        let name = self.links.get(&name).unwrap_or(&name);
        self.indexes.iter().find_map(|index| index.lookup(name))
    }

    /// The name of `address`.
    pub(crate) fn reverse(&self, address: IpAddr) -> Option<&str> {
        self.indexes.iter().find_map(|index| index.reverse(address))
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
            let links = host.links.iter().map(|(name, target)| (canonical(name), canonical(target)));
            let asker = Asker { networks: host.networks.clone(), links: links.collect() };
            if !asker.networks.is_empty() || !asker.links.is_empty() {
                for address in &host.addresses {
                    index.askers.insert(*address, asker.clone());
                }
            }
        }
        index
    }

    fn lookup(&self, name: &str) -> Option<&[IpAddr]> {
        self.names.get(&canonical(name)).map(Vec::as_slice)
    }

    fn reverse(&self, address: IpAddr) -> Option<&str> {
        self.addresses.get(&address).map(String::as_str)
    }
}

fn canonical(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}
