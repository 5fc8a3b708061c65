//! Published ports: what a container wants, out of Docker's configuration, and what it gets.

use std::net::IpAddr;

use berth_api::docker::containers::{ContainerConfig, HostConfig};
use berth_net::ports::{Held, HoldError, hold, hold_both};
use berth_net::{Protocol, firewall};

use super::connect::ConnectError;
use super::registry::Networks;
use super::wanted::Member;

/// A port to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WantedPort {
    /// Port and protocol of the container.
    pub(crate) container: (u16, Protocol),
    /// Address of the host; none for every address of both families.
    pub(crate) host_ip: Option<IpAddr>,
    /// Ports of the host to try, in order; 0 for any free one.
    pub(crate) host_ports: Vec<u16>,
}

/// Most ports a range may name.
const RANGE_MAX: usize = 4096;

/// What is to be published, or Docker's words about what is not a port.
pub(crate) fn wanted_ports(config: &ContainerConfig, host: &HostConfig) -> Result<Vec<WantedPort>, String> {
    let mut wanted = Vec::new();
    for (key, bindings) in host.port_bindings.iter().flatten() {
        let container = port_key(key)?;
        for binding in bindings.iter().flatten() {
            let host_ip = match binding.host_ip.as_str() {
                "" => None,
                text => Some(text.parse().map_err(|_| format!("invalid IP address: {text}"))?),
            };
            let host_ports = host_ports(&binding.host_port)?;
            wanted.push(WantedPort { container, host_ip, host_ports });
        }
    }
    if host.publish_all_ports {
        for key in config.exposed_ports.iter().flatten().map(|(key, _)| key) {
            let container = port_key(key)?;
            if !wanted.iter().any(|port| port.container == container) {
                wanted.push(WantedPort { container, host_ip: None, host_ports: vec![0] });
            }
        }
    }
    Ok(wanted)
}

/// `80/tcp` or `80`.
pub(super) fn port_key(key: &str) -> Result<(u16, Protocol), String> {
    let (port, protocol) = key.split_once('/').unwrap_or((key, "tcp"));
    let port = port.parse().map_err(|_| format!("invalid containerPort: {port}"))?;
    let protocol = protocol.parse().map_err(|_| format!("invalid proto: {protocol}"))?;
    Ok((port, protocol))
}

