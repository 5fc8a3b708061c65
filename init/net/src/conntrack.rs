//! Forgetting connections: the kernel decides on address translation with a flow's first packet, so a long-lived UDP
//! flow keeps going to a container that is gone, or past one that has come. Only flows named exactly are removed.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rustix::io::Errno;

use crate::netlink::{Failure, Request, Route, Socket};
use crate::ports::Protocol;

const NETLINK_NETFILTER: isize = 12;
const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
/// `nfgenmsg` before the attributes: family, version, resource.
const GENERIC_BYTES: usize = 4;

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const ID: u16 = 12;
const ZONE: u16 = 18;
const STATUS_DNAT: u32 = 0x20;

/// Flows to be forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// To a published port: those redirected to a container that lost it, and those that reached the machine itself
    /// before a container had it.
    Published {
        /// The protocol.
        protocol: Protocol,
        /// The machine's address; unspecified means all of that family.
        host_ip: IpAddr,
        /// The machine's port.
        host_port: u16,
    },
    /// From or to a container's address.
    Container(IpAddr),
}

/// Why flows could not be forgotten.
#[derive(Debug, thiserror::Error)]
pub enum FlushError {
    /// The netlink socket failed.
    #[error("talk to connection tracking")]
    Socket(#[source] io::Error),
    /// The kernel would not list its flows.
    #[error("list tracked connections")]
    List(#[source] Failure),
    /// The kernel would not remove a flow.
    #[error("remove a tracked connection")]
    Remove(#[source] Failure),
}

/// Forgets all flows that match one of `flows`; returns how many there were.
pub fn flush(flows: &[Flow]) -> Result<usize, FlushError> {
    if flows.is_empty() {
        return Ok(0);
    }
    let local = Route::open().and_then(|mut route| route.addresses()).map_err(FlushError::Socket)?;
    let local: BTreeSet<IpAddr> = local.into_iter().map(|(_, net)| net.addr()).collect();
    flush_matching(&|entry| flows.iter().any(|flow| entry.matches(flow, &local)))
}

/// Forgets the flows of addresses in `subnets` that are not among `live`: of containers that went while nobody looked.
pub fn flush_strays(subnets: &[IpNet], live: &BTreeSet<IpAddr>) -> Result<usize, FlushError> {
    let stray =
        |address: &IpAddr| !live.contains(address) && subnets.iter().any(|subnet| subnet.contains(address));
    flush_matching(&|entry| entry.ends().iter().any(stray))
}

fn flush_matching(unwanted: &dyn Fn(&Entry<'_>) -> bool) -> Result<usize, FlushError> {
    let mut socket = Socket::open(NETLINK_NETFILTER).map_err(FlushError::Socket)?;
    let outcome = flush_over(&mut socket, unwanted);
    socket.close_aside();
    outcome
}

fn flush_over(socket: &mut Socket, unwanted: &dyn Fn(&Entry<'_>) -> bool) -> Result<usize, FlushError> {
    let list = Request { kind: GET, flags: 0, body: vec![0; GENERIC_BYTES] };
    let entries = socket.dump(&list).map_err(FlushError::Socket)?.map_err(FlushError::List)?;
    let matching = entries.iter().filter_map(|message| {
        let entry = Entry::parse(&message.body)?;
        unwanted(&entry).then(|| entry.removal(&message.body))
    });
    let removals: Vec<Request> = matching.collect();
    let answers = socket.send_all(&removals).map_err(FlushError::Socket)?;
    for answer in answers {
        match answer {
            // It ended by itself meanwhile.
            Err(failure) if failure.errno == Errno::NOENT => {}
            answer => answer.map_err(FlushError::Remove)?,
        }
    }
    Ok(removals.len())
}

/// One direction of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tuple {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    destination_port: u16,
}

/// A tracked flow.
#[derive(Debug)]
struct Entry<'a> {
    original: Tuple,
    reply: Tuple,
    status: u32,
    /// What names the flow to the kernel, as it was listed.
    name: Vec<(u16, &'a [u8])>,
}

impl<'a> Entry<'a> {
    fn parse(body: &'a [u8]) -> Option<Entry<'a>> {
        let attributes: Vec<(u16, &[u8])> = attributes(body.get(GENERIC_BYTES..)?).collect();
        let find = |kind| attributes.iter().find(|(at, _)| *at == kind).map(|(_, value)| *value);
        let status = find(STATUS)?.try_into().ok().map(u32::from_be_bytes)?;
        let named = |kind: &u16| matches!(*kind, TUPLE_ORIGINAL | ID | ZONE);
        Some(Entry {
            original: Tuple::parse(find(TUPLE_ORIGINAL)?)?,
            reply: Tuple::parse(find(TUPLE_REPLY)?)?,
            status,
            name: attributes.iter().filter(|(kind, _)| named(kind)).copied().collect(),
        })
    }

    fn ends(&self) -> [IpAddr; 4] {
        [self.original.source, self.original.destination, self.reply.source, self.reply.destination]
    }

    fn matches(&self, flow: &Flow, local: &BTreeSet<IpAddr>) -> bool {
        match *flow {
            Flow::Container(address) => self.ends().contains(&address),
            Flow::Published { protocol, host_ip, host_port } => {
                let to = self.original.destination;
                let address = if host_ip.is_unspecified() {
                    // A container's own connection to that port of somebody else is not to a port of ours.
                    let ours = self.status & STATUS_DNAT != 0 || to.is_loopback() || local.contains(&to);
                    ours && to.is_ipv4() == host_ip.is_ipv4()
                } else {
                    to == host_ip
                };
                address
                    && self.original.protocol == protocol.number()
                    && self.original.destination_port == host_port
            }
        }
    }

    fn removal(&self, listed: &[u8]) -> Request {
        const NESTED: u16 = 0x8000;
        let mut body = listed.get(..GENERIC_BYTES).unwrap_or_default().to_vec();
        for (kind, value) in &self.name {
            let flag = if *kind == TUPLE_ORIGINAL { NESTED } else { 0 };
            body.extend(u16::try_from(4 + value.len()).unwrap_or(u16::MAX).to_ne_bytes());
            body.extend((kind | flag).to_ne_bytes());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        Request { kind: DELETE, flags: 0, body }
    }
}

impl Tuple {
    fn parse(bytes: &[u8]) -> Option<Tuple> {
        let (mut source, mut destination, mut protocol, mut port) = (None, None, None, 0);
        for (kind, value) in attributes(bytes) {
            for (inner, value) in attributes(value) {
                match (kind, inner) {
                    (1, 1 | 3) => source = address(value),
                    (1, 2 | 4) => destination = address(value),
                    (2, 1) => protocol = value.first().copied(),
                    (2, 3) => port = u16::from_be_bytes(value.try_into().ok()?),
                    _ => {}
                }
            }
        }
        Some(Tuple {
            source: source?,
            destination: destination?,
            protocol: protocol?,
            destination_port: port,
        })
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(|octets| Ipv4Addr::from(octets).into()),
        16 => <[u8; 16]>::try_from(bytes).ok().map(|octets| Ipv6Addr::from(octets).into()),
        _ => None,
    }
}

/// The attributes of a list: kind without flags, and value.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const KIND: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & KIND;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}
