//! What a request for a network makes: everything chosen that was left open, everything refused that cannot be.

use std::net::IpAddr;

use berth_api::docker::networks::{IpamConfig, NetworkCreate};
use berth_net::pool::{Ipam, Subnets, overlap};
use berth_net::{IpNet, direct};

use super::options::{Driver, OptionError, Settings};
use super::record::{FORMAT, Record, Subnet, now_text};
use super::registry::Known;
use crate::command::Refusal;

/// Most networks of one machine: each has a bridge and rules of its own.
const NETWORKS_MAX: usize = 1000;
/// Most addresses one network may have reserved.
const RESERVED_MAX: usize = 256;
/// Longest name of a network in bytes.
const NAME_BYTES: usize = 255;

/// The record of a new network. `taken` are the subnets the machine itself is in.
pub(super) fn record(
    known: &Known,
    body: &NetworkCreate,
    pools: &Subnets,
    taken: &[IpNet],
) -> Result<Record, Refusal> {
    let name = body.name.as_str();
    if matches!(name, "bridge" | "host" | "none" | "default") {
        return Err(Refusal::Forbidden(format!("operation is not permitted on predefined {name} network ")));
    }
    if name.trim().is_empty() || name.starts_with("container:") || name.len() > NAME_BYTES {
        return Err(Refusal::Invalid(format!("invalid network name: {name:?}")));
    }
    let options = body.options.clone().unwrap_or_default();
    let settings = Settings::of(&body.driver, &options).map_err(|error| refused(&error))?;
    if known.networks.contains_key(name) {
        return Err(Refusal::Conflict(format!("network with name {name} already exists")));
    }
    if known.networks.len() >= NETWORKS_MAX {
        return Err(Refusal::Failed(format!("there are {NETWORKS_MAX} networks already")));
    }
    let id = crate::id::random().map_err(|error| Refusal::Failed(error.to_string()))?;
    let (driver, bridge) = match &settings.driver {
        Driver::Bridge(bridge) => {
            let asked = bridge.name.clone();
            ("bridge", asked.unwrap_or_else(|| format!("br-{}", crate::id::short(&id))))
        }
        Driver::Direct { parent, .. } => {
            let there = direct::has_parent(parent).map_err(|error| Refusal::Failed(error.to_string()))?;
            if !there {
                return Err(Refusal::Invalid(format!("invalid parent interface {parent}: there is none")));
            }
            (body.driver.as_str(), String::new())
        }
    };
    let same = |other: &&super::registry::Network| !bridge.is_empty() && other.record.bridge == bridge;
    if let Some(other) = known.networks.values().find(same) {
        return Err(Refusal::Forbidden(format!(
            "cannot create network {id} ({bridge}): conflicts with network {} ({bridge}): networks have same bridge \
             name",
            other.record.id
        )));
    }
    Ok(Record {
        format: FORMAT,
        name: name.to_owned(),
        created: now_text(),
        driver: driver.to_owned(),
        bridge,
        subnets: subnets(known, body, pools, taken)?,
        internal: body.internal,
        attachable: body.attachable,
        labels: body.labels.clone().unwrap_or_default(),
        options,
        ipam_options: body.ipam.as_ref().and_then(|ipam| ipam.options.clone()),
        id,
    })
}

fn refused(error: &OptionError) -> Refusal {
    let text = error.to_string();
    match error {
        OptionError::Driver(_) => Refusal::NotFound(text),
        OptionError::Value { .. } | OptionError::NoParent(_) => Refusal::Invalid(text),
        OptionError::NotOffered { .. } => Refusal::Unsupported(text),
    }
}

fn subnets(
    known: &Known,
    body: &NetworkCreate,
    pools: &Subnets,
    taken: &[IpNet],
) -> Result<Vec<Subnet>, Refusal> {
    let networks = known.networks.values().flat_map(|network| network.pools().map(Ipam::subnet));
    let used: Vec<IpNet> = networks.collect();
    let configs = body.ipam.as_ref().and_then(|ipam| ipam.config.as_ref());
    let configs = configs.into_iter().flatten().filter(|config| !config.subnet.is_empty());
    let mut subnets: Vec<Subnet> = Vec::new();
    for config in configs {
        let subnet = configured(config, &used)?;
        let ipv4 = subnet.gateway.is_ipv4();
        if subnets.iter().any(|other| other.gateway.is_ipv4() == ipv4) {
            return Err(Refusal::Unsupported(
                "several subnets of one family in a network are not offered".to_owned(),
            ));
        }
        subnets.push(subnet);
    }
    let has = |subnets: &[Subnet], ipv4: bool| subnets.iter().any(|it| it.gateway.is_ipv4() == ipv4);
    let wanted = [
        (true, body.enable_ipv4.unwrap_or(true)),
        (false, body.enable_ipv6.unwrap_or_else(|| has(&subnets, false))),
    ];
    if wanted.iter().all(|(_, wanted)| !wanted) {
        return Err(Refusal::Invalid("IPv4 or IPv6 must be enabled".to_owned()));
    }
    for (ipv4, wanted) in wanted {
        if !wanted && has(&subnets, ipv4) {
            let family = if ipv4 { "IPv4" } else { "IPv6" };
            return Err(Refusal::Invalid(format!(
                "a subnet of {family} is given, but {family} is not enabled"
            )));
        }
        if wanted && !has(&subnets, ipv4) {
            // The machine's own subnets must stay reachable.
            let used: Vec<IpNet> = used.iter().chain(taken).copied().collect();
            let free =
                if ipv4 { pools.free_v4(&used).map(IpNet::V4) } else { pools.free_v6(&used).map(IpNet::V6) };
            let free = free.map_err(|error| Refusal::Failed(error.to_string()))?;
            subnets.push(chosen(free, None)?);
        }
    }
    // IPv4 first, as everywhere.
    subnets.sort_by_key(|subnet| subnet.gateway.is_ipv6());
    Ok(subnets)
}

