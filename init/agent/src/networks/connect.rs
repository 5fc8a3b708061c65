//! A container's place in a network: address, interface, published ports, firewall.

use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::BorrowedFd;

use berth_net::ports::{Held, HoldError, hold, hold_both};
use berth_net::pool::PoolError;
use berth_net::veth::{AttachError, Port};
use berth_net::{Mac, Protocol, firewall, veth};

use super::publish::{WantedPort, port_key};
use super::registry::{MTU, Networks, Place, VETH_PREFIX};
use crate::store::EndpointRecord;

/// What a container wants of a network.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// Container id.
    pub(crate) container: String,
    /// Container name, for messages.
    pub(crate) name: String,
    /// Network name.
    pub(crate) network: String,
    /// Interface name inside.
    pub(crate) interface: String,
    /// A fixed address.
    pub(crate) ip: Option<IpAddr>,
    /// A fixed Ethernet address.
    pub(crate) mac: Option<Mac>,
    /// Take the default route.
    pub(crate) gateway: bool,
    /// Ports to publish.
    pub(crate) ports: Vec<WantedPort>,
}

/// Why a container has no place in a network.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// No such network.
    #[error("network {0} not found")]
    NoNetwork(String),
    /// No address to be had.
    #[error("no address")]
    Address(#[source] PoolError),
    /// A port is taken.
    #[error("driver failed programming external connectivity on endpoint {name} ({endpoint}): {reason}")]
    Port {
        /// Container name.
        name: String,
        /// Endpoint id.
        endpoint: String,
        /// Docker's words.
        reason: String,
    },
    /// The interface cannot be made.
    #[error("interface")]
    Interface(#[source] AttachError),
    /// The firewall refuses.
    #[error("firewall")]
    Firewall(#[source] firewall::ApplyError),
    /// No randomness.
    #[error("no random id")]
    Random(#[source] getrandom::Error),
}

impl Networks {
    /// Gives a container its place. On an error nothing is left.
    pub(crate) fn connect(&self, wanted: &Wanted, netns: BorrowedFd<'_>) -> Result<EndpointRecord, ConnectError> {
        let record = self.reserve(wanted)?;
        let made = self
            .publish(wanted, &record)
            .and_then(|()| self.attach(wanted, &record, netns).map_err(ConnectError::Interface))
            .and_then(|()| self.apply().map_err(ConnectError::Firewall));
        if let Err(error) = made {
            self.disconnect(&wanted.container);
            return Err(error);
        }
        let known = self.lock();
        let key = (wanted.container.clone(), wanted.network.clone());
        Ok(known.places.get(&key).map_or(record, |place| place.record.clone()))
    }

    /// Takes an address and writes the place down, so that nobody else gets it.
    fn reserve(&self, wanted: &Wanted) -> Result<EndpointRecord, ConnectError> {
        let endpoint_id = crate::id::random().map_err(ConnectError::Random)?;
        let mut known = self.lock();
        let network = known.networks.get_mut(&wanted.network);
        let network = network.ok_or_else(|| ConnectError::NoNetwork(wanted.network.clone()))?;
        let address = match wanted.ip {
            Some(address) => network.ipam.reserve(address).map(|()| address),
            None => network.ipam.allocate(),
        };
        let address = address.map_err(ConnectError::Address)?;
        let mac = wanted.mac.unwrap_or_else(|| match address {
            IpAddr::V4(address) => Mac::from_ipv4(address),
            IpAddr::V6(_) => Mac::default(),
        });
        let record = EndpointRecord {
            network_id: network.record.id.clone(),
            ip: address.to_string(),
            prefix: network.ipam.subnet().prefix_len(),
            gateway: network.ipam.gateway().to_string(),
            mac: mac.to_string(),
            host_name: format!("{VETH_PREFIX}{}", endpoint_id.get(..7).unwrap_or_default()),
            endpoint_id,
            ports: Vec::new(),
        };
        let key = (wanted.container.clone(), wanted.network.clone());
        let place =
            Place { name: wanted.name.clone(), record: record.clone(), publish: Vec::new(), held: Vec::new() };
        known.places.insert(key, place);
        Ok(record)
    }

    fn publish(&self, wanted: &Wanted, record: &EndpointRecord) -> Result<(), ConnectError> {
        let mut held = Vec::new();
        let mut shown = Vec::new();
        for port in &wanted.ports {
            let sockets = hold_any(port).map_err(|reason| ConnectError::Port {
                name: wanted.name.clone(),
                endpoint: record.endpoint_id.clone(),
                reason,
            })?;
            for socket in sockets {
                let (number, protocol) = port.container;
                let host = socket.address;
                shown.push((format!("{number}/{protocol}"), host.ip().to_string(), host.port()));
                held.push(socket);
            }
        }
        let mut known = self.lock();
        if let Some(place) = known.places.get_mut(&(wanted.container.clone(), wanted.network.clone())) {
            place.record.ports = shown;
            place.publish = publishes(&place.record);
            place.held = held;
        }
        Ok(())
    }

    fn attach(&self, wanted: &Wanted, record: &EndpointRecord, netns: BorrowedFd<'_>) -> Result<(), AttachError> {
        let (bridge, address) = {
            let known = self.lock();
            let network = known.networks.get(&wanted.network);
            let network = network.ok_or_else(|| AttachError::NoBridge(wanted.network.clone()))?;
            let address = record.ip.parse().unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
            (network.record.bridge.clone(), network.ipam.interface_net(address))
        };
        let gateways = if wanted.gateway { record.gateway.parse().ok().into_iter().collect() } else { Vec::new() };
        let port = Port {
            bridge,
            host_name: record.host_name.clone(),
            container_name: wanted.interface.clone(),
            mac: record.mac.parse().unwrap_or_default(),
            addresses: vec![address],
            gateways,
            mtu: MTU,
            isolated: false,
        };
        veth::attach(netns, &port)
    }

    /// Takes a container out of all networks. What cannot be undone is logged.
    pub(crate) fn disconnect(&self, container: &str) {
        let mut gone = Vec::new();
        {
            let mut known = self.lock();
            let keys: Vec<_> = known.places.keys().filter(|(id, _)| id == container).cloned().collect();
            for key in keys {
                let Some(place) = known.places.remove(&key) else { continue };
                if let (Some(network), Ok(address)) = (known.networks.get_mut(&key.1), place.record.ip.parse()) {
                    network.ipam.release(address);
                }
                gone.push(place);
            }
        }
        if gone.is_empty() {
            return;
        }
        for place in &gone {
            if let Err(error) = veth::detach(&place.record.host_name) {
                crate::log::warning!("{}: {}, continuing", place.record.host_name, crate::log::chain(&error));
            }
        }
        if let Err(error) = self.apply() {
            crate::log::warning!("firewall: {}, continuing", crate::log::chain(&error));
        }
    }

    /// The place of a container that outlived the agent. Before [`Networks::prepare`].
    pub(crate) fn restore(&self, container: &str, name: &str, network: &str, record: &EndpointRecord) {
        let mut held = Vec::new();
        for (key, ip, port) in &record.ports {
            let socket = port_key(key).ok().zip(ip.parse().ok()).map(|((_, protocol), ip)| hold(protocol, ip, *port));
            match socket {
                Some(Ok(socket)) => held.push(socket),
                Some(Err(error)) => crate::log::warning!("{}, continuing", crate::log::chain(&error)),
                None => {}
            }
        }
        let mut known = self.lock();
        if let (Some(network), Ok(address)) = (known.networks.get_mut(network), record.ip.parse())
            && let Err(error) = network.ipam.reserve(address)
        {
            crate::log::warning!("{name}: {error}, continuing");
        }
        let place =
            Place { name: name.to_owned(), record: record.clone(), publish: publishes(record), held };
        known.places.insert((container.to_owned(), network.to_owned()), place);
    }
}

fn publishes(record: &EndpointRecord) -> Vec<firewall::Publish> {
    let Ok(container_ip) = record.ip.parse::<IpAddr>() else { return Vec::new() };
    let one = |(key, ip, host_port): &(String, String, u16)| {
        let (container_port, protocol) = port_key(key).ok()?;
        let host_ip: IpAddr = ip.parse().ok()?;
        // A container without IPv6 is published on IPv4; the IPv6 socket only keeps the port.
        (host_ip.is_ipv4() == container_ip.is_ipv4()).then_some(firewall::Publish {
            protocol,
            host_ip,
            host_port: *host_port,
            container_ip,
            container_port,
        })
    };
    record.ports.iter().filter_map(one).collect()
}

fn hold_any(port: &WantedPort) -> Result<Vec<Held>, String> {
    let protocol: Protocol = port.container.1;
    let mut last = String::new();
    for host_port in &port.host_ports {
        let held = match port.host_ip {
            Some(ip) => hold(protocol, ip, *host_port).map(|held| vec![held]),
            None => hold_both(protocol, *host_port).map(Vec::from),
        };
        match held {
            Ok(held) => return Ok(held),
            Err(HoldError::InUse { address, .. }) => {
                last = format!("Bind for {address} failed: port is already allocated");
            }
            Err(error) => last = crate::log::chain(&error),
        }
    }
    Err(last)
}
