//! The pair of interfaces between a bridge and a container.
//!
//! The container's side is created inside its namespace, never moved there, so it is not seen on the machine under a
//! name that may collide. The machine's side costs one message batch, the container's side one more from a thread
//! that has entered the namespace.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use ipnet::IpNet;
use rtnetlink::packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkInfo,
    LinkMessage,
};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::bridge::without_link_local;
use crate::mac::Mac;
use crate::netlink::{
    CREATE, EXCLUSIVE, Path, add_address, add_route, default_path, delete_link, link_up, new_link, switch_on,
};
use crate::netlink::{Failure, Interface, Request, Route};
use crate::sysctl;

/// Interface number of the loopback interface in every namespace.
const LOOPBACK: u32 = 1;

/// What a container's interface shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The bridge to join.
    pub bridge: String,
    /// Interface name on the machine's side, at most 15 bytes, unique.
    pub host_name: String,
    /// Interface name in the container (`eth0`).
    pub container_name: String,
    /// Ethernet address in the container.
    pub mac: Mac,
    /// Addresses in the container with the prefix lengths of the subnets.
    pub addresses: Vec<IpNet>,
    /// Default routes, at most one for each family; none on an internal network or when another network has it.
    pub gateways: Vec<IpAddr>,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Not reachable from other isolated ports of the bridge.
    pub isolated: bool,
}

/// Why a container's interface could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// There is no such bridge.
    #[error("no bridge {0}")]
    NoBridge(String),
    /// There is no such interface on the machine.
    #[error("no interface {0} on this machine")]
    NoParent(String),
    /// The netlink socket failed.
    #[error("talk to the kernel about {name}")]
    Socket {
        /// The interface on the machine's side.
        name: String,
        /// What failed.
        #[source]
        source: io::Error,
    },
    /// The kernel refused.
    #[error("the kernel refused to {step} {name}")]
    Refused {
        /// The interface on the machine's side.
        name: String,
        /// What was asked.
        step: &'static str,
        /// The kernel's answer.
        #[source]
        source: Failure,
    },
    /// The container's namespace could not be entered.
    #[error("enter the network namespace")]
    Enter(#[source] io::Error),
    /// A setting of the namespace could not be written.
    #[error("set {setting} in the network namespace")]
    Sysctl {
        /// The setting.
        setting: String,
        /// What failed.
        #[source]
        source: io::Error,
    },
}

/// Makes the pair, joins it to the bridge, and sets up the container's side: addresses, routes, loopback. What was
/// made is removed when a later step fails.
pub fn attach(netns: BorrowedFd<'_>, port: &Port) -> Result<(), AttachError> {
    let name = &port.host_name;
    let socket = |source| AttachError::Socket { name: name.clone(), source };
    let mut route = Route::open().map_err(socket)?;
    let bridge = route.index_of(&port.bridge).map_err(socket)?;
    let bridge = bridge.ok_or_else(|| AttachError::NoBridge(port.bridge.clone()))?;

    let requests = host_side(netns, port, bridge);
    let outcome = route.apply(&requests).map_err(socket)?;
    let attached = outcome
        .map_err(|(at, source)| {
            let step = ["create", "join to the bridge", "switch on"].get(at).copied().unwrap_or("change");
            AttachError::Refused { name: name.clone(), step, source }
        })
        .and_then(|()| inside(netns, || container_side(name, &port.inner())));
    if let Err(error) = attached {
        // A pair that existed before belongs to somebody else.
        if !matches!(&error, AttachError::Refused { source, .. } if source.errno == Errno::EXIST) {
            let _ = route.apply(&[delete_link(name)]);
        }
        return Err(error);
    }
    Ok(())
}

