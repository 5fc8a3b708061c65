//! The hardware or software watchdog: a machine whose init hangs is reset.
//!
//! Never disarmed: a shutdown that hangs is a hang too.

use std::fs::File;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::kmsg::{note, warn};

/// Longer than any step of the shutdown may take without feeding. Unit: seconds.
const TIMEOUT_S: u32 = 60;
const INTERVAL: Duration = Duration::from_secs(15);

/// A watchdog that bites unless it is fed.
#[derive(Debug)]
pub(crate) struct Watchdog {
    file: File,
    fed: Instant,
}

impl Watchdog {
    /// Opens `/dev/watchdog0`, which arms it; `None` when there is none.
    pub(crate) fn open() -> Option<Self> {
        let file = File::options().write(true).open("/dev/watchdog0").ok()?;
        match berth_sys::devices::watchdog_timeout(file.as_fd(), TIMEOUT_S) {
            Ok(seconds) => note!("watchdog armed, {seconds} s"),
            Err(error) => warn!("watchdog armed with its own timeout: {error}, continuing"),
        }
        Some(Self { file, fed: Instant::now() })
    }

    /// When it is to be fed next.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.fed.checked_add(INTERVAL)
    }

    /// Feeds it when it is time.
    pub(crate) fn feed_if_due(&mut self, now: Instant) {
        if now.saturating_duration_since(self.fed) < INTERVAL {
            return;
        }
        self.fed = now;
        if let Err(error) = berth_sys::devices::watchdog_feed(self.file.as_fd()) {
            warn!("watchdog is not fed: {error}, continuing");
        }
    }
}
