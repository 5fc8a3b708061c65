//! Questions for others: asked upstream, with a limit on how many one container may have open.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::answer::{Verdict, server_failure};
use crate::exchange::ask;
use crate::upstream::Upstreams;

/// Questions one container may have open at a time. More than any program asks, less than would hurt the others.
const PER_SOURCE: usize = 256;
/// Questions all containers of a network may have open at a time: each costs a socket.
const PER_SERVER: usize = 4096;

/// Asks upstream for the containers of one network.
#[derive(Debug, Clone)]
pub(super) struct Forwarder {
    upstreams: watch::Receiver<Upstreams>,
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// The right to one open question; given back when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
    source: IpAddr,
}

impl Forwarder {
    pub(super) fn new(upstreams: watch::Receiver<Upstreams>) -> Forwarder {
        Forwarder { upstreams, open: Arc::default() }
    }

    /// A slot for one more question of `source`, if it has not too many open.
    pub(super) fn slot(&self, source: IpAddr) -> Option<Slot> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let total: usize = open.values().sum();
        let count = open.entry(source).or_default();
        if *count >= PER_SOURCE || total >= PER_SERVER {
            return None;
        }
        *count += 1;
        Some(Slot { open: self.open.clone(), source })
    }

    /// The answer of the first upstream server that has one.
    pub(super) async fn forward(&self, query: &[u8], stream: bool, _slot: Slot) -> Option<Vec<u8>> {
        let servers = self.upstreams.borrow().servers.clone();
        match ask(&servers, query, stream).await {
            Ok(answer) => Some(answer),
            Err(_) => match server_failure(query) {
                Verdict::Reply(reply) => Some(reply),
                Verdict::Forward | Verdict::Drop => None,
            },
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_container_cannot_take_all_slots() {
        let forwarder = Forwarder::new(watch::channel(Upstreams::default()).1);
        let (greedy, modest) = (IpAddr::from([10, 0, 0, 2]), IpAddr::from([10, 0, 0, 3]));
        let mut slots: Vec<Slot> = (0..PER_SOURCE).map(|_| forwarder.slot(greedy).unwrap()).collect();
        assert!(forwarder.slot(greedy).is_none());
        assert!(forwarder.slot(modest).is_some());
        slots.pop();
        assert!(forwarder.slot(greedy).is_some());
        drop(slots);
        assert!(forwarder.open.lock().unwrap().is_empty());
    }
}
