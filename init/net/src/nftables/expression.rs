//! What rules are made of. A rule is a list of expressions worked off in order; one that does not match ends the rule.
//!
//! Matching goes through registers: 1 is sixteen bytes wide; 8 to 23 are four bytes each (8 to 11 are the quarters of
//! 1), used where a key is joined of several fields.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::encode::Attributes;

/// The sixteen-byte register.
const WIDE: u32 = 1;
/// The first four-byte register; the next ones follow.
const QUARTER: u32 = 8;

const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const META_PROTOCOL: u32 = 1;

const BASE_LINK: u32 = 0;
const BASE_NETWORK: u32 = 1;
const BASE_TRANSPORT: u32 = 2;

const CT_STATE: u32 = 0;
const CT_STATUS: u32 = 2;
const CT_ESTABLISHED_OR_RELATED: u32 = 0x06;
const CT_INVALID: u32 = 0x01;
const CT_STATUS_DNAT: u32 = 0x20;

const DROP: u32 = 0;
const ACCEPT: u32 = 1;
const JUMP: i32 = -3;
const GOTO: i32 = -4;
const RETURN: i32 = -5;

const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// A rule under construction.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use]
pub struct Rule {
    list: Attributes,
}

/// A field of a packet, to be compared or to be part of a joined key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// Name of the interface the packet came in by (16 bytes).
    InputInterface,
    /// Name of the interface the packet leaves by (16 bytes).
    OutputInterface,
    /// Transport protocol (1 byte).
    Protocol,
    /// EtherType (2 bytes, big-endian); bridge family.
    EtherType,
    /// Sender's Ethernet address (6 bytes); bridge family.
    EtherSource,
    /// IPv4 sender (4 bytes).
    Source4,
    /// IPv4 destination (4 bytes).
    Destination4,
    /// IPv6 sender (16 bytes).
    Source6,
    /// IPv6 destination (16 bytes).
    Destination6,
    /// Source port of TCP, UDP or SCTP (2 bytes).
    SourcePort,
    /// Destination port of TCP, UDP or SCTP (2 bytes).
    DestinationPort,
    /// Type of an ICMP or ICMPv6 message (1 byte).
    IcmpType,
    /// Target of a neighbour solicitation or advertisement (16 bytes).
    NeighbourTarget,
    /// Sender's Ethernet address inside an ARP packet (6 bytes).
    ArpSenderMac,
    /// Sender's IPv4 address inside an ARP packet (4 bytes).
    ArpSenderIp,
}

enum Load {
    Meta(u32),
    Payload { base: u32, offset: u32, length: u32 },
}

impl Field {
    fn load(self) -> Load {
        let payload = |base, offset, length| Load::Payload { base, offset, length };
        match self {
            Field::InputInterface => Load::Meta(META_IIFNAME),
            Field::OutputInterface => Load::Meta(META_OIFNAME),
            Field::Protocol => Load::Meta(META_L4PROTO),
            Field::EtherType => Load::Meta(META_PROTOCOL),
            Field::EtherSource => payload(BASE_LINK, 6, 6),
            Field::Source4 => payload(BASE_NETWORK, 12, 4),
            Field::Destination4 => payload(BASE_NETWORK, 16, 4),
            Field::Source6 => payload(BASE_NETWORK, 8, 16),
            Field::Destination6 => payload(BASE_NETWORK, 24, 16),
            Field::SourcePort => payload(BASE_TRANSPORT, 0, 2),
            Field::DestinationPort => payload(BASE_TRANSPORT, 2, 2),
            Field::IcmpType => payload(BASE_TRANSPORT, 0, 1),
            Field::NeighbourTarget => payload(BASE_TRANSPORT, 8, 16),
            Field::ArpSenderMac => payload(BASE_NETWORK, 8, 6),
            Field::ArpSenderIp => payload(BASE_NETWORK, 14, 4),
        }
    }

    /// Bytes the field takes in a joined key.
    pub fn key_bytes(self) -> usize {
        let length: usize = match self.load() {
            Load::Meta(META_IIFNAME | META_OIFNAME) => 16,
            Load::Meta(_) => 4,
            Load::Payload { length, .. } => length as usize,
        };
        length.next_multiple_of(4)
    }
}

