//! A container's place in a network: its addresses, taken and given back, and its way out among several.

use std::net::IpAddr;

use berth_net::pool::{Ipam, PoolError};
use berth_net::ports::Held;
use berth_net::{IpNet, Mac};

use super::connect::ConnectError;
use super::options::Driver;
use super::record::DEFAULT;
use super::registry::{Known, Network, VETH_PREFIX};
use super::wanted::{Member, Wanted};
use crate::store::EndpointRecord;

/// A container in a network.
#[derive(Debug)]
pub(super) struct Place {
    /// Container name.
    pub(super) name: String,
    /// What the network's name server answers with its addresses.
    pub(super) names: Vec<String>,
    /// Names only it has for others.
    pub(super) links: Vec<(String, String)>,
    /// Among its networks, the one with the highest leads out.
    pub(super) priority: i64,
    /// What is remembered.
    pub(super) record: EndpointRecord,
    /// Sockets that hold the published ports; closing them gives the ports back.
    pub(super) held: Vec<Held>,
    /// It was told of; a start that fails half-way is not.
    pub(super) arrived: bool,
}

impl Place {
    pub(super) fn of(member: &Member, wanted: &Wanted, record: EndpointRecord) -> Place {
        Place {
            name: member.name.clone(),
            names: wanted.names.clone(),
            links: wanted.links.clone(),
            priority: wanted.priority,
            record,
            held: Vec::new(),
            arrived: false,
        }
    }

    /// Its addresses, IPv4 first.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        addresses(&self.record)
    }
}

/// The addresses of a place, IPv4 first.
pub(super) fn addresses(record: &EndpointRecord) -> Vec<IpAddr> {
    [&record.ip, &record.ip6].into_iter().filter_map(|text| text.parse().ok()).collect()
}

/// The key of a place.
pub(super) type Key = (String, String);

impl Known {
    /// A container's places, by network name.
    pub(super) fn places_of<'a>(&'a self, container: &'a str) -> impl Iterator<Item = (&'a str, &'a Place)> {
        let from = (container.to_owned(), String::new());
        let own = self.places.range(from..).take_while(move |((id, _), _)| id == container);
        own.map(|((_, network), place)| (network.as_str(), place))
    }

    /// The networks a container's packets leave by, for IPv4 and IPv6: of those that lead outside the one with the
    /// highest priority, and of several the first by name.
    pub(super) fn ways_out(&self, container: &str) -> [Option<String>; 2] {
        let way = |ipv4: bool| {
            let leads = self.places_of(container).filter(|(network, place)| {
                let outside = self.networks.get(*network).is_some_and(|network| !network.record.internal);
                let has = if ipv4 { &place.record.ip } else { &place.record.ip6 };
                outside && !has.is_empty()
            });
            let best = leads.max_by_key(|(network, place)| (place.priority, std::cmp::Reverse(*network)));
            best.map(|(network, _)| network.to_owned())
        };
        [way(true), way(false)]
    }

    /// The gateways a container has by one of its networks.
    pub(super) fn gateways_by(&self, container: &str, network: &str) -> Vec<IpAddr> {
        let key = (container.to_owned(), network.to_owned());
        let Some(place) = self.places.get(&key) else { return Vec::new() };
        let [way4, way6] = self.ways_out(container);
        let of =
            |way: Option<String>, text: &str| text.parse().ok().filter(|_| way.as_deref() == Some(network));
        let gateways = [of(way4, &place.record.gateway), of(way6, &place.record.gateway6)];
        gateways.into_iter().flatten().collect()
    }

    /// Takes addresses and writes the place down, so that nobody else gets them.
    pub(super) fn reserve(&mut self, member: &Member, wanted: &Wanted) -> Result<(), ConnectError> {
        let endpoint_id = crate::id::random().map_err(ConnectError::Random)?;
        let used: Vec<String> =
            self.places_of(&member.id).map(|(_, place)| place.record.interface.clone()).collect();
        let network = self.networks.get_mut(&wanted.network);
        let network = network.ok_or_else(|| ConnectError::NoNetwork(wanted.network.clone()))?;
        let prefix = network.settings.prefix.clone();
        // There are fewer interfaces than this bound, so one name is free.
        let mut names = (0..=used.len()).map(|number| format!("{prefix}{number}"));
        let interface = names.find(|name| !used.contains(name)).unwrap_or(prefix);
        let ip = network.take(true, wanted.ip.map(IpAddr::V4))?;
        let ip6 = match network.take(false, wanted.ip6.map(IpAddr::V6)) {
            Ok(address) => address,
            Err(error) => {
                network.give_back(&ip.into_iter().collect::<Vec<_>>());
                return Err(error);
            }
        };
        let direct = matches!(network.settings.driver, Driver::Direct { .. });
        let ipvlan = network.record.driver == "ipvlan";
        let mac = wanted.mac.unwrap_or_else(|| mac(ip, &endpoint_id));
        let text = |address: Option<IpAddr>| address.map(|address| address.to_string()).unwrap_or_default();
        let gateway = |pool: Option<&Ipam>| text(pool.map(Ipam::gateway));
        let length = |pool: Option<&Ipam>| pool.map_or(0, |pool| pool.subnet().prefix_len());
        let record = EndpointRecord {
            network_id: network.record.id.clone(),
            ip: text(ip),
            prefix: length(network.v4.as_ref()),
            gateway: gateway(network.v4.as_ref()),
            ip6: text(ip6),
            prefix6: length(network.v6.as_ref()),
            gateway6: gateway(network.v6.as_ref()),
            mac: if ipvlan { String::new() } else { mac.to_string() },
            host_name: if direct {
                String::new()
            } else {
                format!("{VETH_PREFIX}{}", endpoint_id.get(..7).unwrap_or_default())
            },
            interface,
            endpoint_id,
            ports: Vec::new(),
        };
        self.places.insert((member.id.clone(), wanted.network.clone()), Place::of(member, wanted, record));
        Ok(())
    }
}

