//! What the firewall gets: computed from all that is known, sent as the difference to what is in force.

use std::net::IpAddr;
use std::sync::PoisonError;

use berth_net::{Mac, firewall};

use super::place::addresses;
use super::publish::publishes;
use super::registry::{Known, Networks};
use crate::store::EndpointRecord;

impl Networks {
    /// Puts the rules of all networks and containers in force.
    pub(super) fn apply(&self) -> Result<(), firewall::ApplyError> {
        // Rules are computed under the lock, so that older ones never replace newer ones.
        let mut open = self.firewall.lock().unwrap_or_else(PoisonError::into_inner);
        let mut firewall = match open.take() {
            Some(firewall) => firewall,
            None => firewall::Firewall::open()?,
        };
        let rules = self.lock().rules();
        let applied = firewall.apply(&rules);
        // A socket that failed is not used again.
        if !matches!(applied, Err(firewall::ApplyError::Socket(_))) {
            *open = Some(firewall);
        }
        applied
    }
}

impl Known {
    pub(super) fn rules(&self) -> firewall::Rules {
        let bridges = self.networks.values().filter_map(|network| {
            let settings = network.settings.bridge()?;
            Some(firewall::Bridge {
                name: network.record.bridge.clone(),
                gateways: network.pools().map(berth_net::pool::Ipam::gateway_net).collect(),
                internal: network.record.internal,
                icc: settings.icc,
                masquerade: settings.masquerade,
            })
        });
        let publish = self.places.iter().filter(|(_, place)| !place.record.ports.is_empty());
        let publish = publish.flat_map(|((container, _), place)| {
            let [way4, way6] = self.ways_out(container);
            let of = |way: Option<String>, pick: fn(&EndpointRecord) -> &String| -> Option<IpAddr> {
                let place = self.places.get(&(container.clone(), way?))?;
                // Ports are published on bridges; a container directly on a network is reached there.
                let bridged = !place.record.host_name.is_empty();
                pick(&place.record).parse().ok().filter(|_| bridged)
            };
            publishes(&place.record.ports, of(way4, |record| &record.ip), of(way6, |record| &record.ip6))
        });
        let present = self.places.values().map(|place| &place.record);
        // The checks last as long as the interface.
        let leaving = self.leaving.iter().filter(|leaving| !leaving.detached).map(|leaving| &leaving.record);
        firewall::Rules {
            bridges: bridges.collect(),
            publish: publish.collect(),
            guards: present.chain(leaving).filter_map(guard).collect(),
            host_ports: Vec::new(),
        }
    }
}

fn guard(record: &EndpointRecord) -> Option<firewall::Guard> {
    let mac: Mac = record.mac.parse().ok().filter(|_| !record.host_name.is_empty())?;
    Some(firewall::Guard { host_name: record.host_name.clone(), mac, addresses: addresses(record) })
}