/// Gives a namespace other default routes: by way of `gateways`, over the interface of that name there. They replace
/// those of the same family.
pub fn set_gateways(netns: BorrowedFd<'_>, interface: &str, gateways: &[IpAddr]) -> Result<(), AttachError> {
    inside(netns, || {
        let socket = |source| AttachError::Socket { name: interface.to_owned(), source };
        let mut route = Route::open().map_err(socket)?;
        let found = route.index_of(interface).map_err(socket)?;
        let index = found.ok_or_else(|| socket(io::Error::from(io::ErrorKind::NotFound)))?;
        let requests: Vec<Request> =
            gateways.iter().map(|gateway| add_route(index, &default_path(*gateway))).collect();
        let outcome = route.apply(&requests).map_err(socket)?;
        outcome.map_err(|(_, source)| AttachError::Refused {
            name: interface.to_owned(),
            step: "replace the default route over",
            source,
        })
    })
}

/// Sets up a namespace that gets no network of ours: loopback and the settings every container has.
pub fn prepare(netns: BorrowedFd<'_>) -> Result<(), AttachError> {
    inside(netns, || {
        let socket = |source| AttachError::Socket { name: "lo".to_owned(), source };
        settings()?;
        let outcome = Route::open().map_err(socket)?.apply(&[link_up(LOOPBACK)]).map_err(socket)?;
        outcome.map_err(|(_, source)| AttachError::Refused {
            name: "lo".to_owned(),
            step: "switch on",
            source,
        })
    })
}

/// A new network namespace, for who has none in store.
pub fn namespace() -> io::Result<OwnedFd> {
    let make = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
        Ok(std::fs::File::open("/proc/thread-self/ns/net")?.into())
    };
    let thread = std::thread::Builder::new().name("netns".to_owned()).spawn(make)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
}

/// Removes the pair by the name of the machine's side; one that is not there is fine.
pub fn detach(host_name: &str) -> Result<(), AttachError> {
    let socket = |source| AttachError::Socket { name: host_name.to_owned(), source };
    let mut route = Route::open().map_err(socket)?;
    match route.apply(&[delete_link(host_name)]).map_err(socket)? {
        Ok(()) => Ok(()),
        Err((_, failure)) if failure.errno == Errno::NODEV => Ok(()),
        Err((_, source)) => Err(AttachError::Refused { name: host_name.to_owned(), step: "remove", source }),
    }
}

/// The machine's sides whose names begin with `prefix`: what a start has to compare with its containers.
pub fn list(prefix: &str) -> io::Result<Vec<Interface>> {
    let mut all = Route::open()?.list()?;
    all.retain(|interface| interface.kind == "veth" && interface.name.starts_with(prefix));
    Ok(all)
}

/// What went through a container's interface since it was made, seen from the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Packets that could not be received.
    pub rx_errors: u64,
    /// Packets dropped on the way in.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets that could not be sent.
    pub tx_errors: u64,
    /// Packets dropped on the way out.
    pub tx_dropped: u64,
}

/// The counters of a container's interface, by the name of the machine's side; `None` when it is gone.
pub fn statistics(host_name: &str) -> io::Result<Option<Statistics>> {
    let counters = Route::open()?.counters(host_name)?;
    // What the machine's side sends is what the container receives.
    Ok(counters.map(|here| Statistics {
        rx_bytes: here.tx_bytes,
        rx_packets: here.tx_packets,
        rx_errors: here.tx_errors,
        rx_dropped: here.tx_dropped,
        tx_bytes: here.rx_bytes,
        tx_packets: here.rx_packets,
        tx_errors: here.rx_errors,
        tx_dropped: here.rx_dropped,
    }))
}

fn host_side(netns: BorrowedFd<'_>, port: &Port, bridge: u32) -> Vec<Request> {
    let mut peer = LinkMessage::default();
    peer.attributes.push(LinkAttribute::IfName(port.container_name.clone()));
    peer.attributes.push(LinkAttribute::Address(port.mac.0.to_vec()));
    peer.attributes.push(LinkAttribute::Mtu(port.mtu));
    peer.attributes.push(LinkAttribute::NetNsFd(netns.as_raw_fd()));

    let named = || {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(port.host_name.clone()));
        message
    };
    let mut create = named();
    create.attributes.push(LinkAttribute::Mtu(port.mtu));
    create.attributes.push(LinkAttribute::Controller(bridge));
    create.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));

    // The port is isolated before it is on, and has no address a container could talk to.
    let mut join = named();
    join.attributes.push(without_link_local());
    let flags = vec![InfoBridgePort::Isolated(port.isolated), InfoBridgePort::Guard(true)];
    join.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(flags)),
    ]));

    let mut on = named();
    switch_on(&mut on);
    vec![new_link(&create, CREATE | EXCLUSIVE), new_link(&join, 0), new_link(&on, 0)]
}

