//! Holding published ports: a bound socket for each, so a conflict is found before a container starts, the kernel
//! picks free ports, and no other program can take a port whose traffic the firewall redirects.
//!
//! The sockets are never listened on. A TCP connection that escapes redirection is therefore refused, not stuck.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::str::FromStr;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, ipproto, socket_with, sockopt};

/// How often a port that is free for IPv4 is tried for IPv6 as well before a random pair is given up.
const PAIR_ATTEMPTS: usize = 32;

/// A transport protocol whose ports can be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl Protocol {
    /// The number in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        })
    }
}

/// Not a protocol whose ports can be published.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid proto: {0}")]
pub struct ParseProtocolError(String);

impl FromStr for Protocol {
    type Err = ParseProtocolError;

    fn from_str(text: &str) -> Result<Protocol, ParseProtocolError> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" => Ok(Protocol::Tcp),
            "udp" => Ok(Protocol::Udp),
            "sctp" => Ok(Protocol::Sctp),
            _ => Err(ParseProtocolError(text.to_owned())),
        }
    }
}

/// A port held: it is free for others once `socket` (and every copy of it) is closed.
#[derive(Debug)]
pub struct Held {
    /// What was bound, with the port the kernel chose when none was asked for.
    pub address: SocketAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The bound socket.
    pub socket: OwnedFd,
}

/// Why a port cannot be held.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// Somebody has the port.
    #[error("failed to bind host port {address}/{protocol}: address already in use")]
    InUse {
        /// What was asked for.
        address: SocketAddr,
        /// The protocol asked for.
        protocol: Protocol,
    },
    /// This machine does not have the address.
    #[error("failed to bind host port {address}/{protocol}: cannot assign requested address")]
    NotLocal {
        /// What was asked for.
        address: SocketAddr,
        /// The protocol asked for.
        protocol: Protocol,
    },
    /// Anything else the kernel refused.
    #[error("failed to bind host port {address}/{protocol}")]
    Socket {
        /// What was asked for.
        address: SocketAddr,
        /// The protocol asked for.
        protocol: Protocol,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Holds one port of one address; port 0 asks the kernel for a free one.
pub fn hold(protocol: Protocol, address: IpAddr, port: u16) -> Result<Held, HoldError> {
    let asked = SocketAddr::new(address, port);
    bound(protocol, asked).map_err(|errno| match errno {
        Errno::ADDRINUSE => HoldError::InUse { address: asked, protocol },
        Errno::ADDRNOTAVAIL => HoldError::NotLocal { address: asked, protocol },
        errno => HoldError::Socket { address: asked, protocol, source: errno.into() },
    })
}

/// Holds the same port of every IPv4 and every IPv6 address, as a port published without an address wants it.
pub fn hold_both(protocol: Protocol, port: u16) -> Result<[Held; 2], HoldError> {
    let mut attempts = if port == 0 { PAIR_ATTEMPTS } else { 1 };
    loop {
        let v4 = hold(protocol, IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)?;
        match hold(protocol, IpAddr::V6(Ipv6Addr::UNSPECIFIED), v4.address.port()) {
            Ok(v6) => return Ok([v4, v6]),
            Err(error) if attempts <= 1 => return Err(error),
            Err(_) => attempts -= 1,
        }
    }
}

fn bound(protocol: Protocol, address: SocketAddr) -> Result<Held, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let (kind, number) = match protocol {
        Protocol::Tcp => (SocketType::STREAM, ipproto::TCP),
        Protocol::Udp => (SocketType::DGRAM, ipproto::UDP),
        Protocol::Sctp => (SocketType::STREAM, ipproto::SCTP),
    };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, Some(number))?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    // No SO_REUSEADDR: with it on both sides two unlistened sockets may share a port and the conflict stays hidden.
    bind(&socket, &address)?;
    let address = SocketAddr::try_from(getsockname(&socket)?)?;
    Ok(Held { address, protocol, socket })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn a_held_port_is_refused_to_the_next_and_free_after_close() {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let held = hold(protocol, LOOPBACK, 0).unwrap();
            let port = held.address.port();
            assert_ne!(port, 0);
            let again = hold(protocol, LOOPBACK, port);
            assert!(matches!(again, Err(HoldError::InUse { .. })), "{again:?}");
            drop(held);
            hold(protocol, LOOPBACK, port).unwrap();
        }
    }

    #[test]
    fn an_address_of_another_machine_is_told_apart() {
        let held = hold(Protocol::Tcp, "192.0.2.1".parse().unwrap(), 0);
        assert!(matches!(held, Err(HoldError::NotLocal { .. })), "{held:?}");
    }

    #[test]
    fn both_families_get_the_same_port() {
        let [v4, v6] = hold_both(Protocol::Tcp, 0).unwrap();
        assert_eq!(v4.address.port(), v6.address.port());
        assert!(hold_both(Protocol::Tcp, v4.address.port()).is_err());
    }
}
