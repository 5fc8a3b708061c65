//! The networks there are: made, found, removed, and put in force again after a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_api::docker::networks::NetworkCreate;
use berth_net::dns::Host;
use berth_net::netlink::Route;
use berth_net::pool::{Ipam, Subnets};
use berth_net::{IpNet, Mac, Upstreams, bridge, conntrack, firewall, veth};
use tokio::sync::{broadcast, watch};

use super::leave::Leaving;
use super::names::{Names, Stored};
use super::options::Settings;
use super::place::{Key, Place};
use super::record::{DEFAULT, Record, Subnet, predefined_id};
use super::{decide, names};
use crate::command::{Event, Refusal};
use crate::init_link::Init;
use crate::store::write_durably;

/// Prefix of our interface names: what a start compares with its containers.
pub(super) const VETH_PREFIX: &str = "veth";
/// init creates this once the modules for bridges and packet filtering are loaded.
const MODULES_READY: &str = "/run/berth/modules-ready";
/// How long to wait for it: on a slow machine module loading takes seconds. After that the kernel is asked anyway.
const MODULES_TIMEOUT: Duration = Duration::from_secs(60);

/// A network in use.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) record: Record,
    pub(super) settings: Settings,
    pub(super) v4: Option<Ipam>,
    pub(super) v6: Option<Ipam>,
}

/// What is known of networks: by name, and places by container id and network name.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) networks: BTreeMap<String, Network>,
    pub(super) places: BTreeMap<Key, Place>,
    /// Places nobody has any more whose interfaces are still there.
    pub(super) leaving: Vec<Leaving>,
    /// A thread removes them.
    pub(super) sweeping: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Networks {
    root: PathBuf,
    known: Mutex<Known>,
    /// The open way to the firewall.
    pub(super) firewall: Mutex<Option<firewall::Firewall>>,
    /// Held while interfaces are removed.
    pub(super) sweeper: Mutex<()>,
    /// Told when places have left.
    pub(super) left: Condvar,
    pub(super) names: Names,
    pub(super) events: broadcast::Sender<Event>,
    pools: Subnets,
    ready: watch::Sender<bool>,
}

