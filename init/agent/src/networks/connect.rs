//! Giving containers their places: at their start all at once, and one more while they run.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use berth_net::direct::{self, DirectPort};
use berth_net::pool::PoolError;
use berth_net::ports::hold;
use berth_net::veth::{AttachError, Port};
use berth_net::{firewall, veth};

use super::options::Driver;
use super::place::Place;
use super::publish::port_key;
use super::record::DEFAULT;
use super::registry::Networks;
use super::wanted::Member;
use crate::store::EndpointRecord;

/// Why a container has no place in a network.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// No such network.
    #[error("network {0} not found")]
    NoNetwork(String),
    /// No address to be had.
    #[error(transparent)]
    Address(PoolError),
    /// An address asked for lies elsewhere.
    #[error("invalid endpoint settings:\nno configured subnet contains IP address {0}")]
    Outside(IpAddr),
    /// Addresses are asked for where the machine chooses the subnet.
    #[error(
        "invalid endpoint settings:\nuser specified IP address is supported only when connecting to networks with \
         user configured subnets"
    )]
    NotConfigured,
    /// The same of the default network.
    #[error("user specified IP address is supported on user defined networks only")]
    NotOnDefault,
    /// A link to nobody.
    #[error("Cannot link to a non running container: {target} AS /{container}/{name}")]
    NoLink {
        /// The container linked to.
        target: String,
        /// The container that has the link.
        container: String,
        /// The link.
        name: String,
    },
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

/// A container's places, by network name.
pub(crate) type Endpoints = Vec<(String, EndpointRecord)>;

impl Networks {
    /// Gives a container all its places. On an error nothing is left.
    pub(crate) fn join(
        self: &Arc<Self>,
        member: &Member,
        netns: BorrowedFd<'_>,
    ) -> Result<Endpoints, ConnectError> {
        let made = self.join_steps(member, netns);
        if made.is_err() {
            self.leave(&member.id);
        }
        made
    }

    fn join_steps(&self, member: &Member, netns: BorrowedFd<'_>) -> Result<Endpoints, ConnectError> {
        let first = self.resolve(&member.first);
        let mut wanted: Vec<_> = member.networks.iter().collect();
        // The network it was made for has the first interface; the others follow by name.
        wanted.sort_by_key(|wanted| (Some(&wanted.network) != first.as_ref(), &wanted.network));
        for wanted in &wanted {
            self.lock().reserve(member, wanted)?;
        }
        self.publish(member)?;
        for wanted in &wanted {
            self.attach(&member.id, &wanted.network, netns).map_err(ConnectError::Interface)?;
        }
        self.apply().map_err(ConnectError::Firewall)?;
        self.forget_flows_to_ports(&member.id);
        for wanted in &wanted {
            self.arrived(&member.id, &wanted.network);
        }
        Ok(self.endpoints(&member.id))
    }

    /// Gives a running container one more place. On an error it has those it had.
    pub(crate) fn connect(
        &self,
        member: &Member,
        network: &str,
        netns: BorrowedFd<'_>,
    ) -> Result<Endpoints, ConnectError> {
        let wanted = member.of_network(network).ok_or_else(|| ConnectError::NoNetwork(network.to_owned()))?;
        self.lock().reserve(member, wanted)?;
        let made = self
            .publish(member)
            .and_then(|()| self.attach(&member.id, network, netns).map_err(ConnectError::Interface))
            .and_then(|()| self.apply().map_err(ConnectError::Firewall));
        if let Err(error) = made {
            self.disconnect(&member.id, network, netns);
            return Err(error);
        }
        self.forget_flows_to_ports(&member.id);
        self.arrived(&member.id, network);
        Ok(self.endpoints(&member.id))
    }

    /// Shows the names of a container that has come to a network.
    fn arrived(&self, container: &str, network: &str) {
        // Its other networks' servers learn of this one.
        self.show_names_of(container);
        self.tell(network, "connect", Some(container));
    }

