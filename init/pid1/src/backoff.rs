//! How long to wait before a service is started again.

use std::time::Duration;

/// The first restart is nearly at once: container logs back up in their pipes while the agent is away.
const FIRST: Duration = Duration::from_millis(50);
/// Longest wait; a machine must stay reachable soon after its trouble ends.
const LONGEST: Duration = Duration::from_secs(10);
/// A service that ran this long is healthy: the next wait is the first again.
const HEALTHY: Duration = Duration::from_secs(30);

/// Doubles the wait with each early death.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Backoff {
    early_deaths: u32,
}

impl Backoff {
    /// The wait after a death that came `ran` after the start.
    pub(crate) fn after_death(&mut self, ran: Duration) -> Duration {
        if ran >= HEALTHY {
            self.early_deaths = 0;
        }
        let factor = 1_u32.checked_shl(self.early_deaths.min(31)).unwrap_or(u32::MAX);
        self.early_deaths = self.early_deaths.saturating_add(1);
        FIRST.saturating_mul(factor).min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..10).map(|_| backoff.after_death(Duration::ZERO).as_millis()).collect();
        assert_eq!(waits, [50, 100, 200, 400, 800, 1600, 3200, 6400, 10000, 10000]);
        for _ in 0..100 {
            assert_eq!(backoff.after_death(Duration::ZERO), LONGEST);
        }
    }

    #[test]
    fn a_healthy_run_starts_over() {
        let mut backoff = Backoff::default();
        for _ in 0..5 {
            backoff.after_death(Duration::from_secs(1));
        }
        assert_eq!(backoff.after_death(HEALTHY), FIRST);
        assert_eq!(backoff.after_death(Duration::from_secs(29)), FIRST * 2);
    }
}
