//! Restart policies with Docker's back-off: 100 ms doubling to one minute, back to the start after ten seconds up.

use std::time::Duration;

/// First wait.
const FIRST: Duration = Duration::from_millis(100);
/// Longest wait.
const LONGEST: Duration = Duration::from_secs(60);
/// A run this long counts as healthy and resets the wait.
const HEALTHY: Duration = Duration::from_secs(10);

/// When a container that ended is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    /// Never.
    No,
    /// Whatever it ended with; also at boot.
    Always,
    /// As `Always`, but not at boot when a user had stopped it.
    UnlessStopped,
    /// When it failed, at most this often in a row; 0 for no limit.
    OnFailure(u32),
}

impl Policy {
    /// Docker's name and count. Unknown names are refused at creation, so here they mean no.
    pub(crate) fn of(name: &str, count: i64) -> Self {
        match name {
            "always" => Self::Always,
            "unless-stopped" => Self::UnlessStopped,
            "on-failure" => Self::OnFailure(u32::try_from(count).unwrap_or(0)),
            _ => Self::No,
        }
    }

    /// Whether to start again after an exit with `code`, restarted `count` times before, not stopped by a user.
    pub(crate) fn again(self, code: i64, count: u32) -> bool {
        match self {
            Self::No => false,
            Self::Always | Self::UnlessStopped => true,
            Self::OnFailure(limit) => code != 0 && (limit == 0 || count < limit),
        }
    }

    /// Whether to start it when the machine boots.
    pub(crate) fn at_boot(self, stopped_by_user: bool, was_running: bool) -> bool {
        match self {
            Self::No => false,
            Self::Always => true,
            Self::UnlessStopped => !stopped_by_user,
            // Docker starts it again only when the machine's end interrupted it.
            Self::OnFailure(_) => was_running && !stopped_by_user,
        }
    }
}

/// The wait before the next start, after the last wait (none for the first) and the last run's length.
pub(crate) fn backoff(last: Option<Duration>, up: Duration) -> Duration {
    match last {
        Some(last) if up < HEALTHY => last.saturating_mul(2).min(LONGEST),
        _ => FIRST,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_to_a_minute_and_starts_over_after_ten_seconds_up() {
        let short = Duration::from_secs(1);
        let mut wait = None;
        let mut waits = Vec::new();
        for _ in 0..12 {
            let next = backoff(wait, short);
            waits.push(next.as_millis());
            wait = Some(next);
        }
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000]);
        assert_eq!(backoff(wait, Duration::from_secs(10)), FIRST);
        assert_eq!(backoff(wait, Duration::from_millis(9_999)), LONGEST);
    }

    #[test]
    fn policies_decide_as_docker_does() {
        let cases = [
            (Policy::No, 1, 0, false),
            (Policy::Always, 0, 1000, true),
            (Policy::UnlessStopped, 0, 0, true),
            (Policy::OnFailure(0), 0, 0, false),
            (Policy::OnFailure(0), 1, 1000, true),
            (Policy::OnFailure(3), 1, 2, true),
            (Policy::OnFailure(3), 1, 3, false),
        ];
        for (policy, code, count, again) in cases {
            assert_eq!(policy.again(code, count), again, "{policy:?} {code} {count}");
        }
    }

    #[test]
    fn at_boot_a_users_stop_counts_for_unless_stopped_only() {
        assert!(Policy::Always.at_boot(true, false));
        assert!(!Policy::UnlessStopped.at_boot(true, false));
        assert!(Policy::UnlessStopped.at_boot(false, false));
        assert!(Policy::OnFailure(1).at_boot(false, true));
        assert!(!Policy::OnFailure(1).at_boot(false, false));
        assert!(!Policy::No.at_boot(false, true));
    }
}