impl Networks {
    /// Reads the networks kept in `root` and adds the predefined one. Touches no interface. `machine_id` makes the
    /// machine's own IPv6 prefix;
    /// `kept` are sockets of the agent before this one.
    pub(crate) fn open(
        root: &Path,
        machine_id: &[u8],
        upstreams: watch::Receiver<Upstreams>,
        events: broadcast::Sender<Event>,
        (init, kept): (Init, Stored),
    ) -> std::io::Result<Self> {
        std::fs::create_dir_all(root)?;
        let mut known = Known::default();
        for entry in std::fs::read_dir(root)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match Record::read(&std::fs::read(&path)?) {
                Ok(record) => known.add(record),
                Err(error) => {
                    crate::log::warning!("network {} cannot be read: {error}, continuing", path.display());
                }
            }
        }
        known.add(Record::default_network());
        let (ready, _) = watch::channel(false);
        Ok(Self {
            root: root.to_owned(),
            known: Mutex::new(known),
            firewall: Mutex::default(),
            sweeper: Mutex::default(),
            left: Condvar::new(),
            names: Names::new(upstreams, init, kept),
            events,
            pools: Subnets::new(machine_id),
            ready,
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes all bridges and puts the firewall in force once the kernel's modules are there.
    pub(crate) async fn prepare(self: std::sync::Arc<Self>) {
        wait_for_modules().await;
        let networks = self.clone();
        let prepared = tokio::task::spawn_blocking(move || networks.prepare_now()).await;
        if let Err(error) = prepared {
            crate::log::error!("preparing container networks failed: {error}");
        }
        self.ready.send_replace(true);
    }

    /// Waits until [`Self::prepare`] is done.
    pub(crate) async fn ready(&self) {
        // The sender lives in self, so this cannot fail.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    fn prepare_now(&self) {
        let configs: Vec<_> = self.lock().networks.values().filter_map(Network::bridge).collect();
        for config in configs {
            if let Err(error) = bridge::ensure(&config) {
                crate::log::error!("container network {}: {}", config.name, crate::log::chain(&error));
            }
        }
        let named: Vec<String> = self.lock().networks.keys().cloned().collect();
        for network in named {
            self.serve_names(&network);
        }
        self.names.forget_kept();
        self.remove_strays();
        let applied = firewall::enable_forwarding().and_then(|()| self.apply());
        if let Err(error) = applied {
            crate::log::error!("firewall: {}", crate::log::chain(&error));
        }
    }

    /// Removes interfaces of containers that are no more, and flows of their addresses.
    fn remove_strays(&self) {
        let (ours, subnets, live) = {
            let known = self.lock();
            let present = known.places.values().map(|place| &place.record.host_name);
            let leaving = known.leaving.iter().map(|leaving| &leaving.record.host_name);
            let ours: BTreeSet<String> = present.chain(leaving).cloned().collect();
            let pools = || known.networks.values().flat_map(Network::pools);
            let subnets: Vec<IpNet> = pools().map(Ipam::subnet).collect();
            let containers = known.places.values().flat_map(Place::addresses);
            let live: BTreeSet<IpAddr> = containers.chain(pools().map(Ipam::gateway)).collect();
            (ours, subnets, live)
        };
        let interfaces = veth::list(VETH_PREFIX).unwrap_or_default();
        for interface in interfaces.into_iter().filter(|interface| !ours.contains(&interface.name)) {
            if let Err(error) = veth::detach(&interface.name) {
                crate::log::warning!(
                    "leftover {}: {}, continuing",
                    interface.name,
                    crate::log::chain(&error)
                );
            }
        }
        if let Err(error) = conntrack::flush_strays(&subnets, &live) {
            crate::log::warning!("connection tracking: {}, continuing", crate::log::chain(&error));
        }
    }

    /// Answers names on a network's gateways.
    fn serve_names(&self, network: &str) {
        self.show_names(network);
        let (id, gateways): (String, Vec<IpAddr>) = {
            let known = self.lock();
            let Some(network) = known.networks.get(network).filter(|network| network.has_names()) else {
                return;
            };
            (network.record.id.clone(), network.pools().map(Ipam::gateway).collect())
        };
        self.names.serve(network, &id, &gateways);
    }

    /// Puts the names of a network's containers in force.
    pub(super) fn show_names(&self, network: &str) {
        let (internal, hosts) = {
            let known = self.lock();
            let Some(found) = known.networks.get(network).filter(|network| network.has_names()) else {
                return;
            };
            let inside = known.places.iter().filter(|((_, name), _)| name == network);
            let hosts = inside.map(|((container, _), place)| {
                let others = known.places_of(container).map(|(other, _)| other);
                let others = others.filter(|other| *other != network && *other != DEFAULT);
                Host {
                    names: place.names.clone(),
                    addresses: place.addresses(),
                    networks: others.map(str::to_owned).collect(),
                    links: place.links.clone(),
                }
            });
            (found.record.internal, hosts.collect())
        };
        self.names.set(network, internal, hosts);
    }

    /// The same for all networks of a container.
    pub(super) fn show_names_of(&self, container: &str) {
        let networks: Vec<String> =
            self.lock().places_of(container).map(|(network, _)| network.to_owned()).collect();
        for network in networks {
            self.show_names(&network);
        }
    }

    /// Name of the network with this name, id or unique id prefix.
    pub(crate) fn resolve(&self, text: &str) -> Option<String> {
        let known = self.lock();
        if known.networks.contains_key(text) {
            return Some(text.to_owned());
        }
        let mut fits = known.networks.values().filter(|network| network.record.id.starts_with(text));
        match (fits.next(), fits.next()) {
            (Some(network), None) if !text.is_empty() => Some(network.record.name.clone()),
            _ => None,
        }
    }

    /// Makes a network.
    pub(crate) fn create(&self, body: &NetworkCreate) -> Result<String, Refusal> {
        let taken = Route::open().and_then(|mut route| route.addresses()).unwrap_or_default();
        let taken: Vec<IpNet> = taken.into_iter().map(|(_, net)| net).collect();
        let (record, config) = {
            let mut known = self.lock();
            let record = decide::record(&known, body, &self.pools, &taken)?;
            known.add(record.clone());
            let config = known.networks.get(&record.name).and_then(Network::bridge);
            (record, config)
        };
        let failed = |error: String| Refusal::Failed(format!("create network {}: {error}", record.name));
        let made = self.make(&record, config.as_ref());
        made.map_err(|error| {
            self.lock().networks.remove(&record.name);
            failed(error)
        })?;
        self.serve_names(&record.name);
        self.tell(&record.name, "create", None);
        Ok(record.id)
    }

    fn make(&self, record: &Record, config: Option<&bridge::BridgeConfig>) -> Result<(), String> {
        let text = serde_json::to_vec(record).map_err(|error| error.to_string())?;
        if let Some(config) = config {
            bridge::ensure(config).map_err(|error| crate::log::chain(&error))?;
        }
        self.apply().map_err(|error| crate::log::chain(&error))?;
        write_durably(&self.file(&record.id), &text).map_err(|error| error.to_string())
    }

    fn file(&self, id: &str) -> PathBuf {
        self.root.join(format!("{id}.json"))
    }

    /// Removes a network nobody is in.
    pub(crate) fn remove(&self, id: &str) -> Result<(), Refusal> {
        let record = self.lock().removable(id)?;
        self.wait_for_leaving(id);
        {
            let mut known = self.lock();
            // Nobody came while it waited.
            known.removable(id)?;
            known.networks.remove(&record.name);
        }
        let gateways: Vec<IpAddr> = record.subnets.iter().map(|subnet| subnet.gateway).collect();
        self.names.remove(&record.name, &record.id, &gateways);
        match std::fs::remove_file(self.file(&record.id)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Refusal::Failed(format!("remove network {}: {error}", record.name)));
            }
            _ => {}
        }
        let removed = match record.bridge.as_str() {
            "" => Ok(()),
            bridge => bridge::remove(bridge).map_err(|error| crate::log::chain(&error)),
        };
        let removed = removed.and_then(|()| self.apply().map_err(|error| crate::log::chain(&error)));
        removed.map_err(|error| Refusal::Failed(format!("remove network {}: {error}", record.name)))?;
        self.tell_of(&record.id, &record.name, &record.driver, "destroy", None);
        Ok(())
    }
}