impl Rule {
    /// A rule that matches every packet.
    pub fn new() -> Rule {
        Rule::default()
    }

    /// The encoded expressions.
    pub fn as_bytes(&self) -> &[u8] {
        self.list.as_bytes()
    }

    /// Matches when `field` is `value`.
    pub fn is(self, field: Field, value: &[u8]) -> Rule {
        self.load(field, WIDE).compare(EQUAL, value)
    }

    /// Matches when `field` is not `value`.
    pub fn is_not(self, field: Field, value: &[u8]) -> Rule {
        self.load(field, WIDE).compare(NOT_EQUAL, value)
    }

    /// Matches packets that came in by the interface.
    pub fn from_interface(self, name: &str) -> Rule {
        self.is(Field::InputInterface, &interface(name))
    }

    /// Matches packets that did not come in by the interface.
    pub fn not_from_interface(self, name: &str) -> Rule {
        self.is_not(Field::InputInterface, &interface(name))
    }

    /// Matches packets that leave by the interface.
    pub fn to_interface(self, name: &str) -> Rule {
        self.is(Field::OutputInterface, &interface(name))
    }

    /// Matches packets that do not leave by the interface.
    pub fn not_to_interface(self, name: &str) -> Rule {
        self.is_not(Field::OutputInterface, &interface(name))
    }

    /// Matches IPv4 packets; needed before IPv4 fields in the inet family.
    pub fn ipv4(self) -> Rule {
        self.meta(META_NFPROTO, WIDE).compare(EQUAL, &[IPV4])
    }

    /// Matches IPv6 packets; needed before IPv6 fields in the inet family.
    pub fn ipv6(self) -> Rule {
        self.meta(META_NFPROTO, WIDE).compare(EQUAL, &[IPV6])
    }

    /// Matches packets of the address's family to exactly that address.
    pub fn to_address(self, address: IpAddr) -> Rule {
        match address {
            IpAddr::V4(address) => self.ipv4().is(Field::Destination4, &address.octets()),
            IpAddr::V6(address) => self.ipv6().is(Field::Destination6, &address.octets()),
        }
    }

    /// Matches packets of the net's family from the net.
    pub fn from_net(self, net: IpNet) -> Rule {
        match net {
            IpNet::V4(_) => self.ipv4().within(Field::Source4, net),
            IpNet::V6(_) => self.ipv6().within(Field::Source6, net),
        }
    }

    /// Matches packets of the net's family to the net.
    pub fn to_net(self, net: IpNet) -> Rule {
        match net {
            IpNet::V4(_) => self.ipv4().within(Field::Destination4, net),
            IpNet::V6(_) => self.ipv6().within(Field::Destination6, net),
        }
    }

    /// Matches when the destination is an address of this machine.
    pub fn to_local_address(mut self) -> Rule {
        const RESULT_ADDRTYPE: u32 = 3;
        const FLAG_DADDR: u32 = 2;
        const RTN_LOCAL: u32 = 2;
        self.expression("fib", |data| {
            data.number(1, WIDE);
            data.number(2, RESULT_ADDRTYPE);
            data.number(3, FLAG_DADDR);
        });
        self.compare(EQUAL, &RTN_LOCAL.to_ne_bytes())
    }

    /// Matches packets of connections seen before, and errors about them.
    pub fn established(self) -> Rule {
        self.conntrack(CT_STATE).any_bit(CT_ESTABLISHED_OR_RELATED)
    }

    /// Matches packets that belong to no connection and cannot open one.
    pub fn invalid(self) -> Rule {
        self.conntrack(CT_STATE).any_bit(CT_INVALID)
    }

    /// Matches packets of connections to a published port.
    pub fn redirected(self) -> Rule {
        self.conntrack(CT_STATUS).any_bit(CT_STATUS_DNAT)
    }

    /// Matches when `fields` joined are a key of the set.
    pub fn in_set(self, fields: &[Field], set: &super::Set) -> Rule {
        self.lookup(fields, set, false)
    }

