//! The sets and maps the chains look into: one look-up replaces a rule for each network or port, so the cost of a
//! packet does not grow with their number.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::{ApplyError, Bridge, Publish, Rules};
use crate::nftables::expression::{behind, interface, joined, octets};
use crate::nftables::{Batch, Element, Set};

// nft's numbers of key types; joined keys have six bits for each part.
const IPV4: u32 = 7;
const IPV6: u32 = 8;
const PROTOCOL: u32 = 12;
const PORT: u32 = 13;
const INTERFACE: u32 = 41;

const fn plain(name: &'static str, id: u32, key_type: u32, key_bytes: u32) -> Set {
    Set { name, id, key_type, key_bytes, value: None, interval: false }
}

/// Interfaces of all container networks.
pub(super) const BRIDGES: Set = plain("bridges", 1, INTERFACE, 16);
/// Interfaces of internal networks.
pub(super) const INTERNAL: Set = plain("internal", 2, INTERFACE, 16);
/// Interface and gateway address of each network.
pub(super) const GATEWAYS_4: Set = plain("gateways4", 3, (INTERFACE << 6) | IPV4, 20);
/// The same for IPv6.
pub(super) const GATEWAYS_6: Set = plain("gateways6", 4, (INTERFACE << 6) | IPV6, 32);
/// Subnets of all networks.
pub(super) const SUBNETS_4: Set = Set { interval: true, ..plain("subnets4", 5, IPV4, 4) };
/// The same for IPv6.
pub(super) const SUBNETS_6: Set = Set { interval: true, ..plain("subnets6", 6, IPV6, 16) };
/// Ports published at every address: protocol and port to container address and port.
pub(super) const PUBLISH_4: Set =
    Set { value: Some(((IPV4 << 6) | PORT, 8)), ..plain("publish4", 7, (PROTOCOL << 6) | PORT, 8) };
/// The same for IPv6.
pub(super) const PUBLISH_6: Set =
    Set { value: Some(((IPV6 << 6) | PORT, 20)), ..plain("publish6", 8, (PROTOCOL << 6) | PORT, 8) };
/// Ports published at one address: protocol, address and port to container address and port.
pub(super) const PUBLISH_AT_4: Set = Set {
    value: Some(((IPV4 << 6) | PORT, 8)),
    ..plain("publish_at4", 9, (PROTOCOL << 12) | (IPV4 << 6) | PORT, 12)
};
/// The same for IPv6.
pub(super) const PUBLISH_AT_6: Set = Set {
    value: Some(((IPV6 << 6) | PORT, 20)),
    ..plain("publish_at6", 10, (PROTOCOL << 12) | (IPV6 << 6) | PORT, 24)
};

/// What is in a set.
pub(super) type Content = (&'static Set, Vec<Element>);

/// All sets with their elements.
pub(super) fn contents(rules: &Rules) -> Result<Vec<Content>, ApplyError> {
    let bridges = || rules.bridges.iter();
    let name = |bridge: &Bridge| key(&interface(&bridge.name));
    let gateways = |ipv4: bool| {
        let pairs = bridges().flat_map(|bridge| bridge.gateways.iter().map(move |gateway| (bridge, gateway)));
        let pairs = pairs.filter(move |(_, gateway)| gateway.addr().is_ipv4() == ipv4);
        let joint = |(bridge, gateway): (&Bridge, &IpNet)| {
            key(&joined(&[&interface(&bridge.name), &octets(gateway.addr())]))
        };
        pairs.map(joint).collect()
    };
    let published = published(rules)?;
    let ports = |ipv4: bool, everywhere: bool| {
        let here = published.values().filter(|publish| {
            publish.host_ip.is_ipv4() == ipv4 && publish.host_ip.is_unspecified() == everywhere
        });
        here.map(|publish| element(publish)).collect()
    };
    Ok(vec![
        (&BRIDGES, bridges().map(name).collect()),
        (&INTERNAL, bridges().filter(|bridge| bridge.internal).map(name).collect()),
        (&GATEWAYS_4, gateways(true)),
        (&GATEWAYS_6, gateways(false)),
        (&SUBNETS_4, ranges(rules, true)),
        (&SUBNETS_6, ranges(rules, false)),
        (&PUBLISH_4, ports(true, true)),
        (&PUBLISH_6, ports(false, true)),
        (&PUBLISH_AT_4, ports(true, false)),
        (&PUBLISH_AT_6, ports(false, false)),
    ])
}

/// Gives the sets of a table these contents, whatever they had.
pub(super) fn fill(batch: &mut Batch, contents: &[Content]) {
    for (set, elements) in contents {
        batch.set(set);
        batch.clear_set(set);
        batch.elements(set, elements);
    }
}

/// Changes the sets of a table from one content to another. A key whose value changes is removed and added.
pub(super) fn change(batch: &mut Batch, before: &[Content], after: &[Content]) {
    for ((set, old), (_, new)) in before.iter().zip(after) {
        let (had, wanted): (BTreeSet<&Element>, BTreeSet<&Element>) =
            (old.iter().collect(), new.iter().collect());
        let gone: Vec<Element> = had.difference(&wanted).map(|element| (*element).clone()).collect();
        let come: Vec<Element> = wanted.difference(&had).map(|element| (*element).clone()).collect();
        batch.remove_elements(set, &gone);
        batch.elements(set, &come);
    }
}

fn key(bytes: &[u8]) -> Element {
    Element { key: bytes.to_vec(), value: None, interval_end: false }
}

/// The subnets as first address and address behind the last, with overlapping ones joined.
fn ranges(rules: &Rules, ipv4: bool) -> Vec<Element> {
    let nets = rules.bridges.iter().flat_map(|bridge| &bridge.gateways);
    let nets: Vec<IpNet> = nets.filter(|net| net.addr().is_ipv4() == ipv4).map(IpNet::trunc).collect();
    let mut elements = Vec::new();
    for net in IpNet::aggregate(&nets) {
        elements.push(key(&octets(net.network())));
        if let Some(behind) = behind(net) {
            elements.push(Element { key: octets(behind), value: None, interval_end: true });
        }
    }
    elements
}

/// The published ports by what a client addresses; two places for one port are an error, the same place twice is not.
fn published(rules: &Rules) -> Result<BTreeMap<(IpAddr, u8, u16), &Publish>, ApplyError> {
    let mut published = BTreeMap::new();
    for publish in &rules.publish {
        let asked = (publish.host_ip, publish.protocol.number(), publish.host_port);
        match published.insert(asked, publish) {
            Some(other) if other != publish => {
                return Err(ApplyError::Duplicate(publish.host_port, publish.protocol, publish.host_ip));
            }
            _ => {}
        }
    }
    Ok(published)
}

fn element(publish: &Publish) -> Element {
    let protocol = [publish.protocol.number()];
    let port = publish.host_port.to_be_bytes();
    let key = if publish.host_ip.is_unspecified() {
        joined(&[&protocol, &port])
    } else {
        joined(&[&protocol, &octets(publish.host_ip), &port])
    };
    let value = joined(&[&octets(publish.container_ip), &publish.container_port.to_be_bytes()]);
    Element { key, value: Some(value), interval_end: false }
}
