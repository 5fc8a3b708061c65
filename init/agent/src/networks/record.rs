//! What is remembered of a network: one file each.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Docker's name of the network containers get unless told otherwise.
pub(crate) const DEFAULT: &str = "bridge";
/// Interface of the default network.
pub(super) const DEFAULT_BRIDGE: &str = "docker0";
/// Subnet and gateway of the default network.
const DEFAULT_SUBNET: (&str, Ipv4Addr) = ("172.17.0.0/16", Ipv4Addr::new(172, 17, 0, 1));
/// The format this agent writes. Older ones are read.
pub(super) const FORMAT: u32 = 2;

/// A network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// See [`FORMAT`].
    pub(super) format: u32,
    /// Id, 64 hex digits.
    pub(super) id: String,
    pub(super) name: String,
    /// Creation, RFC 3339.
    pub(super) created: String,
    /// `bridge`, `macvlan` or `ipvlan`.
    pub(super) driver: String,
    /// Interface of the machine; empty for a driver without one of its own.
    pub(super) bridge: String,
    /// At most one of each family.
    pub(super) subnets: Vec<Subnet>,
    pub(super) internal: bool,
    pub(super) attachable: bool,
    pub(super) labels: BTreeMap<String, String>,
    /// Driver options as asked for.
    pub(super) options: BTreeMap<String, String>,
    /// Options of the address management as asked for; none and empty are told apart.
    pub(super) ipam_options: Option<BTreeMap<String, String>>,
}

/// A subnet of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Subnet {
    pub(super) net: String,
    pub(super) gateway: IpAddr,
    /// Where addresses are handed out; empty for all of it.
    pub(super) range: String,
    /// Addresses never handed out, by a name for each.
    pub(super) reserved: BTreeMap<String, IpAddr>,
    /// Asked for: only then containers may ask for addresses.
    pub(super) configured: bool,
}

/// Format 1 knew bridges with one IPv4 subnet.
#[derive(Deserialize)]
struct First {
    id: String,
    name: String,
    created: String,
    bridge: String,
    subnet: String,
    gateway: IpAddr,
    internal: bool,
    labels: BTreeMap<String, String>,
    options: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Versioned {
    format: u32,
}

impl Record {
    /// Reads a file of any format.
    pub(super) fn read(bytes: &[u8]) -> Result<Record, serde_json::Error> {
        if serde_json::from_slice::<Versioned>(bytes)?.format > 1 {
            return serde_json::from_slice(bytes);
        }
        let first: First = serde_json::from_slice(bytes)?;
        let subnet = Subnet {
            net: first.subnet,
            gateway: first.gateway,
            range: String::new(),
            reserved: BTreeMap::new(),
            configured: true,
        };
        Ok(Record {
            format: FORMAT,
            id: first.id,
            name: first.name,
            created: first.created,
            driver: "bridge".to_owned(),
            bridge: first.bridge,
            subnets: vec![subnet],
            internal: first.internal,
            attachable: false,
            labels: first.labels,
            options: first.options,
            ipam_options: None,
        })
    }

    /// The predefined network with a bridge.
    pub(super) fn default_network() -> Record {
        let options = [
            ("com.docker.network.bridge.default_bridge", "true"),
            ("com.docker.network.bridge.enable_icc", "true"),
            ("com.docker.network.bridge.enable_ip_masquerade", "true"),
            ("com.docker.network.bridge.host_binding_ipv4", "0.0.0.0"),
            ("com.docker.network.bridge.name", DEFAULT_BRIDGE),
            ("com.docker.network.driver.mtu", "1500"),
        ];
        let (subnet, gateway) = DEFAULT_SUBNET;
        let subnet = Subnet {
            net: subnet.to_owned(),
            gateway: IpAddr::V4(gateway),
            range: String::new(),
            reserved: BTreeMap::new(),
            configured: false,
        };
        Record {
            format: FORMAT,
            id: predefined_id(DEFAULT),
            name: DEFAULT.to_owned(),
            created: now_text(),
            driver: "bridge".to_owned(),
            bridge: DEFAULT_BRIDGE.to_owned(),
            subnets: vec![subnet],
            internal: false,
            attachable: false,
            labels: BTreeMap::new(),
            options: options.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            ipam_options: None,
        }
    }
}

/// The predefined networks keep one id for ever.
pub(super) fn predefined_id(name: &str) -> String {
    crate::id::hex(&Sha256::digest(format!("predefined network {name}")))
}

/// Now, as networks' times are written.
pub(super) fn now_text() -> String {
    jiff::Timestamp::now().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the first agents wrote it.
    const FIRST: &str = r#"{"format":1,"id":"ab12","name":"front","created":"2026-11-21T12:00:00Z",
        "bridge":"br-ab12","subnet":"10.77.64.0/24","gateway":"10.77.64.1","internal":true,
        "labels":{"k":"v"},"options":{}}"#;

    #[test]
    fn files_of_every_format_are_read() {
        let record = Record::read(FIRST.as_bytes()).unwrap();
        assert_eq!(
            (record.name.as_str(), record.driver.as_str(), record.internal),
            ("front", "bridge", true)
        );
        assert_eq!(record.subnets[0].net, "10.77.64.0/24");
        let again = Record::read(&serde_json::to_vec(&record).unwrap()).unwrap();
        assert_eq!(again, record);
        assert!(Record::read(b"{}").is_err());
    }
}
