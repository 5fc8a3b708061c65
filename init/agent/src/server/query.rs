//! Query strings: decoding, and the types the reference engine reads from them.

use super::errors::ApiError;

/// The decoded query of a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    pub(crate) fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|part| !part.is_empty()).map(|part| {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            (percent_decode(key, true), percent_decode(value, true))
        });
        Self { pairs: pairs.collect() }
    }

    /// The first value of `key`.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The first value of `key`; an empty one counts as none.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.get(key).filter(|value| !value.is_empty())
    }

    /// All values of `key`.
    pub(crate) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs.iter().filter(move |(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Whether `key` is set to anything but the reference engine's words for no.
    pub(crate) fn flag(&self, key: &str) -> bool {
        self.flag_or(key, false)
    }

    /// As [`Self::flag`], with the value for an absent key.
    pub(crate) fn flag_or(&self, key: &str, absent: bool) -> bool {
        self.get(key).map_or(absent, is_true)
    }

    /// A whole number, with the reference engine's words and status for another text.
    pub(crate) fn integer(&self, key: &str) -> Result<Option<i64>, ApiError> {
        let Some(text) = self.text(key) else { return Ok(None) };
        match text.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(ApiError::failed(format!("strconv.Atoi: parsing {text:?}: invalid syntax"))),
        }
    }

    /// A point in time as `seconds[.fraction]`, RFC 3339, or a duration before `now_ns` such as `10m`; nanoseconds
    /// since the epoch.
    pub(crate) fn time_ns(&self, key: &str, now_ns: i64) -> Result<Option<i64>, ApiError> {
        let Some(text) = self.text(key) else { return Ok(None) };
        match parse_time_ns(text, now_ns) {
            Some(time) => Ok(Some(time)),
            None => Err(ApiError::failed(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))),
        }
    }
}

/// The reference engine's reading of a boolean parameter.
pub(crate) fn is_true(text: &str) -> bool {
    !matches!(text.trim().to_ascii_lowercase().as_str(), "" | "0" | "no" | "false" | "none")
}

/// See [`Query::time_ns`].
pub(crate) fn parse_time_ns(text: &str, now_ns: i64) -> Option<i64> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
    let (seconds, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !seconds.is_empty() && plain(seconds) && plain(fraction) {
        let nanos: i64 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
        let time = seconds.parse::<i64>().ok()?.checked_mul(1_000_000_000)?.checked_add(nanos)?;
        return Some(if negative { -time } else { time });
    }
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return i64::try_from(time.as_nanosecond()).ok();
    }
    now_ns.checked_sub(parse_go_duration_ns(text)?)
}

/// A duration as Go writes it: `1h30m`, `10m`, `1.5s`, `300ms`.
fn parse_go_duration_ns(text: &str) -> Option<i64> {
    let mut rest = text;
    let mut total = 0_f64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest.get(..end)?.parse().ok()?;
        rest = rest.get(end..)?;
        let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let (unit, after) = rest.split_at(unit_end);
        total += number
            * match unit {
                "ns" => 1.0,
                "us" | "µs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                _ => return None,
            };
        rest = after;
    }
    #[allow(clippy::cast_possible_truncation, reason = "saturates, and no clock reaches it")]
    Some(total as i64)
}

/// Undoes percent encoding; with `plus`, `+` is a space. Broken escapes stay as they are.
pub(crate) fn percent_decode(text: &str, plus: bool) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let hex = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
                let mut ahead = bytes.clone();
                match (hex(ahead.next()), hex(ahead.next())) {
                    (Some(high), Some(low)) => {
                        out.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
                        bytes = ahead;
                    }
                    _ => out.push(b'%'),
                }
            }
            b'+' if plus => out.push(b' '),
            other => out.push(other),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_decode_as_forms() {
        let query = Query::parse("a=1&b=x%20y+z&a=2&flag&bad=%zz&%7Bk=v");
        assert_eq!(query.get("a"), Some("1"));
        assert_eq!(query.all("a").collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(query.get("b"), Some("x y z"));
        assert_eq!(query.get("flag"), Some(""));
        assert_eq!(query.get("bad"), Some("%zz"));
        assert_eq!(query.get("{k"), Some("v"));
    }

    #[test]
    fn booleans_are_read_as_the_reference_engine_reads_them() {
        for (text, truth) in [("1", true), ("true", true), ("True", true), ("yes", true), ("x", true)] {
            assert_eq!(is_true(text), truth, "{text}");
        }
        for text in ["", "0", "no", "false", "FALSE", "none", " 0 "] {
            assert!(!is_true(text), "{text}");
        }
    }

    #[test]
    fn times_are_seconds_dates_or_durations_ago() {
        let now = 1_000_000_000_000;
        for (text, time) in [
            ("12", Some(12_000_000_000)),
            ("12.5", Some(12_500_000_000)),
            ("12.000000001", Some(12_000_000_001)),
            ("1970-01-01T00:00:12Z", Some(12_000_000_000)),
            ("10s", Some(990_000_000_000)),
            ("1m30s", Some(910_000_000_000)),
            ("x", None),
            ("5 parsecs", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(parse_time_ns(text, now), time, "{text}");
        }
    }
}
