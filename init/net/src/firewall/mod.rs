//! The firewall: what [`Rules`] say, turned into one nftables transaction.
//!
//! [`apply`] changes everything the machine has of ours at once: a packet meets the old rules or the new ones, never
//! half of them. Reading order: the types here, then the set and map definitions, then the chains.

mod chains;
mod guard;
mod sets;

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::mac::Mac;
use crate::netlink::Failure;
use crate::nftables::{Batch, CommitError, Family, Finished, Netfilter};
use crate::ports::Protocol;
use crate::sysctl;

/// Name of our tables.
const TABLE: &str = "berth";
/// Longest interface name in bytes (IFNAMSIZ without the closing zero).
const MAX_NAME_BYTES: usize = 15;

/// Everything the firewall has to know. Applying the same rules twice changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules {
    /// The container networks.
    pub bridges: Vec<Bridge>,
    /// The published ports.
    pub publish: Vec<Publish>,
    /// The containers' interfaces, for the checks against false sender addresses. An interface of a listed bridge
    /// that is not listed here is not checked.
    pub guards: Vec<Guard>,
    /// Ports of the machine itself that containers may reach at the gateway addresses, beside name service.
    pub host_ports: Vec<(Protocol, u16)>,
}

/// One container network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// The bridge interface.
    pub name: String,
    /// Gateway address and prefix length of each subnet (IPv4 and IPv6).
    pub gateways: Vec<IpNet>,
    /// No way out and no published ports: only containers of the same network, and name service.
    pub internal: bool,
    /// Containers may talk to each other directly (`com.docker.network.bridge.enable_icc`). When false the ports must
    /// be attached as isolated too.
    pub icc: bool,
    /// Replace the source address of packets leaving the machine (`enable_ip_masquerade`).
    pub masquerade: bool,
}

/// One published port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// The protocol.
    pub protocol: Protocol,
    /// Address of the machine; unspecified (`0.0.0.0`, `::`) means every local address of that family.
    pub host_ip: IpAddr,
    /// Port of the machine.
    pub host_port: u16,
    /// Address of the container, of the same family as `host_ip`.
    pub container_ip: IpAddr,
    /// Port of the container.
    pub container_port: u16,
}

/// The addresses one container interface may send from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// The interface on the host's side, a port of a bridge.
    pub host_name: String,
    /// The Ethernet address of the container's side.
    pub mac: Mac,
    /// The addresses of the container's side.
    pub addresses: Vec<IpAddr>,
}

