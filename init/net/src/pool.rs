//! Address pools: which subnet a new network gets and which address a new container gets. Pure; the agent keeps
//! the result in its state.
//!
//! Addresses are handed out in turn rather than lowest first, so an address just released rests as long as possible
//! before a new container gets it: neighbours' ARP caches and clients' connections do not land on a stranger.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Most addresses one pool hands out at a time: bounds the memory of a /8 or a /64.
const MAX_ALLOCATED: usize = 65_536;

/// Why an address or subnet could not be given.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PoolError {
    /// Every address of the range is in use.
    #[error("no available IP addresses in {0}")]
    Exhausted(IpNet),
    /// The address asked for lies outside the subnet or is its network, broadcast or gateway address.
    #[error("{address} is not a usable address of {subnet}")]
    NotUsable {
        /// The address asked for.
        address: IpAddr,
        /// The subnet of the pool.
        subnet: IpNet,
    },
    /// The address asked for belongs to somebody.
    #[error("Address already in use: {0}")]
    InUse(IpAddr),
    /// The range or gateway does not lie in the subnet, or the subnet has no room for a host.
    #[error("{range} does not fit into {subnet}")]
    BadRange {
        /// The range or gateway given.
        range: IpNet,
        /// The subnet given.
        subnet: IpNet,
    },
    /// Every subnet of the default pools overlaps one in use.
    #[error("all predefined address pools have been fully subnetted")]
    NoSubnet,
}

/// The addresses of one subnet.
#[derive(Debug, Clone)]
pub struct Ipam {
    subnet: IpNet,
    range: IpNet,
    gateway: IpAddr,
    taken: BTreeSet<u128>,
    next: u128,
}

impl Ipam {
    /// A pool over `subnet`, handing out addresses of `range` (default: all of it). The gateway is the first usable
    /// address unless given.
    pub fn new(subnet: IpNet, range: Option<IpNet>, gateway: Option<IpAddr>) -> Result<Ipam, PoolError> {
        let subnet = subnet.trunc();
        let range = range.map_or(subnet, |range| range.trunc());
        if !subnet.contains(&range) {
            return Err(PoolError::BadRange { range, subnet });
        }
        let (first, last) = usable(subnet);
        if first > last {
            return Err(PoolError::BadRange { range: subnet, subnet });
        }
        let gateway = gateway.unwrap_or_else(|| address_of(subnet, first));
        let number = number_of(gateway);
        if !subnet.contains(&gateway) || number < first || number > last {
            return Err(PoolError::NotUsable { address: gateway, subnet });
        }
        let mut pool = Ipam { subnet, range, gateway, taken: BTreeSet::new(), next: 0 };
        pool.next = pool.bounds().0;
        Ok(pool)
    }

    /// The subnet.
    pub fn subnet(&self) -> IpNet {
        self.subnet
    }

    /// The address of the bridge in this subnet.
    pub fn gateway(&self) -> IpAddr {
        self.gateway
    }

    /// The gateway with the prefix length of the subnet, as the bridge carries it.
    pub fn gateway_net(&self) -> IpNet {
        with_prefix(self.gateway, self.subnet)
    }

    /// `address` with the prefix length of the subnet, as a container's interface carries it.
    pub fn interface_net(&self, address: IpAddr) -> IpNet {
        with_prefix(address, self.subnet)
    }

    /// How many addresses are handed out.
    pub fn in_use(&self) -> usize {
        self.taken.len()
    }

    /// Hands out the next free address of the range.
    pub fn allocate(&mut self) -> Result<IpAddr, PoolError> {
        let (first, last) = self.bounds();
        if self.taken.len() >= MAX_ALLOCATED {
            return Err(PoolError::Exhausted(self.range));
        }
        let gateway = number_of(self.gateway);
        // At most `taken + 2` candidates can be refused, so this ends however large the range is.
        let mut candidate = self.next.clamp(first, last);
        let mut left = (last - first).min(self.taken.len() as u128 + 2) + 1;
        while left > 0 {
            let following = if candidate == last { first } else { candidate + 1 };
            if candidate != gateway && self.taken.insert(candidate) {
                self.next = following;
                return Ok(address_of(self.subnet, candidate));
            }
            candidate = following;
            left -= 1;
        }
        Err(PoolError::Exhausted(self.range))
    }