impl Network {
    fn pool(&mut self, ipv4: bool) -> Option<&mut Ipam> {
        if ipv4 { self.v4.as_mut() } else { self.v6.as_mut() }
    }

    /// An address of one family: the one asked for, or the next; none when the network has none of the family.
    fn take(&mut self, ipv4: bool, asked: Option<IpAddr>) -> Result<Option<IpAddr>, ConnectError> {
        let of_family = |subnet: &&super::record::Subnet| subnet.gateway.is_ipv4() == ipv4;
        let configured = self.record.subnets.iter().find(of_family).is_some_and(|subnet| subnet.configured);
        if asked.is_some() && self.record.name == DEFAULT {
            return Err(ConnectError::NotOnDefault);
        }
        if asked.is_some() && !configured {
            return Err(ConnectError::NotConfigured);
        }
        let Some(pool) = self.pool(ipv4) else { return Ok(None) };
        let taken = match asked {
            Some(address) => pool.reserve(address).map(|()| address).map_err(|error| match error {
                PoolError::NotUsable { address, .. } => ConnectError::Outside(address),
                error => ConnectError::Address(error),
            }),
            None => pool.allocate().map_err(ConnectError::Address),
        };
        taken.map(Some)
    }

    /// Takes the addresses of a container that outlived the agent.
    pub(super) fn retake(&mut self, addresses: &[IpAddr]) -> Result<(), PoolError> {
        for address in addresses {
            if let Some(pool) = self.pool(address.is_ipv4()) {
                pool.reserve(*address)?;
            }
        }
        Ok(())
    }

    /// Gives addresses back.
    pub(super) fn give_back(&mut self, addresses: &[IpAddr]) {
        for address in addresses {
            if let Some(pool) = self.pool(address.is_ipv4()) {
                pool.release(*address);
            }
        }
    }

    /// A place's addresses with the prefix lengths of the subnets.
    pub(super) fn interface_nets(&self, record: &EndpointRecord) -> Vec<IpNet> {
        let net = |address: IpAddr| {
            let pool = if address.is_ipv4() { self.v4.as_ref() } else { self.v6.as_ref() };
            pool.map(|pool| pool.interface_net(address))
        };
        addresses(record).into_iter().filter_map(net).collect()
    }
}