    /// Matches when `fields` joined are not a key of the set.
    pub fn not_in_set(self, fields: &[Field], set: &super::Set) -> Rule {
        self.lookup(fields, set, true)
    }

    /// Redirects to the address and port the map has for `fields` joined; no match when it has none. The map's value
    /// is the address followed by the port.
    pub fn redirect_by_map(self, fields: &[Field], map: &super::Set, ipv4: bool) -> Rule {
        const NAT_DNAT: u32 = 1;
        // There are sixteen quarters; the longest key (protocol, IPv6 address, port) takes six, its value five.
        let value = QUARTER + quarters(fields);
        let mut rule = self.load_joined(fields);
        rule.expression("lookup", |data| {
            data.text(1, map.name);
            data.number(2, QUARTER);
            data.number(3, value);
            data.number(4, map.id);
        });
        rule.expression("nat", |data| {
            data.number(1, NAT_DNAT);
            data.number(2, u32::from(if ipv4 { IPV4 } else { IPV6 }));
            data.number(3, value);
            data.number(5, value + if ipv4 { 1 } else { 4 });
        });
        rule
    }

    /// Replaces the sender's address by the one of the interface the packet leaves by.
    pub fn masquerade(mut self) -> Rule {
        self.expression("masq", |_| {});
        self
    }

    /// On the opening packet of a TCP connection: lowers the largest segment to what the route carries.
    pub fn clamp_segment_size(mut self) -> Rule {
        const TCP: u8 = 6;
        const FLAGS_OFFSET: u32 = 13;
        const SYN: u8 = 2;
        const RST: u8 = 4;
        const RT_TCPMSS: u32 = 3;
        const BYTEORDER_HTON: u32 = 1;
        const OPTION_MAXSEG: u8 = 2;
        const EXTHDR_OP_TCPOPT: u32 = 1;
        self = self.is(Field::Protocol, &[TCP]);
        self.payload(BASE_TRANSPORT, FLAGS_OFFSET, 1, WIDE);
        self.mask(&[SYN | RST], &[0]);
        self = self.compare(EQUAL, &[SYN]);
        self.expression("rt", |data| {
            data.number(1, WIDE);
            data.number(2, RT_TCPMSS);
        });
        self.expression("byteorder", |data| {
            data.number(1, WIDE);
            data.number(2, WIDE);
            data.number(3, BYTEORDER_HTON);
            data.number(4, 2);
            data.number(5, 2);
        });
        self.expression("exthdr", |data| {
            data.raw(2, &[OPTION_MAXSEG]);
            data.number(3, 2);
            data.number(4, 2);
            data.number(6, EXTHDR_OP_TCPOPT);
            data.number(7, WIDE);
        });
        self
    }

    /// Ends the rule with: let it pass.
    pub fn accept(self) -> Rule {
        self.verdict(ACCEPT, None)
    }

    /// Ends the rule with: drop it.
    pub fn drop(self) -> Rule {
        self.verdict(DROP, None)
    }

    /// Ends the rule with: back to the calling chain.
    pub fn back(self) -> Rule {
        self.verdict(RETURN.cast_unsigned(), None)
    }

    /// Ends the rule with: go through `chain`, then come back.
    pub fn jump(self, chain: &str) -> Rule {
        self.verdict(JUMP.cast_unsigned(), Some(chain))
    }

    /// Ends the rule with: go through `chain` instead of what follows here.
    pub fn go_to(self, chain: &str) -> Rule {
        self.verdict(GOTO.cast_unsigned(), Some(chain))
    }

