//! What is known of the machine's interfaces, and what is told of changes.

use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;

use crate::mac::Mac;
use crate::upstream::Upstreams;

/// Name servers listed in resolv.conf: the C library reads no more.
const MAX_RESOLV_SERVERS: usize = 3;

/// What the machine's network has reached.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// The interfaces looked after, by number.
    pub interfaces: Vec<InterfaceStatus>,
    /// Name servers in force.
    pub dns: Vec<IpAddr>,
    /// Search domains in force.
    pub search: Vec<String>,
    /// Time servers learnt from the network.
    pub ntp: Vec<IpAddr>,
}

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceStatus {
    /// Number.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Ethernet address.
    pub mac: Option<Mac>,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// The cable is in.
    pub carrier: bool,
    /// Addresses, other than link-local ones.
    pub addresses: Vec<(IpNet, Source)>,
    /// Default gateways.
    pub gateways: Vec<IpAddr>,
    /// The DHCP server the lease is from.
    pub dhcp_server: Option<Ipv4Addr>,
}

/// Where an address is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The configuration.
    Fixed,
    /// A DHCP lease.
    Dhcp,
    /// A router advertisement.
    Router,
}

/// Something worth a log line.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// An interface appeared and is looked after.
    Added(String),
    /// An interface is gone.
    Removed(String),
    /// The cable went in or out.
    Carrier(String, bool),
    /// A lease was obtained or renewed with other values.
    Bound {
        /// Interface.
        interface: String,
        /// Address.
        address: IpNet,
        /// Default gateway.
        gateway: Option<IpAddr>,
        /// Seconds the address is good for; `u32::MAX` is for ever.
        lease_s: u32,
    },
    /// The lease ended or was refused.
    Lost(String),
    /// Something failed and is tried again.
    Failed {
        /// Interface.
        interface: String,
        /// What failed, causes included.
        reason: String,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Added(name) => write!(f, "{name}: found"),
            Event::Removed(name) => write!(f, "{name}: gone"),
            Event::Carrier(name, true) => write!(f, "{name}: link is up"),
            Event::Carrier(name, false) => write!(f, "{name}: link is down"),
            Event::Bound { interface, address, gateway, lease_s } => {
                write!(f, "{interface}: address {address} by DHCP")?;
                if let Some(gateway) = gateway {
                    write!(f, ", gateway {gateway}")?;
                }
                write!(f, ", for {lease_s} s")
            }
            Event::Lost(name) => write!(f, "{name}: lease lost"),
            Event::Failed { interface, reason } => write!(f, "{interface}: {reason}, continuing"),
        }
    }
}

impl Status {
    /// True once some interface has an address and a default gateway: the machine can reach others.
    pub fn is_online(&self) -> bool {
        self.interfaces
            .iter()
            .any(|interface| !interface.addresses.is_empty() && !interface.gateways.is_empty())
    }

    /// Largest packet new container networks should use: the smallest of the interfaces with a default gateway, or
    /// 1500.
    pub fn uplink_mtu(&self) -> u32 {
        let uplinks = self.interfaces.iter().filter(|interface| !interface.gateways.is_empty());
        uplinks.map(|interface| interface.mtu).min().unwrap_or(1500)
    }

    /// The name servers as a value others watch.
    pub fn upstreams(&self) -> Upstreams {
        let servers = self.dns.iter().map(|server| SocketAddr::new(*server, 53)).collect();
        Upstreams { servers, search: self.search.clone() }
    }

    /// The text of the machine's resolv.conf.
    pub fn resolv_conf(&self) -> String {
        let mut text = String::new();
        for server in self.dns.iter().take(MAX_RESOLV_SERVERS) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "nameserver {server}");
        }
        if !self.search.is_empty() {
            let _ = writeln!(text, "search {}", self.search.join(" "));
        }
        text.push_str("options timeout:2 attempts:2\n");
        text
    }
}
