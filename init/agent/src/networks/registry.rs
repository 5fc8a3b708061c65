//! The networks there are, and who is in them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_api::docker::networks::{Ipam as ApiIpam, IpamConfig, Network as ApiNetwork, NetworkCreate};
use berth_net::pool::{Ipam, Subnets, overlap};
use berth_net::ports::Held;
use berth_net::{IpNet, Mac, bridge, firewall, veth};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::command::Refusal;
use crate::store::{EndpointRecord, write_durably};

/// Docker's name of the network containers get unless told otherwise.
pub(crate) const DEFAULT: &str = "bridge";
/// Interface of the default network.
const DEFAULT_BRIDGE: &str = "docker0";
/// Subnet of the default network.
const DEFAULT_GATEWAY: (Ipv4Addr, u8) = (Ipv4Addr::new(172, 17, 0, 1), 16);
/// Prefix of our interface names: what a start compares with its containers.
pub(super) const VETH_PREFIX: &str = "veth";
/// init creates this once the modules for bridges and packet filtering are loaded.
const MODULES_READY: &str = "/run/berth/modules-ready";
/// How long to wait for it: on a slow machine module loading takes seconds. After that the kernel is asked anyway.
const MODULES_TIMEOUT: Duration = Duration::from_secs(60);
/// Format of a network's file.
const FORMAT: u32 = 1;

/// What is remembered of a network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    format: u32,
    pub(super) id: String,
    pub(super) name: String,
    created: String,
    pub(super) bridge: String,
    subnet: String,
    gateway: IpAddr,
    pub(super) internal: bool,
    labels: BTreeMap<String, String>,
    options: BTreeMap<String, String>,
}

/// A network in use.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) record: Record,
    pub(super) ipam: Ipam,
}

/// A container's place.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) name: String,
    pub(super) record: EndpointRecord,
    pub(super) publish: Vec<firewall::Publish>,
    /// Sockets that hold the published ports; closing them gives the ports back.
    pub(super) held: Vec<Held>,
}

/// What is known of networks: by name, and places by container id and network name.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) networks: BTreeMap<String, Network>,
    pub(super) places: BTreeMap<(String, String), Place>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Networks {
    root: PathBuf,
    known: Mutex<Known>,
    /// Held while rules are computed and applied, so that older rules never replace newer ones.
    applying: Mutex<()>,
    ready: tokio::sync::watch::Sender<bool>,
}

