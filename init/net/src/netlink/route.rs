//! Links, addresses and routes: typed requests over a [`Socket`].

use std::io;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rtnetlink::packet_core::{Emitable, Parseable};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope, CacheInfo,
};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage, Stats64};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;

use super::socket::{Failure, Message, Request, Socket};
use crate::mac::Mac;

const NETLINK_ROUTE: isize = 0;
const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const DEL_ADDRESS: u16 = 21;
const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;
const DEL_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;

/// `NLM_F_REPLACE`: change what is there.
pub(crate) const REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`: refuse when it is there.
pub(crate) const EXCLUSIVE: u16 = 0x200;
/// `NLM_F_CREATE`: make it when it is not there.
pub(crate) const CREATE: u16 = 0x400;

/// A socket for links, addresses and routes.
#[derive(Debug)]
pub struct Route {
    socket: Socket,
}

/// One interface as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Number.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Ethernet address, where it has one.
    pub mac: Option<Mac>,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Kind (`veth`, `bridge`), empty for hardware.
    pub kind: String,
    /// Number of the bridge it is a port of.
    pub controller: Option<u32>,
    /// Switched on.
    pub up: bool,
    /// The cable is in: the other side is there.
    pub carrier: bool,
    /// The loopback interface.
    pub loopback: bool,
}

impl Route {
    /// Opens the socket in the thread's network namespace.
    pub fn open() -> io::Result<Route> {
        Ok(Route { socket: Socket::open(NETLINK_ROUTE)? })
    }

    /// Sends the requests at once; the first refusal is returned with its place in the list.
    pub fn apply(&mut self, requests: &[Request]) -> io::Result<Result<(), (usize, Failure)>> {
        let answers = self.socket.send_all(requests)?;
        let refused = answers.into_iter().enumerate().find_map(|(at, answer)| answer.err().map(|f| (at, f)));
        Ok(refused.map_or(Ok(()), Err))
    }

    /// The number of the interface called `name`, or `None`. Unlike [`Route::find`] it does not wait for whoever holds
    /// the kernel's lock on interfaces.
    pub fn index_of(&self, name: &str) -> io::Result<Option<u32>> {
        match name_to_index(&self.socket, name) {
            Ok(index) => Ok(Some(index)),
            Err(Errno::NODEV) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The interface called `name`, or `None`.
    pub fn find(&mut self, name: &str) -> io::Result<Option<Interface>> {
        Ok(self.get_link(name)?.and_then(|messages| messages.iter().find_map(interface)))
    }

    fn get_link(&mut self, name: &str) -> io::Result<Option<Vec<Message>>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let answer = self.socket.get(&Request { kind: GET_LINK, flags: 0, body: bytes_of(&message) })?;
        match answer {
            Ok(messages) => Ok(Some(messages)),
            Err(failure) if failure.errno == Errno::NODEV => Ok(None),
            Err(failure) => Err(failure.errno.into()),
        }
    }

    /// The counters of the interface called `name`, or `None`.
    pub(crate) fn counters(&mut self, name: &str) -> io::Result<Option<Stats64>> {
        let counters = |message: &Message| {
            let link = LinkMessage::parse(&message.body).ok()?;
            link.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::Stats64(counters) => Some(counters),
                _ => None,
            })
        };
        Ok(self.get_link(name)?.and_then(|messages| messages.iter().find_map(counters)))
    }

    /// All interfaces.
    pub fn list(&mut self) -> io::Result<Vec<Interface>> {
        let request = Request { kind: GET_LINK, flags: 0, body: bytes_of(&LinkMessage::default()) };
        let messages = self.socket.dump(&request)?.map_err(|failure| io::Error::from(failure.errno))?;
        Ok(messages.iter().filter_map(interface).collect())
    }

    /// Addresses that reach beyond the link, with the interfaces they are on.
    pub fn addresses(&mut self) -> io::Result<Vec<(u32, IpNet)>> {
        let request = Request { kind: GET_ADDRESS, flags: 0, body: bytes_of(&AddressMessage::default()) };
        let messages = self.socket.dump(&request)?.map_err(|failure| io::Error::from(failure.errno))?;
        Ok(messages.iter().filter_map(address).collect())
    }

    /// Default gateways, with the interfaces they are reached by.
    pub fn gateways(&mut self) -> io::Result<Vec<(u32, IpAddr)>> {
        let request = Request { kind: GET_ROUTE, flags: 0, body: bytes_of(&RouteMessage::default()) };
        let messages = self.socket.dump(&request)?.map_err(|failure| io::Error::from(failure.errno))?;
        Ok(messages.iter().filter_map(gateway).collect())
    }
}

fn address(message: &Message) -> Option<(u32, IpNet)> {
    let address = AddressMessage::parse(&message.body).ok()?;
    // Site-local IPv6 addresses are deprecated but still handed out (by QEMU's user network, for one).
    let far = matches!(address.header.scope, AddressScope::Universe | AddressScope::Site);
    if message.kind != NEW_ADDRESS || !far {
        return None;
    }
    let ip = |wanted_local: bool| {
        address.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(ip) if wanted_local => Some(*ip),
            AddressAttribute::Address(ip) if !wanted_local => Some(*ip),
            _ => None,
        })
    };
    let net = IpNet::new(ip(true).or_else(|| ip(false))?, address.header.prefix_len).ok()?;
    Some((address.header.index, net))
}

fn gateway(message: &Message) -> Option<(u32, IpAddr)> {
    let route = RouteMessage::parse(&message.body).ok()?;
    let header = &route.header;
    let plain = header.destination_prefix_length == 0 && header.kind == RouteType::Unicast;
    if message.kind != NEW_ROUTE || !plain || header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let mut gateway = None;
    let mut index = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(IpAddr::V4(*address)),
            RouteAttribute::Gateway(RouteAddress::Inet6(address)) => gateway = Some(IpAddr::V6(*address)),
            RouteAttribute::Oif(oif) => index = Some(*oif),
            _ => {}
        }
    }
    index.zip(gateway)
}

fn interface(message: &Message) -> Option<Interface> {
    if message.kind != NEW_LINK {
        return None;
    }
    LinkMessage::parse(&message.body).ok().map(|link| Interface::from_message(&link))
}

impl Interface {
    /// Reads the fields out of a link message.
    pub(crate) fn from_message(link: &LinkMessage) -> Interface {
        let flags = link.header.flags;
        let mut interface = Interface {
            index: link.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            kind: String::new(),
            controller: None,
            up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::LowerUp),
            loopback: flags.contains(LinkFlags::Loopback),
        };
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::IfName(name) => interface.name.clone_from(name),
                LinkAttribute::Address(octets) => {
                    interface.mac = <[u8; 6]>::try_from(octets.as_slice()).ok().map(Mac);
                }
                LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
                LinkAttribute::Controller(index) if *index != 0 => interface.controller = Some(*index),
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        if let LinkInfo::Kind(kind) = info {
                            interface.kind = kind.to_string();
                        }
                    }
                }
                _ => {}
            }
        }
        interface
    }
}

/// Bytes of a message without the netlink header.
pub(crate) fn bytes_of(message: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}

/// Makes or changes a link.
pub(crate) fn new_link(message: &LinkMessage, flags: u16) -> Request {
    Request { kind: NEW_LINK, flags, body: bytes_of(message) }
}

/// Removes the link called `name`.
pub(crate) fn delete_link(name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    Request { kind: DEL_LINK, flags: 0, body: bytes_of(&message) }
}

/// Switches link number `index` on.
pub(crate) fn link_up(index: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    switch_on(&mut message);
    new_link(&message, 0)
}

/// Adds "switch it on" to a link message.
pub(crate) fn switch_on(message: &mut LinkMessage) {
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
}

/// Gives link number `index` an address for ever; there is no wait for duplicate address detection.
pub(crate) fn add_address(index: u32, address: IpNet) -> Request {
    address_request(index, address, None, true)
}

/// Gives link number `index` an address, or gives the one it has another lifetime. Duplicates are looked for.
pub(crate) fn lend_address(index: u32, address: IpNet, valid_s: Option<u32>) -> Request {
    address_request(index, address, valid_s, false)
}

fn address_request(index: u32, address: IpNet, valid_s: Option<u32>, no_dad: bool) -> Request {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = address.prefix_len();
    message.header.scope = AddressScope::Universe;
    let ip = address.addr();
    message.header.family = family(ip);
    message.attributes.push(AddressAttribute::Local(ip));
    message.attributes.push(AddressAttribute::Address(ip));
    if let IpNet::V4(net) = address {
        if net.prefix_len() < 31 {
            message.attributes.push(AddressAttribute::Broadcast(net.broadcast()));
        }
    } else if no_dad {
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    if let Some(seconds) = valid_s {
        let mut lifetime = CacheInfo::default();
        (lifetime.ifa_valid, lifetime.ifa_preferred) = (seconds, seconds);
        message.attributes.push(AddressAttribute::CacheInfo(lifetime));
    }
    Request { kind: NEW_ADDRESS, flags: CREATE | REPLACE, body: bytes_of(&message) }
}

/// Takes an address from link number `index`.
pub(crate) fn delete_address(index: u32, address: IpNet) -> Request {
    let Request { body, .. } = address_request(index, address, None, false);
    Request { kind: DEL_ADDRESS, flags: 0, body }
}

/// A route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Path {
    /// Where to; a prefix length of 0 is everything of that family.
    pub(crate) destination: IpNet,
    /// By way of; `None` when the destination is on the link itself.
    pub(crate) gateway: Option<IpAddr>,
    /// The machine's address packets get; the route goes when the address goes.
    pub(crate) source: Option<IpAddr>,
    /// Lower is preferred.
    pub(crate) metric: u32,
}

/// A route over link `index`. A gateway need not be inside a prefix of the link.
pub(crate) fn add_route(index: u32, path: &Path) -> Request {
    Request { kind: NEW_ROUTE, flags: CREATE | REPLACE, body: bytes_of(&route_message(index, path)) }
}

/// Removes a route.
pub(crate) fn delete_route(index: u32, path: &Path) -> Request {
    Request { kind: DEL_ROUTE, flags: 0, body: bytes_of(&route_message(index, path)) }
}

fn route_message(index: u32, path: &Path) -> RouteMessage {
    let ipv4 = path.destination.addr().is_ipv4();
    let mut message = RouteMessage::default();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.kind = RouteType::Unicast;
    message.header.address_family = if ipv4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.scope =
        if path.gateway.is_none() && ipv4 { RouteScope::Link } else { RouteScope::Universe };
    message.header.destination_prefix_length = path.destination.prefix_len();
    if path.destination.prefix_len() > 0 {
        let destination = route_address(path.destination.network());
        message.attributes.push(RouteAttribute::Destination(destination));
    }
    if let Some(gateway) = path.gateway {
        message.header.flags = RouteFlags::Onlink;
        message.attributes.push(RouteAttribute::Gateway(route_address(gateway)));
    }
    if let Some(source) = path.source {
        message.attributes.push(RouteAttribute::PrefSource(route_address(source)));
    }
    message.attributes.push(RouteAttribute::Oif(index));
    if path.metric > 0 {
        message.attributes.push(RouteAttribute::Priority(path.metric));
    }
    message
}

/// Everything of the family of `gateway`, by way of it.
pub(crate) fn default_path(gateway: IpAddr) -> Path {
    let destination =
        if gateway.is_ipv4() { IpNet::V4(Ipv4Net::default()) } else { IpNet::V6(Ipv6Net::default()) };
    Path { destination, gateway: Some(gateway), source: None, metric: 0 }
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
