//! Taking places away. Ports, names and rules go at once; the interface, whose removal makes the kernel wait for every
//! processor, goes on a thread of its own, and only then is the address somebody else's.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use berth_net::conntrack::{self, Flow};
use berth_net::ports::Held;
use berth_net::{direct, veth};

use super::place::{Place, addresses};
use super::registry::{Known, Networks};
use crate::store::EndpointRecord;

/// Longest wait for interfaces of a network that is to be removed: many may be going, some tens of ms each.
const GONE_TIMEOUT: Duration = Duration::from_secs(20);

/// A place nobody has any more whose interface is still there.
#[derive(Clone, Debug)]
pub(super) struct Leaving {
    /// Network name.
    pub(super) network: String,
    /// What the place was.
    pub(super) record: EndpointRecord,
    /// The interface is gone; flows and address are next.
    pub(super) detached: bool,
}

impl Networks {
    /// Takes a container that has ended, or did not start, out of all its networks. What cannot be undone is logged.
    pub(crate) fn leave(self: &Arc<Self>, container: &str) {
        let networks: Vec<String> =
            self.lock().places_of(container).map(|(network, _)| network.to_owned()).collect();
        if networks.is_empty() {
            return;
        }
        let gone: Vec<Place> =
            networks.iter().filter_map(|network| self.take_out(container, network)).collect();
        self.withdraw(&gone);
        for network in &networks {
            self.show_names(network);
            self.tell(network, "disconnect", Some(container));
        }
        drop(gone);
        self.sweep_aside();
    }

    /// Takes a running container out of one network. What cannot be undone is logged.
    pub(crate) fn disconnect(
        &self,
        container: &str,
        network: &str,
        netns: BorrowedFd<'_>,
    ) -> Vec<(String, EndpointRecord)> {
        let Some(mut gone) = self.take_out(container, network) else { return self.endpoints(container) };
        self.move_ports(container, &mut gone);
        self.withdraw(std::slice::from_ref(&gone));
        self.show_names(network);
        self.show_names_of(container);
        if gone.record.host_name.is_empty()
            && let Err(error) = direct::detach(netns, &gone.record.interface)
        {
            crate::log::warning!("{}: {}, continuing", gone.name, crate::log::chain(&error));
        }
        self.sweep();
        self.set_gateways(container, netns);
        self.tell(network, "disconnect", Some(container));
        self.endpoints(container)
    }

    fn take_out(&self, container: &str, network: &str) -> Option<Place> {
        let mut known = self.lock();
        let place = known.places.remove(&(container.to_owned(), network.to_owned()))?;
        let (network, record) = (network.to_owned(), place.record.clone());
        known.leaving.push(Leaving { network, record, detached: false });
        Some(place)
    }

    /// Published ports of a network that is left go over to the container's way out.
    fn move_ports(&self, container: &str, gone: &mut Place) {
        let mut known = self.lock();
        let [way4, way6] = known.ways_out(container);
        let Some(network) = way4.or(way6) else { return };
        if let Some(place) = known.places.get_mut(&(container.to_owned(), network)) {
            place.record.ports.append(&mut gone.record.ports);
            place.held.append(&mut gone.held);
        }
    }

    /// Gives a running container the default routes it shall have.
    fn set_gateways(&self, container: &str, netns: BorrowedFd<'_>) {
        for (network, record) in self.endpoints(container) {
            let gateways = self.lock().gateways_by(container, &network);
            if gateways.is_empty() {
                continue;
            }
            if let Err(error) = veth::set_gateways(netns, &record.interface, &gateways) {
                crate::log::warning!("routes of {}: {}, continuing", record.ip, crate::log::chain(&error));
            }
        }
    }

    /// Takes ports of places that are gone out of the firewall. The checks of sender addresses stay.
    fn withdraw(&self, gone: &[Place]) {
        if let Err(error) = self.apply() {
            crate::log::warning!("firewall: {}, continuing", crate::log::chain(&error));
        }
        let flows: Vec<Flow> = gone.iter().flat_map(|place| flows_to(&place.held)).collect();
        forget(&flows);
    }

    /// Forgets flows to ports a container has just got: they go past it.
    pub(super) fn forget_flows_to_ports(&self, container: &str) {
        let flows: Vec<Flow> = {
            let known = self.lock();
            known.places_of(container).flat_map(|(_, place)| flows_to(&place.held)).collect()
        };
        forget(&flows);
    }

    /// Sweeps on a thread of its own; one is enough.
    fn sweep_aside(self: &Arc<Self>) {
        if std::mem::replace(&mut self.lock().sweeping, true) {
            return;
        }
        let networks = self.clone();
        let work = move || {
            loop {
                networks.sweep();
                let mut known = networks.lock();
                // Under the lock: who adds one after this starts another thread.
                if known.leaving.is_empty() {
                    known.sweeping = false;
                    return;
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("leaving".to_owned()).spawn(work) {
            crate::log::warning!("no thread for leaving interfaces: {error}, continuing");
            self.lock().sweeping = false;
            self.sweep();
        }
    }

    /// Removes the interfaces of places that are gone, then their rules and flows, then gives their addresses back.
    fn sweep(&self) {
        let _one_at_a_time = self.sweeper.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let batch = self.lock().leaving.clone();
        for leaving in batch.iter().filter(|leaving| !leaving.record.host_name.is_empty()) {
            let name = &leaving.record.host_name;
            if let Err(error) = veth::detach(name) {
                crate::log::warning!("{name}: {}, continuing", crate::log::chain(&error));
            }
        }
        let of_batch =
            |it: &Leaving| batch.iter().any(|gone| gone.record.endpoint_id == it.record.endpoint_id);
        for leaving in self.lock().leaving.iter_mut().filter(|it| of_batch(it)) {
            leaving.detached = true;
        }
        if let Err(error) = self.apply() {
            crate::log::warning!("firewall: {}, continuing", crate::log::chain(&error));
        }
        let flows: Vec<Flow> =
            batch.iter().flat_map(|leaving| addresses(&leaving.record)).map(Flow::Container).collect();
        forget(&flows);
        let mut known = self.lock();
        for leaving in &batch {
            known.give_back(leaving);
        }
        known.leaving.retain(|it| !of_batch(it));
        self.left.notify_all();
    }

    /// Waits until no interface of a network is on its way out.
    pub(super) fn wait_for_leaving(&self, network_id: &str) {
        let leaving =
            |known: &mut Known| known.leaving.iter().any(|leaving| leaving.record.network_id == network_id);
        // After the timeout the bridge goes all the same, and what is on it with it.
        drop(self.left.wait_timeout_while(self.lock(), GONE_TIMEOUT, leaving));
    }
}

impl Known {
    fn give_back(&mut self, leaving: &Leaving) {
        // A network made anew under the same name has a pool of its own.
        let network = self.networks.get_mut(&leaving.network);
        if let Some(network) = network.filter(|network| network.record.id == leaving.record.network_id) {
            network.give_back(&addresses(&leaving.record));
        }
    }
}

fn flows_to(held: &[Held]) -> impl Iterator<Item = Flow> + '_ {
    held.iter().map(|held| Flow::Published {
        protocol: held.protocol,
        host_ip: held.address.ip(),
        host_port: held.address.port(),
    })
}

fn forget(flows: &[Flow]) {
    if let Err(error) = conntrack::flush(flows) {
        crate::log::warning!("connection tracking: {}, continuing", crate::log::chain(&error));
    }
}