fn chosen(subnet: IpNet, gateway: Option<IpAddr>) -> Result<Subnet, Refusal> {
    let ipam = Ipam::new(subnet, None, gateway).map_err(|error| Refusal::Invalid(error.to_string()))?;
    Ok(Subnet {
        net: ipam.subnet().to_string(),
        gateway: ipam.gateway(),
        range: String::new(),
        reserved: std::collections::BTreeMap::new(),
        configured: false,
    })
}

fn configured(config: &IpamConfig, used: &[IpNet]) -> Result<Subnet, Refusal> {
    let invalid = |what: &str, text: &str| Refusal::Invalid(format!("invalid {what} {text:?}"));
    let subnet: IpNet = config.subnet.parse().map_err(|_| invalid("subnet", &config.subnet))?;
    let subnet = subnet.trunc();
    let gateway = match config.gateway.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| invalid("gateway", text))?),
    };
    let range: Option<IpNet> = match config.ip_range.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| invalid("address range", text))?),
    };
    if used.iter().any(|other| overlap(subnet, *other)) {
        return Err(Refusal::Forbidden(
            "invalid pool request: Pool overlaps with other one on this address space".to_owned(),
        ));
    }
    let mut ipam = Ipam::new(subnet, range, gateway).map_err(|error| Refusal::Invalid(error.to_string()))?;
    let mut reserved = std::collections::BTreeMap::new();
    for (name, text) in config.aux_addresses.iter().flatten().take(RESERVED_MAX) {
        let address: IpAddr = text.parse().map_err(|_| invalid("auxiliary address", text))?;
        ipam.reserve(address).map_err(|error| Refusal::Invalid(error.to_string()))?;
        reserved.insert(name.clone(), address);
    }
    Ok(Subnet {
        net: subnet.to_string(),
        gateway: ipam.gateway(),
        range: range.map(|range| range.trunc().to_string()).unwrap_or_default(),
        reserved,
        configured: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(known: &Known, body: &NetworkCreate) -> Result<Vec<String>, String> {
        let taken = ["10.0.0.0/8".parse().unwrap()];
        let record =
            record(known, body, &Subnets::new(b"machine"), &taken).map_err(|error| error.to_string())?;
        Ok(record.subnets.iter().map(|it| format!("{} {} {}", it.net, it.gateway, it.configured)).collect())
    }

    fn body(name: &str, ipv6: Option<bool>, configs: &[(&str, &str)]) -> NetworkCreate {
        let config = |(subnet, gateway): &(&str, &str)| IpamConfig {
            subnet: (*subnet).to_owned(),
            gateway: (*gateway).to_owned(),
            ..IpamConfig::default()
        };
        let ipam = berth_api::docker::networks::Ipam {
            config: Some(configs.iter().map(config).collect()),
            ..Default::default()
        };
        NetworkCreate {
            name: name.to_owned(),
            enable_ipv6: ipv6,
            ipam: Some(ipam),
            ..NetworkCreate::default()
        }
    }

    fn known() -> Known {
        let mut known = Known::default();
        known.add(Record::default_network());
        known
    }

    #[test]
    fn what_is_left_open_is_chosen() {
        let known = known();
        assert_eq!(decide(&known, &body("n", None, &[])).unwrap(), ["172.18.0.0/16 172.18.0.1 false"]);
        let both = decide(&known, &body("n", Some(true), &[])).unwrap();
        assert!(both[0].starts_with("172.18.") && both[1].starts_with("fd"), "{both:?}");
        let both = decide(&known, &body("n", Some(true), &[("fd01::/64", "")])).unwrap();
        assert_eq!(both, ["172.18.0.0/16 172.18.0.1 false", "fd01::/64 fd01::1 true"]);
        let only6 =
            NetworkCreate { enable_ipv4: Some(false), ..body("n", Some(true), &[("fd01::/64", "fd01::9")]) };
        assert_eq!(decide(&known, &only6).unwrap(), ["fd01::/64 fd01::9 true"]);
        // Asked for, a subnet of the machine is the user's affair.
        assert_eq!(
            decide(&known, &body("n", None, &[("10.1.0.0/24", "")])).unwrap(),
            ["10.1.0.0/24 10.1.0.1 true"]
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let known = known();
        for (body, said) in [
            (body("bridge", None, &[]), "predefined bridge network"),
            (body(" ", None, &[]), "invalid network name"),
            (body("n", None, &[("172.17.9.0/24", "")]), "Pool overlaps"),
            (body("n", None, &[("10.1.0.0/24", "10.2.0.1")]), "not a usable address"),
            (body("n", None, &[("10.1.0.0/24", ""), ("10.2.0.0/24", "")]), "several subnets"),
            (body("n", Some(false), &[("fd01::/64", "")]), "IPv6 is not enabled"),
            (body("n", None, &[("x", "")]), "invalid subnet \"x\""),
            (NetworkCreate { enable_ipv4: Some(false), ..body("n", None, &[]) }, "must be enabled"),
            (NetworkCreate { driver: "weave".into(), ..body("n", None, &[]) }, "plugin \"weave\" not found"),
        ] {
            let error = decide(&known, &body).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }
}
