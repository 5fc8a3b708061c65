//! Attached clients hold up a container that writes faster than they read, as in Docker: what `docker run` hands to a
//! file must be whole. Without that, a log that turns over would overtake them. One that reads nothing for a minute is
//! given up, so a client that hangs stops no container for good.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

/// A client that reads nothing for this long is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where attached clients are in a log.
#[derive(Debug, Default)]
pub(super) struct Holds {
    all: Mutex<Vec<Arc<Hold>>>,
    moved: Notify,
}

/// Where one is.
#[derive(Debug, Default)]
struct Hold {
    segment: AtomicU64,
    offset: AtomicU64,
    given_up: AtomicBool,
}

/// A client's hold; it ends when dropped.
#[derive(Debug)]
pub(super) struct Held {
    hold: Arc<Hold>,
    holds: Arc<Holds>,
}

impl Holds {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Hold>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds everything from `segment` on.
    pub(super) fn hold(self: &Arc<Self>, segment: u64) -> Held {
        let hold = Arc::new(Hold { segment: AtomicU64::new(segment), ..Hold::default() });
        self.lock().push(hold.clone());
        Held { hold, holds: self.clone() }
    }

    /// Places of those who still need `segment` or one before it.
    fn behind(&self, segment: u64) -> Vec<(Arc<Hold>, u64, u64)> {
        let all = self.lock();
        let places = all.iter().map(|hold| {
            let (number, offset) =
                (hold.segment.load(Ordering::Acquire), hold.offset.load(Ordering::Acquire));
            (hold.clone(), number, offset)
        });
        places.filter(|(_, number, _)| *number <= segment).collect()
    }

    /// Waits until nobody needs `segment` or one before it.
    pub(super) async fn released(&self, segment: u64) {
        let mut before = self.behind(segment);
        while !before.is_empty() {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            let now = self.behind(segment);
            if now.is_empty() {
                return;
            }
            if tokio::time::timeout(PATIENCE, moved).await.is_err() {
                self.give_up(&before, segment);
            }
            before = self.behind(segment);
        }
    }

    /// Gives up those who have not moved from where they were.
    fn give_up(&self, before: &[(Arc<Hold>, u64, u64)], segment: u64) {
        for (hold, number, offset) in self.behind(segment) {
            let same = |(other, a, b): &(Arc<Hold>, u64, u64)| {
                Arc::ptr_eq(other, &hold) && (*a, *b) == (number, offset)
            };
            if before.iter().any(same) {
                crate::log::warning!("an attached client reads nothing, continuing without it");
                hold.given_up.store(true, Ordering::Release);
                self.lock().retain(|other| !Arc::ptr_eq(other, &hold));
            }
        }
    }
}

impl Held {
    /// The client read up to here.
    pub(super) fn at(&self, segment: u64, offset: u64) {
        self.hold.offset.store(offset, Ordering::Release);
        if self.hold.segment.swap(segment, Ordering::AcqRel) != segment {
            self.holds.moved.notify_waiters();
        }
    }

    /// The log went on without the client.
    pub(super) fn is_given_up(&self) -> bool {
        self.hold.given_up.load(Ordering::Acquire)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.holds.lock().retain(|other| !Arc::ptr_eq(other, &self.hold));
        self.holds.moved.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_log_waits_for_who_reads_and_not_for_who_does_not() {
        let holds = Arc::new(Holds::default());
        holds.released(7).await;
        let reader = holds.hold(3);
        let waiting = tokio::spawn({
            let holds = holds.clone();
            async move { holds.released(4).await }
        });
        for offset in 1..10 {
            tokio::time::sleep(PATIENCE / 2).await;
            reader.at(4, offset);
        }
        assert!(!waiting.is_finished() && !reader.is_given_up());
        reader.at(5, 0);
        waiting.await.expect("released");
        holds.released(5).await;
        assert!(reader.is_given_up());
    }

    #[tokio::test]
    async fn a_client_that_leaves_holds_nothing() {
        let holds = Arc::new(Holds::default());
        let reader = holds.hold(0);
        let waiting = tokio::spawn({
            let holds = holds.clone();
            async move { holds.released(0).await }
        });
        tokio::task::yield_now().await;
        drop(reader);
        waiting.await.expect("released");
    }
}
