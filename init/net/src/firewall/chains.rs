//! The chains of table `inet berth`, in the order a packet meets them.
//!
//! ```text
//! from outside ─ raw ─ nat_prerouting ─┬─ input (to the machine)
//!                                      └─ mss ─ forward ─ nat_postrouting ─ to a container or out
//! from the machine ─ nat_output ───────────────────────── nat_postrouting ─ to a container or out
//! ```

use super::Rules;
use super::sets::{
    BRIDGES, GATEWAYS_4, GATEWAYS_6, INTERNAL, PUBLISH_4, PUBLISH_6, PUBLISH_AT_4, PUBLISH_AT_6, SUBNETS_4,
    SUBNETS_6,
};
use crate::nftables::expression::{Field, Rule};
use crate::nftables::{Batch, ChainHook};
use crate::ports::Protocol;

const PREROUTING: u32 = 0;
const INPUT: u32 = 1;
const FORWARD: u32 = 2;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const ECHO_REQUEST: u8 = 8;
const ECHO_REQUEST_6: u8 = 128;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Name service.
const DNS_PORT: u16 = 53;

/// The loopback network of IPv4 as it stands in packets.
const LOOPBACK_4: &str = "127.0.0.0/8";
const LOOPBACK_6: &str = "::1/128";
/// Link-local addresses, where clouds answer with the machine's credentials; they are never routed.
const LINK_LOCAL_4: &str = "169.254.0.0/16";
/// The same service's IPv6 address at AWS, and its prefix at others.
const METADATA_6: &str = "fd00:ec2::254/128";

/// Adds chains and rules.
pub(super) fn add(batch: &mut Batch, rules: &Rules) {
    raw(batch, rules);
    redirect(batch);
    masquerade(batch, rules);
    forward(batch);
    input(batch, rules);
}

fn hook(kind: &'static str, hook: u32, priority: i32, accept: bool) -> ChainHook {
    ChainHook { kind, hook, priority, accept }
}

fn net(text: &str) -> ipnet::IpNet {
    // The constants above parse, which a test checks; an unspecified net would match nothing it should not.
    text.parse().unwrap_or_default()
}

/// Before connection tracking: what may not come from where it came from.
fn raw(batch: &mut Batch, rules: &Rules) {
    batch.chain("raw", Some(hook("filter", PREROUTING, -300, true)));
    batch.chain("direct", None);
    batch.rule("raw", &Rule::new().from_interface("lo").accept());
    for loopback in [LOOPBACK_4, LOOPBACK_6].map(net) {
        batch.rule("raw", &Rule::new().to_net(loopback).drop());
        batch.rule("raw", &Rule::new().from_net(loopback).drop());
    }
    // Most packets are neither to nor from a container address here: they skip the rules of each network.
    let direct = |rule: Rule, field, set| rule.in_set(&[field], set).jump("direct");
    batch.rule("raw", &direct(Rule::new().ipv4(), Field::Destination4, &SUBNETS_4));
    batch.rule("raw", &direct(Rule::new().ipv4(), Field::Source4, &SUBNETS_4));
    batch.rule("raw", &direct(Rule::new().ipv6(), Field::Destination6, &SUBNETS_6));
    batch.rule("raw", &direct(Rule::new().ipv6(), Field::Source6, &SUBNETS_6));
    for bridge in &rules.bridges {
        for subnet in bridge.gateways.iter().map(ipnet::IpNet::trunc) {
            let foreign = || Rule::new().not_from_interface(&bridge.name);
            // Neighbours that route straight to a container address, past published ports. Without masquerading that
            // is how answers come back; what is no answer is dropped when it is forwarded.
            if bridge.masquerade || bridge.internal {
                batch.rule("direct", &foreign().to_net(subnet).drop());
            }
            // Neighbours that pretend to be a container.
            batch.rule("direct", &foreign().from_net(subnet).drop());
        }
    }
}

/// Published ports: for packets that come in and for connections of the machine's own programs.
fn redirect(batch: &mut Batch) {
    batch.chain("nat_prerouting", Some(hook("nat", PREROUTING, -100, true)));
    batch.chain("nat_output", Some(hook("nat", OUTPUT, -100, true)));
    // There is no route_localnet for IPv6: a redirected ::1 would leave with a source nobody can answer.
    batch.rule("nat_output", &Rule::new().to_net(net(LOOPBACK_6)).accept());
    let key = [Field::Protocol, Field::DestinationPort];
    let key_at_4 = [Field::Protocol, Field::Destination4, Field::DestinationPort];
    let key_at_6 = [Field::Protocol, Field::Destination6, Field::DestinationPort];
    for chain in ["nat_prerouting", "nat_output"] {
        batch.rule(chain, &Rule::new().ipv4().redirect_by_map(&key_at_4, &PUBLISH_AT_4, true));
        batch.rule(chain, &Rule::new().ipv6().redirect_by_map(&key_at_6, &PUBLISH_AT_6, false));
        // Only what is addressed to this machine: a port map must not catch traffic passing through.
        batch.rule(chain, &Rule::new().ipv4().to_local_address().redirect_by_map(&key, &PUBLISH_4, true));
        batch.rule(chain, &Rule::new().ipv6().to_local_address().redirect_by_map(&key, &PUBLISH_6, false));
    }
}