impl Known {
    /// Takes a network into use.
    pub(super) fn add(&mut self, record: Record) {
        let name = record.name.clone();
        match Network::new(record) {
            Ok(network) => drop(self.networks.insert(name, network)),
            Err(error) => crate::log::warning!("network {name}: {error}, continuing"),
        }
    }

    /// The record of the network with this id, when it may be removed.
    fn removable(&self, id: &str) -> Result<Record, Refusal> {
        let found = self.networks.values().find(|network| network.record.id == id);
        let Some(record) = found.map(|network| network.record.clone()) else {
            return Err(match id {
                id if id == predefined_id("host") || id == predefined_id("none") => {
                    Refusal::Forbidden("a pre-defined network cannot be removed".to_owned())
                }
                _ => Refusal::NotFound(format!("network {id} not found")),
            });
        };
        if record.name == DEFAULT {
            return Err(Refusal::Forbidden(
                "bridge is a pre-defined network and cannot be removed".to_owned(),
            ));
        }
        let inside = self.places.iter().find(|((_, network), _)| *network == record.name);
        if let Some((_, place)) = inside {
            return Err(Refusal::Forbidden(format!(
                "error while removing network: network {} has active endpoints (name:\"{}\" id:\"{}\")",
                record.name,
                place.name,
                crate::id::short(&place.record.endpoint_id)
            )));
        }
        Ok(record)
    }
}

impl Network {
    fn new(record: Record) -> Result<Network, String> {
        let settings = Settings::of(&record.driver, &record.options).map_err(|error| error.to_string())?;
        let mut network = Network { settings, v4: None, v6: None, record };
        for subnet in &network.record.subnets {
            let pool = Some(pool(subnet)?);
            if subnet.gateway.is_ipv4() {
                network.v4 = pool;
            } else {
                network.v6 = pool;
            }
        }
        Ok(network)
    }

    /// Its pools, IPv4 first.
    pub(super) fn pools(&self) -> impl Iterator<Item = &Ipam> {
        self.v4.iter().chain(&self.v6)
    }

    /// Whether a name server answers on its gateway. The default network has no names, as in Docker, and a network
    /// without a bridge has no place for one.
    pub(super) fn has_names(&self) -> bool {
        names::served(&self.record.name) && self.settings.bridge().is_some()
    }

    fn bridge(&self) -> Option<bridge::BridgeConfig> {
        self.settings.bridge()?;
        let gateway = self.pools().map(Ipam::gateway).next()?;
        let mac = match gateway {
            IpAddr::V4(gateway) => Mac::from_ipv4(gateway),
            // Locally administered, the rest from the address.
            IpAddr::V6(gateway) => {
                let [.., a, b, c, d] = gateway.octets();
                Mac([0x02, 0x42, a, b, c, d])
            }
        };
        Some(bridge::BridgeConfig {
            name: self.record.bridge.clone(),
            gateways: self.pools().map(Ipam::gateway_net).collect(),
            mtu: self.settings.bridge_mtu(),
            mac,
        })
    }
}

fn pool(subnet: &Subnet) -> Result<Ipam, String> {
    let net: IpNet = subnet.net.parse().map_err(|_| format!("bad subnet {}", subnet.net))?;
    let range = match subnet.range.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| format!("bad range {text}"))?),
    };
    let mut pool = Ipam::new(net, range, Some(subnet.gateway)).map_err(|error| error.to_string())?;
    for address in subnet.reserved.values() {
        pool.reserve(*address).map_err(|error| error.to_string())?;
    }
    Ok(pool)
}

async fn wait_for_modules() {
    let found = async {
        // A file that appears once per boot is not worth a watch descriptor for the agent's whole life.
        while tokio::fs::metadata(MODULES_READY).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(MODULES_TIMEOUT, found).await.is_err() {
        crate::log::warning!("init does not report the late modules, continuing");
    }
}
