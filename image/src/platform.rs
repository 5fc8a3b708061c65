//! Platforms: which image of an index runs on this machine.
//!
//! Order of preference is that of image-spec's `variant` table: an exact match first, then lower CPU levels.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Operating system and processor an image is made for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux` for everything that can run here.
    pub os: String,
    /// GOARCH name: `amd64`, `arm64`, …
    pub architecture: String,
    /// CPU level: `v2` for amd64, `v7` for arm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// The text is not `os[/architecture[/variant]]`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid platform {0:?}")]
pub struct PlatformError(pub String);

impl Platform {
    /// The platform this program was built for.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            other => other,
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: None }
    }

    /// How well `offered` runs on `self`: 0 is best, `None` is not at all.
    pub fn rank(&self, offered: &Self) -> Option<u32> {
        if self.os != offered.os || self.architecture != offered.architecture {
            return None;
        }
        let wanted = level(&self.architecture, self.variant.as_deref())?;
        let has = level(&offered.architecture, offered.variant.as_deref())?;
        wanted.checked_sub(has)
    }
}

/// CPU level as a number; unknown variants never match.
fn level(architecture: &str, variant: Option<&str>) -> Option<u32> {
    let number = |text: &str| text.strip_prefix('v').and_then(|digits| digits.parse::<u32>().ok());
    match (architecture, variant.filter(|text| !text.is_empty())) {
        ("amd64", None) => Some(1),
        ("arm64", None) => Some(8),
        ("arm", None) => Some(7),
        (_, None) => Some(0),
        (_, Some(text)) => number(text),
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let refuse = || PlatformError(text.chars().take(64).collect());
        let mut parts = text.split('/');
        let os = parts.next().unwrap_or_default();
        let architecture = parts.next();
        let variant = parts.next();
        let word = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.')
        };
        if parts.next().is_some() || ![Some(os), architecture, variant].into_iter().flatten().all(word) {
            return Err(refuse());
        }
        // A lone word is an architecture when it names one, as in `--platform arm64`.
        let (os, architecture) = match architecture {
            Some(architecture) => (os.to_ascii_lowercase(), architecture.to_ascii_lowercase()),
            None if os.eq_ignore_ascii_case("linux") => ("linux".into(), Self::host().architecture),
            None => ("linux".into(), os.to_ascii_lowercase()),
        };
        let architecture = match architecture.as_str() {
            "x86_64" | "x86-64" => "amd64".to_owned(),
            "aarch64" => "arm64".to_owned(),
            "i386" => "386".to_owned(),
            _ => architecture,
        };
        Ok(Self { os, architecture, variant: variant.map(str::to_ascii_lowercase) })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(out, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn higher_cpu_levels_run_lower_ones_and_never_the_reverse() {
        for (host, offered, rank) in [
            ("linux/amd64", "linux/amd64", Some(0)),
            ("linux/amd64", "linux/amd64/v1", Some(0)),
            ("linux/amd64", "linux/amd64/v3", None),
            ("linux/amd64/v3", "linux/amd64/v2", Some(1)),
            ("linux/arm64", "linux/arm64/v8", Some(0)),
            ("linux/arm/v7", "linux/arm/v6", Some(1)),
            ("linux/arm/v6", "linux/arm/v7", None),
            ("linux/amd64", "windows/amd64", None),
            ("linux/amd64", "unknown/unknown", None),
            ("linux/amd64", "linux/amd64/odd", None),
        ] {
            let host: Platform = host.parse().unwrap();
            assert_eq!(host.rank(&offered.parse().unwrap()), rank, "{host} {offered}");
        }
    }

    #[test]
    fn platform_texts_are_normalised_or_refused() {
        assert_eq!("x86_64".parse::<Platform>().unwrap().to_string(), "linux/amd64");
        assert_eq!("linux/aarch64/V8".parse::<Platform>().unwrap().to_string(), "linux/arm64/v8");
        for bad in ["", "/", "linux/", "linux/amd64/v1/x", "li nux/amd64"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad:?}");
        }
    }
}
