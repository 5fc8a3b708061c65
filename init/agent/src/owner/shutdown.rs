//! The machine's end: all containers are stopped at once, then init is told.

use std::time::Duration;

use berth_control::PowerAction;

use super::lifecycle::stop_request;
use super::{Happening, Owner};
use crate::phase::Phase;

/// Time for a shutdown asked for over the API, seconds: as long as init gives.
pub(super) const DEADLINE_S: u32 = 90;
/// Left to init of the deadline, for unmounting.
const RESERVE_S: u32 = 10;

impl Owner {
    /// Stops everything that runs. Repeated requests change only what comes after.
    pub(crate) fn shut_down(&mut self, action: PowerAction, deadline_s: u32) {
        if self.going_down.replace(action).is_some() {
            return;
        }
        crate::log::info!("going down: stopping {} containers", self.running());
        let most = Duration::from_secs(u64::from(deadline_s.saturating_sub(RESERVE_S).max(1)));
        let ids: Vec<String> = self.containers.keys().cloned().collect();
        for id in ids {
            let Some(container) = self.containers.get_mut(&id) else { continue };
            match container.record.phase() {
                Phase::Running | Phase::Paused => {
                    let (number, timeout) = stop_request(container, None, None);
                    let timeout = timeout.map_or(most, |timeout| timeout.min(most));
                    self.signal_and_wait(&id, number, Some(timeout));
                }
                Phase::Restarting => container.disarm(),
                // Stopped as soon as it runs.
                Phase::Starting | Phase::Created | Phase::Exited | Phase::Removing => {}
            }
        }
        self.later(most, Happening::ShutdownDeadline);
        self.check_shutdown();
    }

    fn running(&self) -> usize {
        self.containers.values().filter(|container| container.record.phase().is_live()).count()
    }

    /// Tells init once nothing runs any more.
    pub(super) fn check_shutdown(&mut self) {
        if let Some(action) = self.going_down
            && self.running() == 0
        {
            crate::log::info!("all containers are stopped");
            self.finish(action);
        }
    }

    pub(super) fn shutdown_deadline(&mut self) {
        if let Some(action) = self.going_down {
            let left = self.running();
            if left > 0 {
                crate::log::warning!("{left} containers did not stop in time, continuing");
            }
            self.finish(action);
        }
    }

    fn finish(&self, action: PowerAction) {
        let (images, init) = (self.machinery.images.clone(), self.machinery.init.clone());
        super::blocking(move || {
            images.settle();
            init.power(action);
        });
    }
}
