//! Ports that a container wants published, out of Docker's configuration.

use std::net::IpAddr;

use berth_api::docker::containers::{ContainerConfig, HostConfig};
use berth_net::Protocol;

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
    fn keys_default_to_tcp() {
        assert_eq!(port_key("80"), Ok((80, Protocol::Tcp)));
        assert_eq!(port_key("53/udp"), Ok((53, Protocol::Udp)));
        assert!(port_key("80/icmp").is_err());
    }
}