/// An Ethernet address no other container of the network has: made of the IPv4 address, else of the endpoint's id.
fn mac(ip: Option<IpAddr>, endpoint_id: &str) -> Mac {
    if let Some(IpAddr::V4(address)) = ip {
        return Mac::from_ipv4(address);
    }
    let octet = |at: usize| {
        let digits = endpoint_id.get(at * 2..at * 2 + 2).unwrap_or("00");
        u8::from_str_radix(digits, 16).unwrap_or(0)
    };
    // 02:42 is locally administered and Docker's; four octets of the id follow.
    Mac([0x02, 0x42, octet(0), octet(1), octet(2), octet(3)])
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::networks::record::{Record, Subnet};

    fn network(name: &str, subnets: &[(&str, &str)], internal: bool) -> Record {
        let subnet = |(subnet, gateway): &(&str, &str)| Subnet {
            net: (*subnet).to_owned(),
            gateway: gateway.parse().unwrap(),
            range: String::new(),
            reserved: std::collections::BTreeMap::new(),
            configured: true,
        };
        let subnets = subnets.iter().map(subnet).collect();
        let id = format!("id of {name}");
        Record { name: name.to_owned(), id, subnets, internal, ..Record::default_network() }
    }

    fn member(networks: &[(&str, i64)]) -> Member {
        let wanted = |(network, priority): &(&str, i64)| Wanted {
            network: (*network).to_owned(),
            names: vec!["web".to_owned()],
            links: Vec::new(),
            ip: None,
            ip6: None,
            mac: None,
            priority: *priority,
        };
        Member {
            id: "c1".to_owned(),
            name: "web".to_owned(),
            first: "back".to_owned(),
            ports: Vec::new(),
            networks: networks.iter().map(wanted).collect(),
        }
    }

    fn known() -> Known {
        let mut known = Known::default();
        known.add(network("back", &[("10.1.0.0/24", "10.1.0.1"), ("fd01::/64", "fd01::1")], false));
        known.add(network("front", &[("10.2.0.0/24", "10.2.0.1")], false));
        known.add(network("inner", &[("10.3.0.0/24", "10.3.0.1")], true));
        known
    }

    /// Container `c1` in networks `back` (both families), `front` (IPv4) and `inner` (internal), as asked for.
    pub(in crate::networks) fn joined(networks: &[(&str, i64)]) -> Known {
        let (mut known, member) = (known(), member(networks));
        for wanted in &member.networks {
            known.reserve(&member, wanted).unwrap();
        }
        known
    }

    #[test]
    fn the_way_out_is_the_highest_priority_then_the_first_name_and_never_an_internal_network() {
        let ways = |networks: &[(&str, i64)]| joined(networks).ways_out("c1").map(Option::unwrap_or_default);
        assert_eq!(ways(&[("back", 0), ("front", 0), ("inner", 9)]), ["back", "back"]);
        assert_eq!(ways(&[("back", 0), ("front", 1)]), ["front", "back"]);
        assert_eq!(ways(&[("front", 0)]), ["front", ""]);
        assert_eq!(ways(&[("inner", 0)]), ["", ""]);
        let known = joined(&[("back", 0), ("front", 1)]);
        assert_eq!(known.gateways_by("c1", "back"), ["fd01::1".parse::<IpAddr>().unwrap()]);
        assert_eq!(known.gateways_by("c1", "front"), ["10.2.0.1".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn places_have_addresses_of_both_families_and_interfaces_of_their_own() {
        let known = joined(&[("back", 0), ("front", 0)]);
        let shown: Vec<String> = known
            .places_of("c1")
            .map(|(_, place)| {
                let record = &place.record;
                format!("{} {} {} {}", record.interface, record.ip, record.ip6, record.mac)
            })
            .collect();
        assert_eq!(shown, ["eth0 10.1.0.2 fd01::2 02:42:0a:01:00:02", "eth1 10.2.0.2  02:42:0a:02:00:02"]);
    }

    #[test]
    fn addresses_asked_for_are_checked_and_nothing_is_kept_of_a_refusal() {
        let mut known = known();
        let mut member = member(&[("back", 0)]);
        let wanted = &mut member.networks[0];
        wanted.ip = Some("10.1.0.77".parse().unwrap());
        wanted.ip6 = Some("fd02::1".parse().unwrap());
        let wanted = wanted.clone();
        let error = known.reserve(&member, &wanted).unwrap_err().to_string();
        assert_eq!(error, "invalid endpoint settings:\nno configured subnet contains IP address fd02::1");
        let wanted = Wanted { ip6: Some("fd01::77".parse().unwrap()), ..wanted };
        known.reserve(&member, &wanted).unwrap();
        let other = Member { id: "c2".to_owned(), ..member.clone() };
        let error = known.reserve(&other, &wanted).unwrap_err().to_string();
        assert!(error.starts_with("Address already in use"), "{error}");
    }

    #[test]
    fn a_network_without_ipv4_makes_ethernet_addresses_of_endpoints() {
        let mac = mac(None, "0a1b2c3d4e");
        assert_eq!(mac.to_string(), "02:42:0a:1b:2c:3d");
    }
}
