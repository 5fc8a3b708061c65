//! Networks in Docker's form, and what is told of them.

use std::collections::BTreeMap;

use berth_api::docker::networks::{Ipam, IpamConfig, Network as ApiNetwork, NetworkContainer};

use super::record::predefined_id;
use super::registry::{Known, Network, Networks};
use crate::command::Event;
use crate::logs::now_ns;

impl Networks {
    /// All, the predefined ones among them.
    pub(crate) fn list(&self) -> Vec<ApiNetwork> {
        let known = self.lock();
        let mut all: Vec<ApiNetwork> = known.networks.values().map(|network| known.show(network)).collect();
        all.push(without_addresses("host", "host"));
        all.push(without_addresses("none", "null"));
        all
    }

    /// Tells of something that happened to a network.
    pub(super) fn tell(&self, network: &str, action: &str, container: Option<&str>) {
        let found = self.lock().networks.get(network).map(|network| network.record.clone());
        if let Some(record) = found {
            self.tell_of(&record.id, &record.name, &record.driver, action, container);
        }
    }

    /// The same of a network that is no more.
    pub(super) fn tell_of(&self, id: &str, name: &str, driver: &str, action: &str, container: Option<&str>) {
        let mut attributes =
            BTreeMap::from([("name".to_owned(), name.to_owned()), ("type".to_owned(), driver.to_owned())]);
        if let Some(container) = container {
            attributes.insert("container".to_owned(), container.to_owned());
        }
        let (id, action) = (id.to_owned(), action.to_owned());
        // No receiver is no error: nobody listens.
        let _ = self.events.send(Event { kind: "network", action, id, attributes, at_ns: now_ns() });
    }
}

impl Known {
    fn show(&self, network: &Network) -> ApiNetwork {
        let record = &network.record;
        let inside = self.places.iter().filter(|((_, name), _)| *name == record.name);
        let containers = inside.map(|((id, _), place)| {
            let with_length = |address: &str, length: u8| match address {
                "" => String::new(),
                address => format!("{address}/{length}"),
            };
            let shown = NetworkContainer {
                name: place.name.clone(),
                endpoint_id: place.record.endpoint_id.clone(),
                mac_address: place.record.mac.clone(),
                ipv4_address: with_length(&place.record.ip, place.record.prefix),
                ipv6_address: with_length(&place.record.ip6, place.record.prefix6),
            };
            (id.clone(), shown)
        });
        let subnets = record.subnets.iter().map(|subnet| {
            let reserved = subnet.reserved.iter().map(|(name, address)| (name.clone(), address.to_string()));
            IpamConfig {
                subnet: subnet.net.clone(),
                ip_range: subnet.range.clone(),
                gateway: subnet.gateway.to_string(),
                aux_addresses: (!subnet.reserved.is_empty()).then(|| reserved.collect()),
            }
        });
        ApiNetwork {
            name: record.name.clone(),
            id: record.id.clone(),
            created: record.created.clone(),
            scope: "local".to_owned(),
            driver: record.driver.clone(),
            enable_ipv4: network.v4.is_some(),
            enable_ipv6: network.v6.is_some(),
            internal: record.internal,
            attachable: record.attachable,
            ipam: Ipam {
                driver: "default".to_owned(),
                options: record.ipam_options.clone(),
                config: Some(subnets.collect()),
            },
            containers: containers.collect(),
            options: Some(record.options.clone()),
            labels: Some(record.labels.clone()),
            ..ApiNetwork::default()
        }
    }
}

fn without_addresses(name: &str, driver: &str) -> ApiNetwork {
    ApiNetwork {
        name: name.to_owned(),
        id: predefined_id(name),
        created: "0001-01-01T00:00:00Z".to_owned(),
        scope: "local".to_owned(),
        driver: driver.to_owned(),
        enable_ipv4: true,
        ipam: Ipam { driver: "default".to_owned(), options: None, config: None },
        options: Some(BTreeMap::new()),
        labels: Some(BTreeMap::new()),
        ..ApiNetwork::default()
    }
}