    /// A container's places.
    pub(super) fn endpoints(&self, container: &str) -> Endpoints {
        let known = self.lock();
        let places = known.places_of(container);
        places.map(|(network, place)| (network.to_owned(), place.record.clone())).collect()
    }

    fn attach(&self, container: &str, network: &str, netns: BorrowedFd<'_>) -> Result<(), AttachError> {
        let missing = || AttachError::NoBridge(network.to_owned());
        let known = self.lock();
        let place = known.places.get(&(container.to_owned(), network.to_owned())).ok_or_else(missing)?;
        let record = place.record.clone();
        let net = known.networks.get(network).ok_or_else(missing)?;
        let addresses = net.interface_nets(&record);
        let gateways = known.gateways_by(container, network);
        let mac = record.mac.parse().unwrap_or_default();
        match &net.settings.driver {
            Driver::Bridge(bridge) => {
                let port = Port {
                    bridge: net.record.bridge.clone(),
                    host_name: record.host_name,
                    container_name: record.interface,
                    mac,
                    addresses,
                    gateways,
                    mtu: net.settings.bridge_mtu(),
                    isolated: !bridge.icc,
                };
                drop(known);
                veth::attach(netns, &port)
            }
            Driver::Direct { parent, kind } => {
                let port = DirectPort {
                    parent: parent.clone(),
                    kind: *kind,
                    container_name: record.interface,
                    mac,
                    addresses,
                    gateways,
                    mtu: net.settings.direct_mtu(),
                };
                drop(known);
                direct::attach(netns, &port)
            }
        }
    }

    /// A container that outlived the agent. Before [`Networks::prepare`].
    pub(crate) fn restore(&self, member: &Member, network: &str, record: &EndpointRecord) {
        let mut held = Vec::new();
        for (key, ip, port) in &record.ports {
            let socket =
                port_key(key).ok().zip(ip.parse().ok()).map(|((_, protocol), ip)| hold(protocol, ip, *port));
            match socket {
                Some(Ok(socket)) => held.push(socket),
                Some(Err(error)) => crate::log::warning!("{}, continuing", crate::log::chain(&error)),
                None => {}
            }
        }
        let Some(wanted) = member.of_network(network) else { return };
        let mut place = Place::of(member, wanted, record.clone());
        if place.record.interface.is_empty() {
            // Written by an agent that knew one interface.
            "eth0".clone_into(&mut place.record.interface);
        }
        place.held = held;
        let mut known = self.lock();
        let addresses = place.addresses();
        if let Some(network) = known.networks.get_mut(network)
            && let Err(error) = network.retake(&addresses)
        {
            crate::log::warning!("{}: {error}, continuing", member.name);
        }
        known.places.insert((member.id.clone(), network.to_owned()), place);
    }

    /// What `/etc/hosts` says for the links of the default network, where no name server answers: address and names.
    pub(crate) fn linked(&self, member: &Member) -> Result<Vec<(IpAddr, String)>, ConnectError> {
        let Some(wanted) = member.of_network(DEFAULT) else { return Ok(Vec::new()) };
        let known = self.lock();
        let mut linked = Vec::new();
        for (name, target) in &wanted.links {
            let named =
                |(id, place): (&String, &Place)| place.name == *target || id.starts_with(target.as_str());
            let inside = known.places.iter().filter(|((_, network), _)| network == DEFAULT);
            let mut found = inside.map(|((id, _), place)| (id, place)).filter(|it| named(*it));
            let (id, place) = found.next().ok_or_else(|| ConnectError::NoLink {
                target: format!("/{target}"),
                container: member.name.clone(),
                name: name.clone(),
            })?;
            let names = [name.as_str(), crate::id::short(id), place.name.as_str()];
            let mut names: Vec<&str> = names.to_vec();
            names.dedup();
            let names = names.join(" ");
            linked.extend(place.addresses().into_iter().map(|address| (address, names.clone())));
        }
        Ok(linked)
    }
}
