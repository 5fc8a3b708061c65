//! Times as the API writes them.

/// Nanoseconds of a second.
const NANOS: i64 = 1_000_000_000;

/// What stands for "never" in answers.
pub(crate) const NEVER: &str = "0001-01-01T00:00:00Z";

/// Now, nanoseconds since the epoch.
pub(crate) fn now_ns() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

/// Go's RFC3339Nano: no trailing zeros in the fraction, none at all for a whole second.
pub(crate) fn rfc3339_nano(ns: i64) -> String {
    let fraction = format!("{:09}", ns.rem_euclid(NANOS));
    match fraction.trim_end_matches('0') {
        "" => format!("{}Z", seconds(ns)),
        digits => format!("{}.{digits}Z", seconds(ns)),
    }
}

/// The 30 characters in front of a log line: all nine digits of the fraction.
pub(crate) fn rfc3339_padded(ns: i64) -> String {
    format!("{}.{:09}Z", seconds(ns), ns.rem_euclid(NANOS))
}

/// Go's RFC3339: whole seconds.
pub(crate) fn rfc3339(ns: i64) -> String {
    format!("{}Z", seconds(ns))
}

fn seconds(ns: i64) -> String {
    // Every i64 of nanoseconds lies within the years jiff knows.
    jiff::Timestamp::from_second(ns.div_euclid(NANOS))
        .unwrap_or_default()
        .strftime("%Y-%m-%dT%H:%M:%S")
        .to_string()
}

/// Seconds since the epoch of an RFC 3339 time; 0 for another text.
pub(crate) fn parse_seconds(text: &str) -> i64 {
    text.parse::<jiff::Timestamp>().map_or(0, jiff::Timestamp::as_second)
}

/// A duration in the words of `docker ps`: the reference engine's `units.HumanDuration`.
pub(crate) fn human_duration(ns: i64) -> String {
    let seconds = ns / NANOS;
    let minutes = seconds / 60;
    // Hours are rounded, all else is cut.
    let hours = (ns + 1800 * NANOS) / (3600 * NANOS);
    match () {
        () if seconds < 1 => "Less than a second".to_owned(),
        () if seconds == 1 => "1 second".to_owned(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".to_owned(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".to_owned(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        () if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", seconds / 3600 / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_go_writes_them() {
        for (ns, nano) in [
            (1_795_267_176_554_117_377, "2026-11-21T13:19:36.554117377Z"),
            (1_795_267_176_554_117_370, "2026-11-21T13:19:36.55411737Z"),
            (1_600_000_000_000_000_000, "2020-09-13T12:26:40Z"),
            (-1, "1969-12-31T23:59:59.999999999Z"),
        ] {
            assert_eq!(rfc3339_nano(ns), nano);
        }
        assert_eq!(rfc3339_padded(1_600_000_000_500_000_000), "2020-09-13T12:26:40.500000000Z");
        assert_eq!(rfc3339_padded(0).len(), 30);
        assert_eq!(parse_seconds("2020-09-13T12:26:40Z"), 1_600_000_000);
    }

    #[test]
    fn durations_are_told_in_the_words_of_docker_ps() {
        for (seconds, words) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (119, "About a minute"),
            (120, "2 minutes"),
            (46 * 60, "46 minutes"),
            (60 * 60, "About an hour"),
            (89 * 60, "About an hour"),
            (90 * 60, "2 hours"),
            (47 * 3600, "47 hours"),
            (48 * 3600, "2 days"),
            (14 * 24 * 3600, "2 weeks"),
            (60 * 24 * 3600, "2 months"),
            (3 * 365 * 24 * 3600, "3 years"),
        ] {
            assert_eq!(human_duration(seconds * NANOS), words, "{seconds}");
        }
    }
}
