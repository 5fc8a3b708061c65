//! What is wanted of the machine's interfaces.

use std::convert::Infallible;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use crate::mac::Mac;

/// What is wanted of the machine's network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// Name told to DHCP servers (option 12).
    pub hostname: Option<String>,
    /// Name servers asked before those learnt from the network.
    pub dns: Vec<IpAddr>,
    /// Search domains before those learnt from the network.
    pub search: Vec<String>,
    /// The interfaces. Each physical interface is looked after by the first entry that matches it; those no entry
    /// matches are left alone.
    pub interfaces: Vec<InterfaceConfig>,
}

/// What is wanted of one interface, or of each that matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceConfig {
    /// Which interfaces.
    pub matches: Match,
    /// Ask for an IPv4 address by DHCP.
    pub dhcp4: bool,
    /// Take IPv6 addresses, routes and name servers from router advertisements.
    pub router_advertisements: bool,
    /// Fixed addresses with prefix lengths.
    pub addresses: Vec<IpNet>,
    /// Fixed default routes, at most one for each family. A gateway outside every prefix is taken to be on the link.
    pub gateways: Vec<IpAddr>,
    /// Largest packet in bytes; otherwise DHCP's, otherwise the driver's.
    pub mtu: Option<u32>,
}

impl InterfaceConfig {
    /// DHCP and router advertisements on every physical interface: what a machine without a file gets.
    pub fn automatic() -> InterfaceConfig {
        InterfaceConfig {
            matches: Match::Any,
            dhcp4: true,
            router_advertisements: true,
            addresses: Vec::new(),
            gateways: Vec::new(),
            mtu: None,
        }
    }
}

/// Which interfaces an entry is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// Every physical Ethernet interface.
    Any,
    /// The one with this name.
    Name(String),
    /// The one with this Ethernet address.
    Mac(Mac),
}

/// Never: every text is a match.
pub type ParseMatchError = Infallible;

impl FromStr for Match {
    type Err = ParseMatchError;

    /// `*` is every interface, six octets are an Ethernet address, anything else is a name.
    fn from_str(text: &str) -> Result<Match, Infallible> {
        Ok(match text {
            "*" => Match::Any,
            text => text.parse().map_or_else(|_| Match::Name(text.to_owned()), Match::Mac),
        })
    }
}