impl Networks {
    /// Reads the networks kept in `root` and adds the predefined one. Touches no interface.
    pub(crate) fn open(root: &Path) -> std::io::Result<Self> {
        std::fs::create_dir_all(root)?;
        let mut known = Known::default();
        for entry in std::fs::read_dir(root)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let text = std::fs::read(&path)?;
            match serde_json::from_slice::<Record>(&text) {
                Ok(record) => known.add(record),
                Err(error) => {
                    crate::log::warning!("network {} cannot be read: {error}, continuing", path.display());
                }
            }
        }
        known.add(default_network());
        let (ready, _) = tokio::sync::watch::channel(false);
        Ok(Self { root: root.to_owned(), known: Mutex::new(known), applying: Mutex::new(()), ready })
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
        let configs: Vec<_> = self.lock().networks.values().map(Network::bridge).collect();
        for config in configs {
            if let Err(error) = bridge::ensure(&config) {
                crate::log::error!("container network {}: {}", config.name, crate::log::chain(&error));
            }
        }
        self.remove_strays();
        let applied = firewall::enable_forwarding().and_then(|()| self.apply());
        if let Err(error) = applied {
            crate::log::error!("firewall: {}", crate::log::chain(&error));
        }
    }

    /// Removes interfaces of containers that are no more.
    fn remove_strays(&self) {
        let ours: Vec<String> = self.lock().places.values().map(|place| place.record.host_name.clone()).collect();
        let Ok(interfaces) = veth::list(VETH_PREFIX) else { return };
        for interface in interfaces.into_iter().filter(|interface| !ours.contains(&interface.name)) {
            if let Err(error) = veth::detach(&interface.name) {
                crate::log::warning!("leftover {}: {}, continuing", interface.name, crate::log::chain(&error));
            }
        }
    }

    /// Puts the rules of all networks and containers in force.
    pub(super) fn apply(&self) -> Result<(), firewall::ApplyError> {
        let _one_at_a_time = self.applying.lock().unwrap_or_else(PoisonError::into_inner);
        let rules = self.lock().rules();
        firewall::apply(&rules)
    }

    /// All, in Docker's form, the predefined ones among them.
    pub(crate) fn list(&self) -> Vec<ApiNetwork> {
        let known = self.lock();
        let mut all: Vec<ApiNetwork> = known.networks.values().map(|network| known.show(network)).collect();
        all.push(without_addresses("host", "host"));
        all.push(without_addresses("none", "null"));
        all
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

    /// Id of a network by name; also of the predefined ones without addresses.
    pub(crate) fn id_of(&self, name: &str) -> Option<String> {
        match name {
            "host" | "none" => Some(predefined_id(name)),
            _ => self.lock().networks.get(name).map(|network| network.record.id.clone()),
        }
    }

    /// Makes a network.
    pub(crate) fn create(&self, body: &NetworkCreate) -> Result<String, Refusal> {
        let record = self.decide(body)?;
        let id = record.id.clone();
        let failed = |error: String| Refusal::Failed(format!("create network {}: {error}", record.name));
        let text = serde_json::to_vec(&record).map_err(|error| failed(error.to_string()))?;
        self.lock().add(record.clone());
        let config = self.lock().networks.get(&record.name).map(Network::bridge);
        let made = config.map_or(Ok(0), |config| bridge::ensure(&config)).map_err(|error| crate::log::chain(&error));
        let made = made.and_then(|_| self.apply().map_err(|error| crate::log::chain(&error)));
        let kept = made.and_then(|()| write_durably(&self.file(&id), &text).map_err(|error| error.to_string()));
        kept.map(|()| id).map_err(|error| {
            self.lock().networks.remove(&record.name);
            failed(error)
        })
    }

    fn file(&self, id: &str) -> PathBuf {
        self.root.join(format!("{id}.json"))
    }

    fn decide(&self, body: &NetworkCreate) -> Result<Record, Refusal> {
        let name = body.name.as_str();
        if matches!(name, "bridge" | "host" | "none" | "default") {
            return Err(Refusal::Forbidden(format!("operation is not permitted on predefined {name} network")));
        }
        if name.trim().is_empty() || name.starts_with("container:") {
            return Err(Refusal::Invalid(format!("invalid network name: {name:?}")));
        }
        if !matches!(body.driver.as_str(), "" | "bridge") {
            return Err(Refusal::NotFound(format!("plugin \"{}\" not found", body.driver)));
        }
        if body.enable_ipv6 == Some(true) {
            return Err(Refusal::Unsupported("IPv6 in container networks is not offered yet".to_owned()));
        }
        let known = self.lock();
        if known.networks.contains_key(name) {
            return Err(Refusal::Conflict(format!("network with name {name} already exists")));
        }
        let used: Vec<IpNet> = known.networks.values().map(|network| network.ipam.subnet()).collect();
        let wanted = body.ipam.as_ref().and_then(|ipam| ipam.config.as_ref()).and_then(|configs| configs.first());
        let (subnet, gateway) = subnet(wanted, &used)?;
        let ipam = Ipam::new(subnet, None, gateway).map_err(|error| Refusal::Invalid(error.to_string()))?;
        let id = crate::id::random().map_err(|error| Refusal::Failed(error.to_string()))?;
        Ok(Record {
            format: FORMAT,
            bridge: format!("br-{}", crate::id::short(&id)),
            name: name.to_owned(),
            created: now_text(),
            subnet: subnet.to_string(),
            gateway: ipam.gateway(),
            internal: body.internal,
            labels: body.labels.clone().unwrap_or_default(),
            options: body.options.clone().unwrap_or_default(),
            id,
        })
    }

    /// Removes a network nobody is in.
    pub(crate) fn remove(&self, id: &str) -> Result<(), Refusal> {
        let record = {
            let mut known = self.lock();
            let found = known.networks.values().find(|network| network.record.id == id);
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
            let inside = known.places.iter().find(|((_, network), _)| *network == record.name);
            if let Some((_, place)) = inside {
                return Err(Refusal::Forbidden(format!(
                    "error while removing network: network {} has active endpoints (name:\"{}\" id:\"{}\")",
                    record.name,
                    place.name,
                    crate::id::short(&place.record.endpoint_id)
                )));
            }
            known.networks.remove(&record.name);
            record
        };
        match std::fs::remove_file(self.file(&record.id)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Refusal::Failed(format!("remove network {}: {error}", record.name)));
            }
            _ => {}
        }
        let removed = bridge::remove(&record.bridge).map_err(|error| crate::log::chain(&error));
        let removed = removed.and_then(|()| self.apply().map_err(|error| crate::log::chain(&error)));
        removed.map_err(|error| Refusal::Failed(format!("remove network {}: {error}", record.name)))
    }
}

fn subnet(wanted: Option<&IpamConfig>, used: &[IpNet]) -> Result<(IpNet, Option<IpAddr>), Refusal> {
    let invalid = |text: &str| Refusal::Invalid(format!("invalid subnet or gateway {text:?}"));
    let Some(wanted) = wanted.filter(|wanted| !wanted.subnet.is_empty()) else {
        let free = Subnets::new(b"berth").free_v4(used).map_err(|error| Refusal::Failed(error.to_string()))?;
        return Ok((IpNet::V4(free), None));
    };
    let subnet: IpNet = wanted.subnet.parse().map_err(|_| invalid(&wanted.subnet))?;
    if !subnet.addr().is_ipv4() {
        return Err(Refusal::Unsupported("IPv6 in container networks is not offered yet".to_owned()));
    }
    let gateway = match wanted.gateway.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| invalid(text))?),
    };
    if used.iter().any(|other| overlap(subnet, *other)) {
        return Err(Refusal::Forbidden(
            "invalid pool request: Pool overlaps with other one on this address space".to_owned(),
        ));
    }
    Ok((subnet.trunc(), gateway))
}