    /// Ends the rule with: drop it and tell the sender (administratively prohibited).
    pub fn reject(mut self) -> Rule {
        const REJECT_ICMPX: u32 = 2;
        const ICMPX_ADMIN_PROHIBITED: u8 = 3;
        self.expression("reject", |data| {
            data.number(1, REJECT_ICMPX);
            data.raw(2, &[ICMPX_ADMIN_PROHIBITED]);
        });
        self
    }

    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Attributes)) {
        self.list.nest(1, |expression| {
            expression.text(1, name);
            expression.nest(2, fill);
        });
    }

    fn meta(mut self, key: u32, register: u32) -> Rule {
        self.expression("meta", |data| {
            data.number(1, register);
            data.number(2, key);
        });
        self
    }

    fn payload(&mut self, base: u32, offset: u32, length: u32, register: u32) {
        self.expression("payload", |data| {
            data.number(1, register);
            data.number(2, base);
            data.number(3, offset);
            data.number(4, length);
        });
    }

    fn load(mut self, field: Field, register: u32) -> Rule {
        match field.load() {
            Load::Meta(key) => self.meta(key, register),
            Load::Payload { base, offset, length } => {
                self.payload(base, offset, length, register);
                self
            }
        }
    }

    fn load_joined(self, fields: &[Field]) -> Rule {
        let mut register = QUARTER;
        fields.iter().fold(self, |rule, field| {
            let rule = rule.load(*field, register);
            register += quarters(&[*field]);
            rule
        })
    }

    fn lookup(self, fields: &[Field], set: &super::Set, invert: bool) -> Rule {
        let mut rule = self.load_joined(fields);
        rule.expression("lookup", |data| {
            data.text(1, set.name);
            data.number(2, QUARTER);
            data.number(4, set.id);
            if invert {
                data.number(5, 1);
            }
        });
        rule
    }

    fn compare(mut self, operation: u32, value: &[u8]) -> Rule {
        self.expression("cmp", |data| {
            data.number(1, WIDE);
            data.number(2, operation);
            data.nest(3, |value_of| value_of.raw(1, value));
        });
        self
    }

    fn mask(&mut self, mask: &[u8], xor: &[u8]) {
        let length = u32::try_from(mask.len()).unwrap_or_default();
        self.expression("bitwise", |data| {
            data.number(1, WIDE);
            data.number(2, WIDE);
            data.number(3, length);
            data.nest(4, |value| value.raw(1, mask));
            data.nest(5, |value| value.raw(1, xor));
        });
    }

    /// Matches when `field` lies in `net`. The family has been checked before.
    fn within(self, field: Field, net: IpNet) -> Rule {
        let (network, mask) = (octets(net.network()), octets(net.netmask()));
        let mut rule = self.load(field, WIDE);
        rule.mask(&mask, &vec![0; mask.len()]);
        rule.compare(EQUAL, &network)
    }

    fn conntrack(mut self, key: u32) -> Rule {
        self.expression("ct", |data| {
            data.number(1, WIDE);
            data.number(2, key);
        });
        self
    }

    fn any_bit(mut self, bits: u32) -> Rule {
        self.mask(&bits.to_ne_bytes(), &[0; 4]);
        self.compare(NOT_EQUAL, &[0; 4])
    }

    fn verdict(mut self, code: u32, chain: Option<&str>) -> Rule {
        const REGISTER_VERDICT: u32 = 0;
        self.expression("immediate", |data| {
            data.number(1, REGISTER_VERDICT);
            data.nest(2, |value| {
                value.nest(2, |verdict| {
                    verdict.number(1, code);
                    if let Some(chain) = chain {
                        verdict.text(2, chain);
                    }
                });
            });
        });
        self
    }
}

fn quarters(fields: &[Field]) -> u32 {
    let bytes: usize = fields.iter().map(|field| field.key_bytes()).sum();
    u32::try_from(bytes / 4).unwrap_or_default()
}

/// An interface name as the kernel compares it: filled with zeros to sixteen bytes.
pub fn interface(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    bytes
}

/// The bytes of an address.
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Joins the parts of a key, each padded to four bytes.
pub fn joined(parts: &[&[u8]]) -> Vec<u8> {
    let mut key = Vec::new();
    for part in parts {
        key.extend(*part);
        key.resize(key.len().next_multiple_of(4), 0);
    }
    key
}

/// The address behind the last one of `net`, or `None` when the net ends with the address space.
pub fn behind(net: IpNet) -> Option<IpAddr> {
    match net {
        IpNet::V4(net) => u32::from(net.broadcast()).checked_add(1).map(|n| IpAddr::V4(Ipv4Addr::from(n))),
        IpNet::V6(net) => u128::from(net.broadcast()).checked_add(1).map(|n| IpAddr::V6(Ipv6Addr::from(n))),
    }
}
