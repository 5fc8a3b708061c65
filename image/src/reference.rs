//! Image references: what users type (`nginx`, `ghcr.io/a/b:1@sha256:…`) and the one canonical form kept inside.
//!
//! Grammar and defaults are those of the `docker` command (distribution/reference), so the same text means the
//! same image: a first component is a registry host only if it has a dot or a port, or is `localhost`.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::Digest;

/// Bytes of host and repository together; distribution/reference `NameTotalLengthMax`.
const NAME_LENGTH_MAX: usize = 255;
/// Bytes of a tag; distribution-spec, "Pulling manifests".
const TAG_LENGTH_MAX: usize = 128;

const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";

/// A parsed reference. It has a tag, a digest, or both; with neither given the tag is `latest`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// The text is not a reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Some part breaks the grammar.
    #[error("invalid reference format")]
    Format,
    /// The repository has upper-case letters, which is common enough to have its own text.
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    UpperCase(String),
    /// 64 hexadecimal digits are an id, never a name.
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    Identifier(String),
    /// Longer than 255 bytes.
    #[error("repository name must not be more than {NAME_LENGTH_MAX} characters")]
    TooLong,
}

impl Reference {
    /// Registry as named by the user: `docker.io` unless another was written. Host and optional port.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Repository below the registry, with `library/` where Docker implies it.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, `None` only when a digest stands alone.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, which wins over the tag when both are there.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// `registry/repository` without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The repository name as Docker shows it: `nginx`, `user/app`, `ghcr.io/a/b`.
    pub fn familiar_name(&self) -> String {
        if self.registry != DEFAULT_REGISTRY {
            return self.name();
        }
        match self.repository.strip_prefix("library/") {
            Some(rest) if !rest.contains('/') => rest.to_owned(),
            _ => self.repository.clone(),
        }
    }

    /// The whole reference as Docker shows it: `nginx:latest`, `ghcr.io/a/b@sha256:…`.
    pub fn familiar(&self) -> String {
        self.suffixed(self.familiar_name())
    }

    /// The same repository under a tag, without digest.
    pub fn with_tag(&self, tag: &str) -> Result<Self, ReferenceError> {
        if !is_tag(tag) {
            return Err(ReferenceError::Format);
        }
        Ok(Self { tag: Some(tag.to_owned()), digest: None, ..self.clone() })
    }

    /// The same repository by digest alone.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// What stands in the registry's manifest URL: the digest if there is one, else the tag.
    pub fn selector(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }

    fn suffixed(&self, mut text: String) -> String {
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(&digest.to_string());
        }
        text
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.suffixed(self.name()))
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase())
        {
            return Err(ReferenceError::Identifier(text.to_owned()));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse().map_err(|_| ReferenceError::Format)?)),
            None => (text, None),
        };
        // A colon after the last slash starts a tag; one before it belongs to the port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') && !tag.contains(']') => (name, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(ReferenceError::Format);
        }
        let (registry, repository) = split_registry(name);
        check_repository(repository)?;
        if !is_registry(registry) {
            return Err(ReferenceError::Format);
        }
        let (registry, repository) = normal(registry, repository);
        if registry.len() + 1 + repository.len() > NAME_LENGTH_MAX {
            return Err(ReferenceError::TooLong);
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some(DEFAULT_TAG.to_owned()),
        };
        Ok(Self { registry, repository, tag, digest })
    }
}

/// Splits `host/rest` where the first component can only be a host.
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((host, rest))
            if host.contains(['.', ':'])
                || host == "localhost"
                || host.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            (host, rest)
        }
        _ => (DEFAULT_REGISTRY, name),
    }
}

fn normal(registry: &str, repository: &str) -> (String, String) {
    let registry = match registry {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY,
        other => other,
    };
    if registry == DEFAULT_REGISTRY && !repository.contains('/') {
        return (registry.to_owned(), format!("library/{repository}"));
    }
    (registry.to_owned(), repository.to_owned())
}