fn host_ports(text: &str) -> Result<Vec<u16>, String> {
    let invalid = || format!("invalid hostPort: {text}");
    if text.is_empty() {
        return Ok(vec![0]);
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let first: u16 = first.parse().map_err(|_| invalid())?;
    let last: u16 = last.parse().map_err(|_| invalid())?;
    if first > last || usize::from(last - first) >= RANGE_MAX {
        return Err(invalid());
    }
    Ok((first..=last).collect())
}

impl Networks {
    /// Holds a container's ports, unless it has them, in the network that leads outside. Without one it gets none.
    pub(super) fn publish(&self, member: &Member) -> Result<(), ConnectError> {
        let (key, endpoint, binding) = {
            let known = self.lock();
            let has = known.places_of(&member.id).any(|(_, place)| !place.record.ports.is_empty());
            let [way4, way6] = known.ways_out(&member.id);
            let Some(network) = way4.or(way6).filter(|_| !has && !member.ports.is_empty()) else {
                return Ok(());
            };
            let settings = known.networks.get(&network).and_then(|network| network.settings.bridge());
            let binding = settings.and_then(|settings| settings.host_binding).map(IpAddr::V4);
            let key = (member.id.clone(), network);
            let endpoint = known.places.get(&key).map(|place| place.record.endpoint_id.clone());
            (key, endpoint.unwrap_or_default(), binding)
        };
        let mut held = Vec::new();
        let mut shown = Vec::new();
        for port in &member.ports {
            let sockets = hold_any(port, binding).map_err(|reason| ConnectError::Port {
                name: member.name.clone(),
                endpoint: endpoint.clone(),
                reason,
            })?;
            for socket in sockets {
                let (number, protocol) = port.container;
                let host = socket.address;
                shown.push((format!("{number}/{protocol}"), host.ip().to_string(), host.port()));
                held.push(socket);
            }
        }
        if let Some(place) = self.lock().places.get_mut(&key) {
            place.record.ports = shown;
            place.held = held;
        }
        Ok(())
    }
}

/// What the firewall redirects: ports as remembered, to a container's addresses.
pub(super) fn publishes(
    ports: &[(String, String, u16)],
    ip: Option<IpAddr>,
    ip6: Option<IpAddr>,
) -> Vec<firewall::Publish> {
    let one = |(key, host_ip, host_port): &(String, String, u16)| {
        let (container_port, protocol) = port_key(key).ok()?;
        let host_ip: IpAddr = host_ip.parse().ok()?;
        // A container without IPv6 is published on IPv4; the IPv6 socket only keeps the port.
        let container_ip = if host_ip.is_ipv4() { ip? } else { ip6? };
        let host_port = *host_port;
        Some(firewall::Publish { protocol, host_ip, host_port, container_ip, container_port })
    };
    ports.iter().filter_map(one).collect()
}

/// Holds the first port of those wanted that is free. `binding` is where ports go that name no address.
fn hold_any(port: &WantedPort, binding: Option<IpAddr>) -> Result<Vec<Held>, String> {
    let protocol: Protocol = port.container.1;
    let mut last = String::new();
    for host_port in &port.host_ports {
        let held = match port.host_ip.or(binding) {
            Some(ip) => hold(protocol, ip, *host_port).map(|held| vec![held]),
            None => hold_both(protocol, *host_port).map(Vec::from),
        };
        match held {
            Ok(held) => return Ok(held),
            Err(HoldError::InUse { address, .. }) => {
                last = format!("Bind for {address} failed: port is already allocated");
            }
            Err(error) => last = crate::log::chain(&error),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_ports_are_one_a_range_or_any() {
        assert_eq!(host_ports(""), Ok(vec![0]));
        assert_eq!(host_ports("0"), Ok(vec![0]));
        assert_eq!(host_ports("8000-8002"), Ok(vec![8000, 8001, 8002]));
        for bad in ["x", "9-8", "65536", "1-65535", "-1"] {
            assert!(host_ports(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn each_family_is_published_to_the_address_of_its_own() {
        let ports = vec![
            ("80/tcp".to_owned(), "0.0.0.0".to_owned(), 8080),
            ("80/tcp".to_owned(), "::".to_owned(), 8080),
        ];
        let to = |ip: Option<&str>, ip6: Option<&str>| -> Vec<String> {
            let parsed = |text: Option<&str>| text.map(|text| text.parse().unwrap());
            let all = publishes(&ports, parsed(ip), parsed(ip6));
            all.iter().map(|it| format!("{}>{}", it.host_ip, it.container_ip)).collect()
        };
        assert_eq!(to(Some("10.0.0.2"), Some("fd00::2")), ["0.0.0.0>10.0.0.2", "::>fd00::2"]);
        assert_eq!(to(Some("10.0.0.2"), None), ["0.0.0.0>10.0.0.2"]);
        assert_eq!(to(None, None), Vec::<String>::new());
    }

    #[test]
    fn a_network_may_publish_at_one_address() {
        let port = WantedPort { container: (80, Protocol::Tcp), host_ip: None, host_ports: vec![0] };
        let at = |port: &WantedPort, binding: Option<&str>| -> Vec<String> {
            let held = hold_any(port, binding.map(|text| text.parse().unwrap())).unwrap();
            held.iter().map(|held| held.address.ip().to_string()).collect()
        };
        assert_eq!(at(&port, None), ["0.0.0.0", "::"]);
        assert_eq!(at(&port, Some("127.0.0.1")), ["127.0.0.1"]);
        let named = WantedPort { host_ip: Some("::1".parse().unwrap()), ..port };
        assert_eq!(at(&named, Some("127.0.0.1")), ["::1"]);
    }

    #[test]
    fn keys_default_to_tcp() {
        assert_eq!(port_key("80"), Ok((80, Protocol::Tcp)));
        assert_eq!(port_key("53/udp"), Ok((53, Protocol::Udp)));
        assert!(port_key("80/icmp").is_err());
    }
}
