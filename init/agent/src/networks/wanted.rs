//! What a container wants of its networks, out of its record.

use std::net::{Ipv4Addr, Ipv6Addr};

use berth_net::Mac;

use super::publish::{WantedPort, wanted_ports};
use super::record::DEFAULT;
use crate::store::Record;

/// A container as its networks know it.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    /// Container id.
    pub(super) id: String,
    /// Container name.
    pub(super) name: String,
    /// The network it was made for, which gets the first interface.
    pub(super) first: String,
    /// Ports to publish.
    pub(super) ports: Vec<WantedPort>,
    /// Its networks.
    pub(super) networks: Vec<Wanted>,
}

/// What it wants of one network.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// Network name.
    pub(super) network: String,
    /// Names for the network's name server.
    pub(super) names: Vec<String>,
    /// Names only it has for others: name and container.
    pub(super) links: Vec<(String, String)>,
    /// A fixed IPv4 address.
    pub(super) ip: Option<Ipv4Addr>,
    /// A fixed IPv6 address.
    pub(super) ip6: Option<Ipv6Addr>,
    /// A fixed Ethernet address.
    pub(super) mac: Option<Mac>,
    /// The network with the highest one has the default route.
    pub(super) priority: i64,
}

impl Member {
    /// Reads a record; what is wrong with it in Docker's words.
    pub(crate) fn of(record: &Record) -> Result<Member, String> {
        let ports = wanted_ports(&record.config, &record.host_config)?;
        let networks =
            record.networks.keys().map(|network| wanted(record, network)).collect::<Result<_, _>>()?;
        let first = record.host_config.network_mode.clone();
        Ok(Member { id: record.id.clone(), name: record.name.clone(), first, ports, networks })
    }

    /// What it wants of one network.
    pub(super) fn of_network(&self, network: &str) -> Option<&Wanted> {
        self.networks.iter().find(|wanted| wanted.network == network)
    }
}

fn wanted(record: &Record, network: &str) -> Result<Wanted, String> {
    let settings = record.networks.get(network).cloned().unwrap_or_default();
    let ipam = settings.ipam_config.unwrap_or_default();
    let mac = [&settings.mac_address, &record.config.mac_address].into_iter().find(|text| !text.is_empty());
    let mac = match mac {
        None => None,
        Some(text) => {
            let parsed: Option<Mac> = text.parse().ok().filter(|mac: &Mac| !mac.is_multicast());
            Some(parsed.ok_or_else(|| format!("invalid MAC address: {text}"))?)
        }
    };
    let of_network = settings.links.iter().flatten();
    // Links of the container itself are those of the default network.
    let legacy = record.host_config.links.iter().flatten().filter(|_| network == DEFAULT);
    Ok(Wanted {
        network: network.to_owned(),
        names: record.names_in(network),
        links: of_network.chain(legacy).map(|text| link(text)).collect(),
        ip: address(&ipam.ipv4_address, "IPv4")?,
        ip6: address(&ipam.ipv6_address, "IPv6")?,
        mac,
        priority: settings.gw_priority,
    })
}

fn address<T: std::str::FromStr>(text: &str, family: &str) -> Result<Option<T>, String> {
    match text {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| format!("invalid {family} address: {text}")),
    }
}

/// `container:name`, or `container` under its own name; the name and the container.
fn link(text: &str) -> (String, String) {
    let (target, name) = text.split_once(':').unwrap_or((text, text));
    // The reference engine's own form is "/target:/container/name".
    let plain = |text: &str| text.rsplit('/').next().unwrap_or(text).to_owned();
    (plain(name), plain(target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_have_a_name_and_a_container() {
        let pair = |name: &str, target: &str| (name.to_owned(), target.to_owned());
        assert_eq!(link("db:store"), pair("store", "db"));
        assert_eq!(link("db"), pair("db", "db"));
        assert_eq!(link("/db:/web/store"), pair("store", "db"));
    }

    #[test]
    fn addresses_that_are_none_are_named() {
        assert_eq!(address::<Ipv4Addr>("", "IPv4"), Ok(None));
        assert_eq!(address::<Ipv4Addr>("::1", "IPv4"), Err("invalid IPv4 address: ::1".to_owned()));
    }
}