impl Port {
    fn inner(&self) -> Inner<'_> {
        Inner {
            name: &self.container_name,
            addresses: &self.addresses,
            gateways: &self.gateways,
            device_routes: &[],
        }
    }
}

/// What is set up inside a namespace, whatever the kind of interface.
#[derive(Debug)]
pub(crate) struct Inner<'a> {
    /// Interface name.
    pub(crate) name: &'a str,
    /// Addresses.
    pub(crate) addresses: &'a [IpNet],
    /// Default routes.
    pub(crate) gateways: &'a [IpAddr],
    /// Destinations on the link itself.
    pub(crate) device_routes: &'a [IpNet],
}

/// To be called inside the namespace. `name` is the interface's name in messages.
pub(crate) fn container_side(name: &str, inner: &Inner<'_>) -> Result<(), AttachError> {
    let socket = |source| AttachError::Socket { name: name.to_owned(), source };
    let mut route = Route::open().map_err(socket)?;
    let found = route.index_of(inner.name).map_err(socket)?;
    let index = found.ok_or_else(|| socket(io::Error::from(io::ErrorKind::NotFound)))?;
    settings()?;
    let ipv6 = inner.addresses.iter().any(|address| matches!(address, IpNet::V6(_)));
    let interface = inner.name;
    // A network without IPv6 must not leave a link-local address behind, nor accept a neighbour's prefix.
    optional(&format!("net/ipv6/conf/{interface}/disable_ipv6"), if ipv6 { "0" } else { "1" })?;
    optional(&format!("net/ipv6/conf/{interface}/accept_ra"), "0")?;
    optional(&format!("net/ipv6/conf/{interface}/accept_dad"), "0")?;

    let mut requests = vec![link_up(LOOPBACK)];
    requests.extend(inner.addresses.iter().map(|address| add_address(index, *address)));
    requests.push(link_up(index));
    let addresses_end = requests.len();
    let on_link =
        |destination: &IpNet| Path { destination: *destination, gateway: None, source: None, metric: 0 };
    requests.extend(inner.device_routes.iter().map(|net| add_route(index, &on_link(net))));
    requests.extend(inner.gateways.iter().map(|gateway| add_route(index, &default_path(*gateway))));
    let outcome = route.apply(&requests).map_err(socket)?;
    outcome.map_err(|(at, source)| {
        let step =
            if at < addresses_end { "set up the container's side of" } else { "add the default route of" };
        AttachError::Refused { name: name.to_owned(), step, source }
    })
}

/// Settings every container's namespace has: low ports and ping need no capability, as Docker has it.
fn settings() -> Result<(), AttachError> {
    optional("net/ipv4/ip_unprivileged_port_start", "0")?;
    optional("net/ipv4/ping_group_range", "0 2147483647")
}

fn optional(setting: &str, value: &str) -> Result<(), AttachError> {
    match sysctl::write(setting, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome.map_err(|source| AttachError::Sysctl { setting: setting.to_owned(), source }),
    }
}

/// Runs `work` on a thread of its own inside the namespace, so that no thread of the program is left there.
pub(crate) fn inside(
    netns: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<(), AttachError> + Send,
) -> Result<(), AttachError> {
    let entered = || {
        move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))
            .map_err(|errno| AttachError::Enter(errno.into()))?;
        work()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, entered);
        thread.map_err(AttachError::Enter)?.join().unwrap_or_else(|_| {
            Err(AttachError::Enter(io::Error::other("the thread in the namespace panicked")))
        })
    })
}