/// Why the firewall could not be changed. The old rules stay in force.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// An interface name is empty, too long or has characters no interface has.
    #[error("not an interface name: {0:?}")]
    BadInterface(String),
    /// A published port mixes address families.
    #[error("published port {host}: {container} is of another address family")]
    MixedFamilies {
        /// Address of the machine.
        host: IpAddr,
        /// Address of the container.
        container: IpAddr,
    },
    /// The same address, port and protocol is published twice to different places.
    #[error("port {0}/{1} of {2} is published twice")]
    Duplicate(u16, Protocol, IpAddr),
    /// Forwarding could not be switched on.
    #[error("set {name}")]
    Sysctl {
        /// The setting.
        name: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The netlink socket failed.
    #[error("talk to nf_tables")]
    Socket(#[source] io::Error),
    /// The kernel refused part of the transaction.
    #[error("nf_tables refused the rules ({what})")]
    Refused {
        /// The part refused.
        what: String,
        /// The kernel's answer.
        #[source]
        source: Failure,
    },
}

/// The way to the machine's firewall, for who changes rules often: it knows what is in force and sends only what
/// changes, and closing it, for which the kernel makes the caller wait, is put off.
#[derive(Debug)]
pub struct Firewall {
    netfilter: Netfilter,
    /// What is in force, when that is known.
    in_force: Option<Rules>,
}

impl Firewall {
    /// Opens it in the thread's network namespace.
    pub fn open() -> Result<Firewall, ApplyError> {
        Ok(Firewall { netfilter: Netfilter::open().map_err(ApplyError::Socket)?, in_force: None })
    }

    /// Replaces the machine's rules by `rules` in one transaction.
    pub fn apply(&mut self, rules: &Rules) -> Result<(), ApplyError> {
        let small = transaction(self.in_force.as_ref(), rules)?;
        let known = self.in_force.take().is_some();
        match self.commit(&small) {
            Ok(()) => {}
            // Somebody else changed the table: put all of it in force.
            Err(ApplyError::Refused { .. }) if known => self.commit(&transaction(None, rules)?)?,
            Err(error) => return Err(error),
        }
        self.in_force = Some(rules.clone());
        bridge_settings(rules)
    }

    /// Removes all rules of ours; packets are forwarded unfiltered afterwards as far as forwarding is on.
    pub fn remove(&mut self) -> Result<(), ApplyError> {
        self.in_force = None;
        let mut batch = Batch::new(Family::Inet, TABLE);
        batch.delete_table();
        batch.switch_table(Family::Bridge, TABLE);
        batch.delete_table();
        self.commit(&batch.finish())
    }

    fn commit(&mut self, batch: &Finished) -> Result<(), ApplyError> {
        self.netfilter.commit(batch).map_err(|refusal| match refusal {
            CommitError::Socket(source) => ApplyError::Socket(source),
            CommitError::Refused { what, source } => ApplyError::Refused { what, source },
        })
    }

    fn close_aside(self) {
        self.netfilter.close_aside();
    }
}

/// Replaces the machine's rules by `rules` in one transaction; see [`Firewall::apply`] for doing it often.
pub fn apply(rules: &Rules) -> Result<(), ApplyError> {
    once(|firewall| firewall.apply(rules))
}

/// Removes all rules of ours.
pub fn remove() -> Result<(), ApplyError> {
    once(Firewall::remove)
}

fn once(change: impl FnOnce(&mut Firewall) -> Result<(), ApplyError>) -> Result<(), ApplyError> {
    let mut firewall = Firewall::open()?;
    let outcome = change(&mut firewall);
    firewall.close_aside();
    outcome
}

/// Switches packet forwarding on for the whole machine. Interfaces that learn their addresses from router
/// advertisements must have `accept_ra=2` before, or the kernel drops their routes ([`crate::host`] sees to that).
pub fn enable_forwarding() -> Result<(), ApplyError> {
    let settings = [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        // Where br_netfilter is built in, frames between ports of a bridge would run through these chains as if they
        // were routed: isolation by port flag and hairpins break.
        ("net/bridge/bridge-nf-call-iptables", "0"),
        ("net/bridge/bridge-nf-call-ip6tables", "0"),
        ("net/bridge/bridge-nf-call-arptables", "0"),
    ];
    for (name, value) in settings {
        match sysctl::write(name, value) {
            // A kernel without IPv6 or br_netfilter has nothing to set.
            Err(error) if error.kind() == io::ErrorKind::NotFound && name != "net/ipv4/ip_forward" => {}
            Err(source) => return Err(ApplyError::Sysctl { name: name.to_owned(), source }),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// The transaction that leads from `before`, which is in force, to `rules`; from anything when `before` is unknown.
///
/// Rules and chains depend on networks, which change rarely. A container that comes or goes only changes elements of
/// sets: that is a small transaction, and one the kernel ends without waiting for every processor.
fn transaction(before: Option<&Rules>, rules: &Rules) -> Result<Finished, ApplyError> {
    check(rules)?;
    let (sets, guards) = (sets::contents(rules)?, guard::contents(rules));
    let mut batch = Batch::new(Family::Inet, TABLE);
    match before {
        Some(before) if before.bridges == rules.bridges && before.host_ports == rules.host_ports => {
            batch.touch_table();
            sets::change(&mut batch, &sets::contents(before)?, &sets);
            batch.switch_table(Family::Bridge, TABLE);
            sets::change(&mut batch, &guard::contents(before), &guards);
        }
        _ => {
            batch.clear_table();
            sets::fill(&mut batch, &sets);
            chains::add(&mut batch, rules);
            batch.switch_table(Family::Bridge, TABLE);
            batch.clear_table();
            sets::fill(&mut batch, &guards);
            guard::add(&mut batch);
        }
    }
    Ok(batch.finish())
}

fn check(rules: &Rules) -> Result<(), ApplyError> {
    let bridges = rules.bridges.iter().map(|bridge| &bridge.name);
    for name in bridges.chain(rules.guards.iter().map(|guard| &guard.host_name)) {
        let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b'*' && byte != b':';
        if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.bytes().all(plain) {
            return Err(ApplyError::BadInterface(name.clone()));
        }
    }
    for publish in &rules.publish {
        if publish.host_ip.is_ipv4() != publish.container_ip.is_ipv4() {
            return Err(ApplyError::MixedFamilies { host: publish.host_ip, container: publish.container_ip });
        }
    }
    Ok(())
}

fn bridge_settings(rules: &Rules) -> Result<(), ApplyError> {
    for bridge in &rules.bridges {
        // Lets a program of the machine reach a published port at 127.0.0.1. The raw chain drops every packet from
        // outside with such a destination, which is what this setting would otherwise let in.
        let name = format!("net/ipv4/conf/{}/route_localnet", bridge.name);
        let value = if bridge.internal { "0" } else { "1" };
        match sysctl::write(&name, value) {
            // A network whose bridge is not there yet gets it when it is ([`crate::bridge::ensure`] comes first).
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(ApplyError::Sysctl { name, source }),
            Ok(()) => {}
        }
    }
    Ok(())
}
