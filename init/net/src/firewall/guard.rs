//! Table `bridge berth`: a container sends only from its own addresses, and never as a router or DHCP server.
//!
//! Frames are checked where they enter the bridge, before it learns the sender, so a false sender poisons neither
//! neighbours nor the bridge's own table.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Rules;
use super::sets::Content;
use crate::nftables::expression::{Field, Rule, interface, joined, octets};
use crate::nftables::{Batch, ChainHook, Element, Set};

const ARP: [u8; 2] = [0x08, 0x06];
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const LISTENER_REPORT: u8 = 143;
const DHCP_SERVER_PORT: u16 = 67;
const DHCP6_SERVER_PORT: u16 = 547;

const NFT_INTERFACE: u32 = 41;
const NFT_MAC: u32 = 9;
const NFT_IPV4: u32 = 7;
const NFT_IPV6: u32 = 8;

const fn set(name: &'static str, id: u32, key_type: u32, key_bytes: u32) -> Set {
    Set { name, id, key_type, key_bytes, value: None, interval: false }
}

const PORTS: Set = set("ports", 1, NFT_INTERFACE, 16);
const MACS: Set = set("macs", 2, (NFT_INTERFACE << 6) | NFT_MAC, 24);
const ADDRESSES_4: Set = set("addresses4", 3, (NFT_INTERFACE << 6) | NFT_IPV4, 20);
const ADDRESSES_6: Set = set("addresses6", 4, (NFT_INTERFACE << 6) | NFT_IPV6, 32);

/// Adds chains and rules.
pub(super) fn add(batch: &mut Batch) {
    // -300: before the bridge's own connection tracking, if that is ever loaded.
    let hook = ChainHook { kind: "filter", hook: 0, priority: -300, accept: true };
    batch.chain("guard", Some(hook));
    for chain in ["from_container", "arp", "ipv4", "ipv6"] {
        batch.chain(chain, None);
    }
    batch.rule("guard", &Rule::new().in_set(&[Field::InputInterface], &PORTS).go_to("from_container"));

    let source_mac = [Field::InputInterface, Field::EtherSource];
    batch.rule("from_container", &Rule::new().not_in_set(&source_mac, &MACS).drop());
    for (kind, chain) in [(IPV4, "ipv4"), (IPV6, "ipv6"), (ARP, "arp")] {
        batch.rule("from_container", &Rule::new().is(Field::EtherType, &kind).go_to(chain));
    }
    batch.rule("from_container", &Rule::new().drop());

    let arp_mac = [Field::InputInterface, Field::ArpSenderMac];
    batch.rule("arp", &Rule::new().not_in_set(&arp_mac, &MACS).drop());
    let arp_ip = [Field::InputInterface, Field::ArpSenderIp];
    batch.rule("arp", &Rule::new().in_set(&arp_ip, &ADDRESSES_4).accept());
    // A probe for a duplicate (RFC 5227) claims nothing.
    batch.rule("arp", &Rule::new().is(Field::ArpSenderIp, &[0; 4]).accept());
    batch.rule("arp", &Rule::new().drop());

    let from_port =
        |port: u16| Rule::new().is(Field::Protocol, &[UDP]).is(Field::SourcePort, &port.to_be_bytes());
    batch.rule("ipv4", &from_port(DHCP_SERVER_PORT).drop());
    let source4 = [Field::InputInterface, Field::Source4];
    batch.rule("ipv4", &Rule::new().in_set(&source4, &ADDRESSES_4).accept());
    batch.rule("ipv4", &Rule::new().drop());

    ipv6(batch);
    batch.rule("ipv6", &from_port(DHCP6_SERVER_PORT).drop());
    let source6 = [Field::InputInterface, Field::Source6];
    batch.rule("ipv6", &Rule::new().in_set(&source6, &ADDRESSES_6).accept());
    batch.rule("ipv6", &Rule::new().drop());
}

fn ipv6(batch: &mut Batch) {
    let message = |kind: u8| Rule::new().is(Field::Protocol, &[ICMPV6]).is(Field::IcmpType, &[kind]);
    batch.rule("ipv6", &message(ROUTER_ADVERTISEMENT).drop());
    batch.rule("ipv6", &message(REDIRECT).drop());
    let target = [Field::InputInterface, Field::NeighbourTarget];
    let advertised = message(NEIGHBOUR_ADVERTISEMENT).not_in_set(&target, &ADDRESSES_6);
    batch.rule("ipv6", &advertised.drop());
    // Duplicate detection and group reports are sent before there is an address.
    for kind in [NEIGHBOUR_SOLICITATION, LISTENER_REPORT] {
        batch.rule("ipv6", &message(kind).is(Field::Source6, &[0; 16]).accept());
    }
}

/// The sets with their elements.
pub(super) fn contents(rules: &Rules) -> Vec<Content> {
    let element = |key: Vec<u8>| Element { key, value: None, interval_end: false };
    let (mut ports, mut macs) = (BTreeSet::new(), BTreeSet::new());
    let (mut addresses4, mut addresses6) = (BTreeSet::new(), BTreeSet::new());
    for guard in &rules.guards {
        let name = interface(&guard.host_name);
        ports.insert(element(name.to_vec()));
        macs.insert(element(joined(&[&name, &guard.mac.0])));
        let own = IpAddr::V6(guard.mac.link_local());
        let ipv6 = guard.addresses.iter().any(IpAddr::is_ipv6);
        for address in guard.addresses.iter().chain(ipv6.then_some(&own)) {
            let list = if address.is_ipv4() { &mut addresses4 } else { &mut addresses6 };
            list.insert(element(joined(&[&name, &octets(*address)])));
        }
    }
    let list = |set: BTreeSet<Element>| set.into_iter().collect();
    vec![
        (&PORTS, list(ports)),
        (&MACS, list(macs)),
        (&ADDRESSES_4, list(addresses4)),
        (&ADDRESSES_6, list(addresses6)),
    ]
}
