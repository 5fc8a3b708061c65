//! Versions of the Docker Engine API that Berth speaks.

use std::fmt;
use std::str::FromStr;

/// The version advertised in `Api-Version` and used for unversioned paths.
///
/// Not 1.52: that version drops fields of inspect which clients still read.
pub const API_VERSION: Version = Version { major: 1, minor: 51 };

/// The oldest version answered. Older than the current engine's minimum, because hard-coded clients exist.
pub const MIN_API_VERSION: Version = Version { major: 1, minor: 24 };

/// A version of the Docker Engine API, such as `1.51`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    major: u16,
    minor: u16,
}

impl Version {
    /// The version `1.minor`.
    pub const fn one(minor: u16) -> Self {
        Self { major: 1, minor }
    }
}

/// The text is not `major.minor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a version of the form major.minor")]
pub struct NotAVersion;

impl FromStr for Version {
    type Err = NotAVersion;

    fn from_str(text: &str) -> Result<Self, NotAVersion> {
        let (major, minor) = text.split_once('.').ok_or(NotAVersion)?;
        let number = |digits: &str| {
            let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
            digits.parse().ok().filter(|_| plain).ok_or(NotAVersion)
        };
        Ok(Self { major: number(major)?, minor: number(minor)? })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_order_by_number_not_by_text() {
        assert!("1.9".parse::<Version>().unwrap() < "1.24".parse().unwrap());
        assert_eq!("1.51".parse(), Ok(API_VERSION));
        assert_eq!(API_VERSION.to_string(), "1.51");
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "1", "1.", ".1", "1.+5", "1.5x", "1.99999"] {
            assert_eq!(text.parse::<Version>(), Err(NotAVersion), "{text}");
        }
    }
}