fn check_repository(repository: &str) -> Result<(), ReferenceError> {
    if repository.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(ReferenceError::UpperCase(repository.chars().take(NAME_LENGTH_MAX).collect()));
    }
    if repository.len() > NAME_LENGTH_MAX {
        return Err(ReferenceError::TooLong);
    }
    if repository.split('/').all(is_component) { Ok(()) } else { Err(ReferenceError::Format) }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(component: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    if !ends.into_iter().all(|end| end.is_some_and(|&byte| alphanumeric(byte))) {
        return false;
    }
    component.split(|character: char| character.is_ascii_lowercase() || character.is_ascii_digit()).all(
        |separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-'),
    )
}

/// `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`
fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= TAG_LENGTH_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

/// Host name, IPv4 address or bracketed IPv6 address, with an optional port.
fn is_registry(registry: &str) -> bool {
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, "")) => return address.parse::<std::net::Ipv6Addr>().is_ok(),
            Some((address, port)) if address.parse::<std::net::Ipv6Addr>().is_ok() => {
                return port.strip_prefix(':').is_some_and(is_port);
            }
            _ => return false,
        },
        None => match registry.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (registry, None),
        },
    };
    let label = |label: &str| {
        let bytes = label.as_bytes();
        let ends = [bytes.first(), bytes.last()];
        ends.into_iter().all(|end| end.is_some_and(u8::is_ascii_alphanumeric))
            && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
    };
    host.split('.').all(label) && port.is_none_or(is_port)
}

fn is_port(port: &str) -> bool {
    !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn short_names_get_the_defaults_docker_gives_them() {
        for (text, canonical, familiar) in [
            ("nginx", "docker.io/library/nginx:latest", "nginx:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27", "nginx:1.27"),
            ("user/app", "docker.io/user/app:latest", "user/app:latest"),
            ("library/nginx", "docker.io/library/nginx:latest", "nginx:latest"),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest", "nginx:latest"),
            ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
            ("localhost:5000/app:t", "localhost:5000/app:t", "localhost:5000/app:t"),
            ("10.0.2.2:5000/demo:latest", "10.0.2.2:5000/demo:latest", "10.0.2.2:5000/demo:latest"),
            ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest"),
            ("a/b/c_d/e__f/g-h.i", "docker.io/a/b/c_d/e__f/g-h.i:latest", "a/b/c_d/e__f/g-h.i:latest"),
            ("EXAMPLE.com/app", "EXAMPLE.com/app:latest", "EXAMPLE.com/app:latest"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), canonical, "{text}");
            assert_eq!(reference.familiar(), familiar, "{text}");
            assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
        }
    }

    #[test]
    fn a_digest_wins_over_the_tag_beside_it() {
        let reference: Reference = format!("app:1@sha256:{HEX}").parse().unwrap();
        assert_eq!(reference.tag(), Some("1"));
        assert_eq!(reference.selector(), format!("sha256:{HEX}"));
        let bare: Reference = format!("app@sha256:{HEX}").parse().unwrap();
        assert_eq!(bare.tag(), None);
        assert_eq!(bare.familiar(), format!("app@sha256:{HEX}"));
    }

    #[test]
    fn what_is_not_a_reference_is_refused() {
        let long = "a".repeat(256);
        let long_tag = format!("app:{}", "t".repeat(129));
        for bad in [
            "",
            ":",
            "a:",
            "/a",
            "a/",
            "a//b",
            "a/../b",
            "a/./b",
            "%2e%2e/a",
            "a b",
            "a:t/b",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "App",
            "user/App",
            "host:port/a",
            "host:99999/a",
            "[::1/a",
            "[zz]:1/a",
            "a@sha256:12",
            "a@",
            "a:-t",
            "a.b:5000",
            "h_st.x/a",
            "a\n",
            "ä",
            HEX,
            &long,
            &long_tag,
        ] {
            assert!(bad.parse::<Reference>().is_err() || bad == "a.b:5000", "{bad:?}");
        }
        let limit = format!("app:{}", "t".repeat(128));
        assert!(limit.parse::<Reference>().is_ok());
    }
}