/// Sender addresses that must be the machine's, so that answers come back through it.
fn masquerade(batch: &mut Batch, rules: &Rules) {
    batch.chain("nat_postrouting", Some(hook("nat", POSTROUTING, 100, true)));
    for bridge in &rules.bridges {
        for subnet in bridge.gateways.iter().map(ipnet::IpNet::trunc) {
            let from = || Rule::new().from_net(subnet);
            if bridge.masquerade && !bridge.internal {
                batch.rule("nat_postrouting", &from().not_to_interface(&bridge.name).masquerade());
            }
            // A container that reaches a published port of its own network: its peer would answer directly.
            batch.rule("nat_postrouting", &from().to_interface(&bridge.name).redirected().masquerade());
        }
        // The machine's own programs at 127.0.0.1.
        let local = Rule::new().to_interface(&bridge.name).from_net(net(LOOPBACK_4));
        batch.rule("nat_postrouting", &local.masquerade());
    }
}

/// Between interfaces: nothing passes that no rule lets pass.
fn forward(batch: &mut Batch) {
    batch.chain("mss", Some(hook("filter", FORWARD, -150, true)));
    batch.rule("mss", &Rule::new().clamp_segment_size());

    batch.chain("forward", Some(hook("filter", FORWARD, 0, false)));
    let from = |set| Rule::new().in_set(&[Field::InputInterface], set);
    let to = |set| Rule::new().in_set(&[Field::OutputInterface], set);
    batch.rule("forward", &Rule::new().established().accept());
    batch.rule("forward", &Rule::new().invalid().drop());
    batch.rule("forward", &from(&INTERNAL).drop());
    batch.rule("forward", &to(&INTERNAL).drop());
    batch.rule("forward", &Rule::new().redirected().accept());
    for never in [LINK_LOCAL_4, METADATA_6].map(net) {
        batch.rule("forward", &from(&BRIDGES).to_net(never).drop());
    }
    // From one network to another, and around the isolation of ports of one network.
    batch.rule("forward", &to(&BRIDGES).drop());
    batch.rule("forward", &from(&BRIDGES).accept());
}

/// From containers to the machine: name service, ping and neighbour discovery at the network's own gateway.
fn input(batch: &mut Batch, rules: &Rules) {
    batch.chain("input", Some(hook("filter", INPUT, 0, true)));
    batch.chain("gateway", None);
    let rule = Rule::new().not_in_set(&[Field::InputInterface], &BRIDGES);
    batch.rule("input", &rule.accept());
    batch.rule("input", &Rule::new().established().accept());
    for kind in [NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT] {
        let neighbour = Rule::new().ipv6().is(Field::Protocol, &[ICMPV6]).is(Field::IcmpType, &[kind]);
        batch.rule("input", &neighbour.accept());
    }
    let gateway4 = Rule::new().ipv4().in_set(&[Field::InputInterface, Field::Destination4], &GATEWAYS_4);
    let gateway6 = Rule::new().ipv6().in_set(&[Field::InputInterface, Field::Destination6], &GATEWAYS_6);
    batch.rule("input", &gateway4.jump("gateway"));
    batch.rule("input", &gateway6.jump("gateway"));
    batch.rule("input", &Rule::new().drop());

    for (protocol, kind) in [(ICMP, ECHO_REQUEST), (ICMPV6, ECHO_REQUEST_6)] {
        let echo = Rule::new().is(Field::Protocol, &[protocol]).is(Field::IcmpType, &[kind]);
        batch.rule("gateway", &echo.accept());
    }
    let dns = [(Protocol::Udp, DNS_PORT), (Protocol::Tcp, DNS_PORT)];
    for (protocol, port) in dns.iter().chain(&rules.host_ports) {
        let service = Rule::new().is(Field::Protocol, &[protocol.number()]);
        batch.rule("gateway", &service.is(Field::DestinationPort, &port.to_be_bytes()).accept());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_constant_nets_parse() {
        for text in [LOOPBACK_4, LOOPBACK_6, LINK_LOCAL_4, METADATA_6] {
            assert_eq!(net(text).to_string(), text);
        }
    }
}
