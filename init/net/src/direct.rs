//! A container's interface directly on the network of one of the machine's interfaces: macvlan and ipvlan.
//!
//! There is no bridge and no machine's side: the interface is made inside the namespace and goes with it. Neither our
//! firewall nor our checks of sender addresses see its packets; the kernel keeps them from the machine itself.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::IpNet;
use rtnetlink::packet_route::link::{
    InfoData, InfoIpVlan, InfoKind, InfoMacVlan, IpVlanMode, LinkAttribute, LinkInfo, LinkMessage,
    MacVlanMode,
};
use rustix::io::Errno;

use crate::mac::Mac;
use crate::netlink::{CREATE, EXCLUSIVE, Request, Route, delete_link, new_link};
use crate::veth::{AttachError, Inner, container_side, inside};

/// How the interface shares the machine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// With an Ethernet address of its own.
    Macvlan(Macvlan),
    /// With the machine's Ethernet address.
    Ipvlan(Ipvlan),
}

/// Who may talk to whom among containers on the same interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Macvlan {
    /// All of them, directly.
    Bridge,
    /// Nobody.
    Private,
    /// Through a switch that sends frames back.
    Vepa,
    /// One container has the interface for itself.
    Passthru,
}

/// The layer at which packets are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ipvlan {
    /// Neighbours see the container.
    L2,
    /// The machine routes; no neighbour discovery.
    L3,
    /// The same, through the machine's packet filter.
    L3s,
}

/// What a container's interface shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectPort {
    /// The machine's interface.
    pub parent: String,
    /// How it is shared.
    pub kind: Kind,
    /// Interface name in the container (`eth0`).
    pub container_name: String,
    /// Ethernet address, for macvlan.
    pub mac: Mac,
    /// Addresses with the prefix lengths of the subnets.
    pub addresses: Vec<IpNet>,
    /// Default routes, at most one for each family.
    pub gateways: Vec<IpAddr>,
    /// Largest packet in bytes; the machine's interface's when none is given.
    pub mtu: Option<u32>,
}

/// Makes the interface inside the namespace and sets it up.
pub fn attach(netns: BorrowedFd<'_>, port: &DirectPort) -> Result<(), AttachError> {
    let name = &port.container_name;
    let socket = |source| AttachError::Socket { name: name.clone(), source };
    let mut route = Route::open().map_err(socket)?;
    let parent = route.index_of(&port.parent).map_err(socket)?;
    let parent = parent.ok_or_else(|| AttachError::NoParent(port.parent.clone()))?;
    let outcome = route.apply(&[create(netns, port, parent)]).map_err(socket)?;
    outcome.map_err(|(_, source)| AttachError::Refused { name: name.clone(), step: "create", source })?;

    // At layer 3 there are no neighbours to ask for a gateway: everything is on the link.
    let routed = matches!(port.kind, Kind::Ipvlan(Ipvlan::L3 | Ipvlan::L3s));
    let everything = |gateway: &IpAddr| match gateway {
        IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
    };
    let on_link: Vec<IpNet> =
        if routed { port.gateways.iter().map(everything).collect() } else { Vec::new() };
    let inner = Inner {
        name,
        addresses: &port.addresses,
        gateways: if routed { &[] } else { &port.gateways },
        device_routes: &on_link,
    };
    let made = inside(netns, || container_side(name, &inner));
    if made.is_err() {
        // It goes with its namespace in any case.
        let _ = detach(netns, name);
    }
    made
}

/// Removes the interface of that name from the namespace; one that is not there is fine.
pub fn detach(netns: BorrowedFd<'_>, name: &str) -> Result<(), AttachError> {
    inside(netns, || {
        let socket = |source| AttachError::Socket { name: name.to_owned(), source };
        let mut route = Route::open().map_err(socket)?;
        match route.apply(&[delete_link(name)]).map_err(socket)? {
            Ok(()) => Ok(()),
            Err((_, failure)) if failure.errno == Errno::NODEV => Ok(()),
            Err((_, source)) => Err(AttachError::Refused { name: name.to_owned(), step: "remove", source }),
        }
    })
}

fn create(netns: BorrowedFd<'_>, port: &DirectPort, parent: u32) -> Request {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(port.container_name.clone()));
    message.attributes.push(LinkAttribute::Link(parent));
    message.attributes.push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
    if let Some(mtu) = port.mtu {
        message.attributes.push(LinkAttribute::Mtu(mtu));
    }
    let (kind, data) = match port.kind {
        Kind::Macvlan(mode) => {
            message.attributes.push(LinkAttribute::Address(port.mac.0.to_vec()));
            let mode = match mode {
                Macvlan::Bridge => MacVlanMode::Bridge,
                Macvlan::Private => MacVlanMode::Private,
                Macvlan::Vepa => MacVlanMode::Vepa,
                Macvlan::Passthru => MacVlanMode::Passthrough,
            };
            (InfoKind::MacVlan, InfoData::MacVlan(vec![InfoMacVlan::Mode(mode)]))
        }
        Kind::Ipvlan(mode) => {
            let mode = match mode {
                Ipvlan::L2 => IpVlanMode::L2,
                Ipvlan::L3 => IpVlanMode::L3,
                Ipvlan::L3s => IpVlanMode::L3S,
            };
            (InfoKind::IpVlan, InfoData::IpVlan(vec![InfoIpVlan::Mode(mode)]))
        }
    };
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)]));
    new_link(&message, CREATE | EXCLUSIVE)
}

/// Whether the machine has an interface of that name.
pub fn has_parent(name: &str) -> io::Result<bool> {
    Ok(Route::open()?.index_of(name)?.is_some())
}
