//! Bridges: one for each container network.
//!
//! The Ethernet address and the MTU are set, never inherited: left alone, a bridge takes the lowest address of its
//! ports and the smallest MTU, and both change under running connections.

use std::io;

use ipnet::IpNet;
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, BridgeStpState, In6AddrGenMode, InfoBridge, InfoData, InfoKind, LinkAttribute,
    LinkInfo, LinkMessage,
};
use rustix::io::Errno;

use crate::mac::Mac;
use crate::netlink::{CREATE, add_address, delete_link, link_up, new_link};
use crate::netlink::{Failure, Interface, Route};
use crate::sysctl;

/// What a bridge shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeConfig {
    /// Interface name, at most 15 bytes.
    pub name: String,
    /// Gateway addresses with the prefix lengths of the subnets.
    pub gateways: Vec<IpNet>,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Ethernet address.
    pub mac: Mac,
}

/// Why a bridge could not be made, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// Something that is not a bridge has the name.
    #[error("interface {0} exists and is not a bridge")]
    NotABridge(String),
    /// The netlink socket failed.
    #[error("talk to the kernel about {name}")]
    Socket {
        /// The bridge.
        name: String,
        /// What failed.
        #[source]
        source: io::Error,
    },
    /// The kernel refused.
    #[error("the kernel refused to {step} {name}")]
    Refused {
        /// The bridge.
        name: String,
        /// What was asked.
        step: &'static str,
        /// The kernel's answer.
        #[source]
        source: Failure,
    },
    /// A setting below /proc/sys could not be written.
    #[error("set {setting}")]
    Sysctl {
        /// The setting.
        setting: String,
        /// What failed.
        #[source]
        source: io::Error,
    },
}

/// Makes the bridge, or brings the one there is into the wanted state; returns its interface number. Addresses it
/// has beside the wanted ones stay.
pub fn ensure(config: &BridgeConfig) -> Result<u32, BridgeError> {
    let name = &config.name;
    let socket = |source| BridgeError::Socket { name: name.clone(), source };
    let mut route = Route::open().map_err(socket)?;
    let index = match route.find(name).map_err(socket)? {
        Some(found) if found.kind != "bridge" => return Err(BridgeError::NotABridge(name.clone())),
        Some(found) => found.index,
        None => create(&mut route, config)?,
    };
    let ipv6 = config.gateways.iter().any(|gateway| matches!(gateway, IpNet::V6(_)));
    settings(name, ipv6)?;

    let mut change = LinkMessage::default();
    change.header.index = index;
    change.attributes.push(LinkAttribute::Address(config.mac.0.to_vec()));
    change.attributes.push(LinkAttribute::Mtu(config.mtu));
    let mut requests = vec![new_link(&change, 0)];
    requests.extend(config.gateways.iter().map(|gateway| add_address(index, *gateway)));
    requests.push(link_up(index));
    let outcome = route.apply(&requests).map_err(socket)?;
    outcome.map_err(|(at, source)| {
        let step = match at {
            0 => "set address and MTU of",
            at if at + 1 == requests.len() => "switch on",
            _ => "give an IP address to",
        };
        BridgeError::Refused { name: name.clone(), step, source }
    })?;
    Ok(index)
}

fn create(route: &mut Route, config: &BridgeConfig) -> Result<u32, BridgeError> {
    let name = &config.name;
    let socket = |source| BridgeError::Socket { name: name.clone(), source };
    let data = vec![
        InfoBridge::StpState(BridgeStpState::Disabled),
        InfoBridge::ForwardDelay(0),
        // Snooping without a querier loses multicast (and neighbour discovery) after some minutes.
        InfoBridge::MulticastSnooping(false),
    ];
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.clone()));
    message.attributes.push(LinkAttribute::Address(config.mac.0.to_vec()));
    message.attributes.push(LinkAttribute::Mtu(config.mtu));
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Bridge),
        LinkInfo::Data(InfoData::Bridge(data)),
    ]));
    // Two makers at once are one maker: "exists" is fine, the next lookup tells what it is.
    match route.apply(&[new_link(&message, CREATE)]).map_err(socket)? {
        Ok(()) => {}
        Err((_, failure)) if failure.errno == Errno::EXIST => {}
        Err((_, source)) => return Err(BridgeError::Refused { name: name.clone(), step: "create", source }),
    }
    let found = route.find(name).map_err(socket)?;
    found.map(|found| found.index).ok_or_else(|| socket(io::Error::from(io::ErrorKind::NotFound)))
}

fn settings(name: &str, ipv6: bool) -> Result<(), BridgeError> {
    let disable = if ipv6 { "0" } else { "1" };
    let settings = [
        // No router advertisement from a container may change the machine's routes, and a bridge without IPv6 has
        // no link-local address a container could reach.
        (format!("net/ipv6/conf/{name}/accept_ra"), "0"),
        (format!("net/ipv6/conf/{name}/accept_redirects"), "0"),
        (format!("net/ipv6/conf/{name}/accept_dad"), "0"),
        (format!("net/ipv6/conf/{name}/disable_ipv6"), disable),
        (format!("net/ipv4/conf/{name}/accept_redirects"), "0"),
        (format!("net/ipv4/conf/{name}/send_redirects"), "0"),
        (format!("net/ipv4/conf/{name}/rp_filter"), "1"),
    ];
    for (setting, value) in settings {
        match sysctl::write(&setting, value) {
            // A kernel without IPv6 needs none of it.
            Err(error) if error.kind() == io::ErrorKind::NotFound && setting.starts_with("net/ipv6") => {}
            Err(source) => return Err(BridgeError::Sysctl { setting, source }),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// Removes the bridge; one that is not there is fine.
pub fn remove(name: &str) -> Result<(), BridgeError> {
    let socket = |source| BridgeError::Socket { name: name.to_owned(), source };
    let mut route = Route::open().map_err(socket)?;
    match route.apply(&[delete_link(name)]).map_err(socket)? {
        Ok(()) => Ok(()),
        Err((_, failure)) if failure.errno == Errno::NODEV => Ok(()),
        Err((_, source)) => Err(BridgeError::Refused { name: name.to_owned(), step: "remove", source }),
    }
}

/// The bridges there are.
pub fn list() -> io::Result<Vec<Interface>> {
    let mut all = Route::open()?.list()?;
    all.retain(|interface| interface.kind == "bridge");
    Ok(all)
}

/// The attribute that keeps the kernel from making a link-local IPv6 address.
pub(crate) fn without_link_local() -> LinkAttribute {
    LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
        In6AddrGenMode::None,
    )])])
}
