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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::networks::leave::Leaving;
    use crate::networks::place::tests::joined;

    #[test]
    fn checks_of_sender_addresses_last_as_long_as_the_interface() {
        let mut known = joined(&[("back", 0)]);
        let guarded = |known: &Known| known.rules().guards.len();
        assert_eq!(guarded(&known), 1);
        let ((_, network), place) = known.places.pop_first().unwrap();
        known.leaving.push(Leaving { network, record: place.record, detached: false });
        assert_eq!(guarded(&known), 1);
        known.leaving[0].detached = true;
        assert_eq!(guarded(&known), 0);
    }

    #[test]
    fn ports_are_published_to_the_addresses_of_the_ways_out() {
        let mut known = joined(&[("back", 0), ("front", 1)]);
        let ports = ["0.0.0.0", "::"].map(|ip| ("80/tcp".to_owned(), ip.to_owned(), 8080));
        known.places.get_mut(&("c1".to_owned(), "back".to_owned())).unwrap().record.ports = ports.into();
        let published =
            known.rules().publish.iter().map(|it| it.container_ip.to_string()).collect::<Vec<_>>();
        // IPv4 leads out by the network of the higher priority, which has no IPv6.
        assert_eq!(published, ["10.2.0.2", "fd01::2"]);
    }

    #[test]
    fn a_container_in_internal_networks_alone_is_not_published() {
        let mut known = joined(&[("inner", 0)]);
        let key = ("c1".to_owned(), "inner".to_owned());
        known.places.get_mut(&key).unwrap().record.ports =
            vec![("80/tcp".to_owned(), "0.0.0.0".to_owned(), 8080)];
        assert!(known.rules().publish.is_empty());
    }
}