    /// Takes one address asked for by name; it may lie outside the range but must lie in the subnet.
    pub fn reserve(&mut self, address: IpAddr) -> Result<(), PoolError> {
        let (first, last) = usable(self.subnet);
        let number = number_of(address);
        if !self.subnet.contains(&address) || number < first || number > last {
            return Err(PoolError::NotUsable { address, subnet: self.subnet });
        }
        if address == self.gateway || self.taken.len() >= MAX_ALLOCATED || !self.taken.insert(number) {
            return Err(PoolError::InUse(address));
        }
        Ok(())
    }

    /// Gives an address back; one that was not handed out is ignored.
    pub fn release(&mut self, address: IpAddr) {
        if address.is_ipv4() == self.gateway.is_ipv4() {
            self.taken.remove(&number_of(address));
        }
    }

    fn bounds(&self) -> (u128, u128) {
        let (first, last) = usable(self.subnet);
        let (from, to) = whole(self.range);
        (from.max(first), to.min(last))
    }
}

/// The subnets new networks get when none is asked for.
#[derive(Debug, Clone)]
pub struct Subnets {
    pools: Vec<(Ipv4Net, u8)>,
    ula: Ipv6Net,
}

impl Subnets {
    /// Docker's default pools: /16s of 172.17 to 172.31, then /20s of 192.168. IPv6 networks get /64s of the unique
    /// local prefix made from `machine_id` (RFC 4193: 40 random bits, here stable for the machine).
    pub fn new(machine_id: &[u8]) -> Subnets {
        let mut pools: Vec<(Ipv4Net, u8)> =
            (17..32).map(|second| (net4(Ipv4Addr::new(172, second, 0, 0), 16), 16)).collect();
        pools.push((net4(Ipv4Addr::new(192, 168, 0, 0), 16), 20));
        let mut global: u64 = 0xcbf2_9ce4_8422_2325;
        for byte in machine_id {
            global = (global ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        let prefix = (0xfd_u128 << 120) | (u128::from(global & 0xff_ffff_ffff) << 80);
        Subnets { pools, ula: Ipv6Net::new_assert(Ipv6Addr::from(prefix), 48) }
    }

    /// The first IPv4 subnet that overlaps none of `used` (other networks and the host's own routes).
    pub fn free_v4(&self, used: &[IpNet]) -> Result<Ipv4Net, PoolError> {
        let free = |subnet: &Ipv4Net| !used.iter().any(|other| overlap(IpNet::V4(*subnet), *other));
        let mut candidates =
            self.pools.iter().flat_map(|(pool, length)| pool.subnets(*length).into_iter().flatten());
        candidates.find(free).ok_or(PoolError::NoSubnet)
    }

    /// The first IPv6 /64 that overlaps none of `used`.
    pub fn free_v6(&self, used: &[IpNet]) -> Result<Ipv6Net, PoolError> {
        let free = |subnet: &Ipv6Net| !used.iter().any(|other| overlap(IpNet::V6(*subnet), *other));
        let mut candidates = self.ula.subnets(64).into_iter().flatten();
        candidates.find(free).ok_or(PoolError::NoSubnet)
    }
}

/// True when the two have an address in common.
pub fn overlap(one: IpNet, other: IpNet) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

fn net4(address: Ipv4Addr, length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(address, length)
}

fn number_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn address_of(subnet: IpNet, number: u128) -> IpAddr {
    match subnet {
        // The number lies in an IPv4 subnet, so its upper bits are zero.
        IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::try_from(number & 0xffff_ffff).unwrap_or_default())),
        IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

fn with_prefix(address: IpAddr, subnet: IpNet) -> IpNet {
    IpNet::new(address, subnet.prefix_len()).unwrap_or_else(|_| IpNet::from(address))
}

fn whole(net: IpNet) -> (u128, u128) {
    (number_of(net.network()), number_of(net.broadcast()))
}

/// First and last address a host may have: not the network and broadcast address, nor IPv6's subnet-router anycast.
fn usable(net: IpNet) -> (u128, u128) {
    let (first, last) = whole(net);
    match net {
        IpNet::V4(net) if net.prefix_len() >= 31 => (first, last),
        IpNet::V4(_) => (first + 1, last - 1),
        IpNet::V6(net) if net.prefix_len() >= 127 => (first, last),
        IpNet::V6(_) => (first + 1, last),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_come_in_turn_and_a_released_one_rests() {
        let mut pool = Ipam::new(net("10.0.0.0/29"), None, None).unwrap();
        assert_eq!(pool.gateway_net(), net("10.0.0.1/29"));
        assert_eq!(pool.allocate(), Ok(ip("10.0.0.2")));
        assert_eq!(pool.allocate(), Ok(ip("10.0.0.3")));
        pool.release(ip("10.0.0.2"));
        let rest: Vec<IpAddr> = (0..4).map(|_| pool.allocate().unwrap()).collect();
        assert_eq!(rest, ["10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.2"].map(ip));
        assert_eq!(pool.allocate(), Err(PoolError::Exhausted(net("10.0.0.0/29"))));
        assert_eq!(pool.in_use(), 5);
    }

    #[test]
    fn asked_for_addresses_are_checked() {
        let mut pool = Ipam::new(net("10.0.0.0/24"), Some(net("10.0.0.128/25")), None).unwrap();
        assert_eq!(pool.allocate(), Ok(ip("10.0.0.128")));
        assert_eq!(pool.reserve(ip("10.0.0.7")), Ok(()));
        assert_eq!(pool.reserve(ip("10.0.0.7")), Err(PoolError::InUse(ip("10.0.0.7"))));
        assert_eq!(pool.reserve(ip("10.0.0.1")), Err(PoolError::InUse(ip("10.0.0.1"))));
        for bad in ["10.0.0.0", "10.0.0.255", "10.0.1.1", "fd00::1"] {
            assert!(matches!(pool.reserve(ip(bad)), Err(PoolError::NotUsable { .. })), "{bad}");
        }
        assert!(Ipam::new(net("10.0.0.0/24"), Some(net("10.0.0.0/23")), None).is_err());
        assert!(Ipam::new(net("10.0.0.0/24"), None, Some(ip("10.0.1.1"))).is_err());
    }

    #[test]
    fn a_large_subnet_costs_no_more_than_what_is_used() {
        let mut pool = Ipam::new(net("fd00::/64"), None, None).unwrap();
        assert_eq!(pool.gateway(), ip("fd00::1"));
        assert_eq!(pool.allocate(), Ok(ip("fd00::2")));
        pool.reserve(ip("fd00::3")).unwrap();
        assert_eq!(pool.allocate(), Ok(ip("fd00::4")));
        pool.release(ip("10.0.0.4"));
        assert_eq!(pool.in_use(), 3);
    }

    #[test]
    fn point_to_point_subnets_have_two_hosts() {
        let mut pool = Ipam::new(net("10.0.0.0/31"), None, None).unwrap();
        assert_eq!((pool.gateway(), pool.allocate()), (ip("10.0.0.0"), Ok(ip("10.0.0.1"))));
        assert!(pool.allocate().is_err());
    }

    #[test]
    fn default_subnets_avoid_what_is_in_use() {
        let subnets = Subnets::new(b"machine");
        assert_eq!(IpNet::V4(subnets.free_v4(&[]).unwrap()), net("172.17.0.0/16"));
        let used = [net("172.16.0.0/12"), net("192.168.1.0/24")];
        assert_eq!(IpNet::V4(subnets.free_v4(&used).unwrap()), net("192.168.16.0/20"));
        let all = [net("0.0.0.0/0")];
        assert_eq!(subnets.free_v4(&all), Err(PoolError::NoSubnet));
        let first = subnets.free_v6(&[]).unwrap();
        assert_eq!(first.addr().octets()[0], 0xfd);
        assert_ne!(subnets.free_v6(&[IpNet::V6(first)]).unwrap(), first);
    }
}