impl Known {
    fn add(&mut self, record: Record) {
        let Ok(subnet) = record.subnet.parse() else {
            return crate::log::warning!("network {}: bad subnet {}, continuing", record.name, record.subnet);
        };
        match Ipam::new(subnet, None, Some(record.gateway)) {
            Ok(ipam) => {
                self.networks.insert(record.name.clone(), Network { record, ipam });
            }
            Err(error) => crate::log::warning!("network {}: {error}, continuing", record.name),
        }
    }

    fn rules(&self) -> firewall::Rules {
        let bridges = self.networks.values().map(|network| firewall::Bridge {
            name: network.record.bridge.clone(),
            gateways: vec![network.ipam.gateway_net()],
            internal: network.record.internal,
            icc: true,
            masquerade: true,
        });
        let guards = self.places.values().filter_map(|place| {
            let mac: Mac = place.record.mac.parse().ok()?;
            let address = place.record.ip.parse().ok()?;
            Some(firewall::Guard { host_name: place.record.host_name.clone(), mac, addresses: vec![address] })
        });
        firewall::Rules {
            bridges: bridges.collect(),
            publish: self.places.values().flat_map(|place| place.publish.iter().cloned()).collect(),
            guards: guards.collect(),
            host_ports: Vec::new(),
        }
    }

    fn show(&self, network: &Network) -> ApiNetwork {
        let record = &network.record;
        let inside = self.places.iter().filter(|((_, name), _)| *name == record.name);
        let containers = inside.map(|((id, _), place)| {
            let shown = berth_api::docker::networks::NetworkContainer {
                name: place.name.clone(),
                endpoint_id: place.record.endpoint_id.clone(),
                mac_address: place.record.mac.clone(),
                ipv4_address: format!("{}/{}", place.record.ip, place.record.prefix),
                ipv6_address: String::new(),
            };
            (id.clone(), shown)
        });
        let subnet = IpamConfig {
            subnet: record.subnet.clone(),
            gateway: record.gateway.to_string(),
            ..IpamConfig::default()
        };
        ApiNetwork {
            name: record.name.clone(),
            id: record.id.clone(),
            created: record.created.clone(),
            scope: "local".to_owned(),
            driver: "bridge".to_owned(),
            enable_ipv4: true,
            internal: record.internal,
            ipam: ApiIpam { driver: "default".to_owned(), options: None, config: Some(vec![subnet]) },
            containers: containers.collect(),
            options: Some(record.options.clone()),
            labels: Some(record.labels.clone()),
            ..ApiNetwork::default()
        }
    }
}

impl Network {
    fn bridge(&self) -> bridge::BridgeConfig {
        let mac = match self.ipam.gateway() {
            IpAddr::V4(gateway) => Mac::from_ipv4(gateway),
            IpAddr::V6(_) => Mac::default(),
        };
        bridge::BridgeConfig {
            name: self.record.bridge.clone(),
            gateways: vec![self.ipam.gateway_net()],
            mtu: MTU,
            mac,
        }
    }
}

/// Ethernet's: every uplink carries it.
pub(super) const MTU: u32 = 1500;

fn now_text() -> String {
    jiff::Timestamp::now().to_string()
}

fn default_network() -> Record {
    let (gateway, prefix) = DEFAULT_GATEWAY;
    let gateway = IpAddr::V4(gateway);
    let options = [
        ("com.docker.network.bridge.default_bridge", "true"),
        ("com.docker.network.bridge.enable_icc", "true"),
        ("com.docker.network.bridge.enable_ip_masquerade", "true"),
        ("com.docker.network.bridge.host_binding_ipv4", "0.0.0.0"),
        ("com.docker.network.bridge.name", DEFAULT_BRIDGE),
        ("com.docker.network.driver.mtu", "1500"),
    ];
    Record {
        format: FORMAT,
        id: predefined_id(DEFAULT),
        name: DEFAULT.to_owned(),
        created: now_text(),
        bridge: DEFAULT_BRIDGE.to_owned(),
        subnet: IpNet::new(gateway, prefix).map_or_else(|_| IpNet::from(gateway), |net| net.trunc()).to_string(),
        gateway,
        internal: false,
        labels: BTreeMap::new(),
        options: options.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
    }
}

/// The predefined networks keep one id for ever.
fn predefined_id(name: &str) -> String {
    crate::id::hex(&Sha256::digest(format!("predefined network {name}")))
}

fn without_addresses(name: &str, driver: &str) -> ApiNetwork {
    ApiNetwork {
        name: name.to_owned(),
        id: predefined_id(name),
        created: "0001-01-01T00:00:00Z".to_owned(),
        scope: "local".to_owned(),
        driver: driver.to_owned(),
        enable_ipv4: true,
        ipam: ApiIpam { driver: "default".to_owned(), options: None, config: None },
        options: Some(BTreeMap::new()),
        labels: Some(BTreeMap::new()),
        ..ApiNetwork::default()
    }
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
