//! Where a request goes: scheme, host and port, and what a redirect may change about them.

use std::fmt;
use std::net::IpAddr;

use hyper::Uri;

use super::error::RegistryError;

/// Scheme of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Scheme {
    /// Plain; only for hosts the operator named.
    Http,
    /// With TLS.
    Https,
}

/// Scheme, host and port. Authorization belongs to an origin and never leaves it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Origin {
    pub(crate) scheme: Scheme,
    /// Lower case; an IPv6 address is without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// An absolute address without user information and fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Url {
    pub(crate) origin: Origin,
    /// Path and query, beginning with a slash.
    pub(crate) path: String,
}

impl Origin {
    /// Where the registry called `registry` in references is.
    pub(crate) fn of_registry(registry: &str, insecure: &[String]) -> Option<Self> {
        let scheme = if insecure.iter().any(|host| host == registry) { Scheme::Http } else { Scheme::Https };
        let authority = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        Self::parse(scheme, authority)
    }

    fn parse(scheme: Scheme, authority: &str) -> Option<Self> {
        let default = match scheme {
            Scheme::Http => 80,
            Scheme::Https => 443,
        };
        let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, Some(port.strip_prefix(':')?)),
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let port = match port {
            None | Some("") => default,
            Some(port) => port.parse().ok()?,
        };
        let valid = !host.is_empty()
            && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte));
        valid.then(|| Self { scheme, host: host.to_ascii_lowercase(), port })
    }

    /// The host as an address, if it is one.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// Value of the Host header.
    pub(crate) fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match (self.scheme, self.port) {
            (Scheme::Http, 80) | (Scheme::Https, 443) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.authority())
    }
}

impl Url {
    /// Parses an absolute address.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let uri: Uri = text.parse().ok()?;
        let scheme = match uri.scheme_str()? {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return None,
        };
        let authority = uri.authority()?.as_str();
        if authority.contains('@') {
            return None;
        }
        let path = uri.path_and_query().map_or("/", hyper::http::uri::PathAndQuery::as_str);
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Some(Self { origin: Origin::parse(scheme, authority)?, path })
    }

    /// Where a `Location` header leads from here.
    pub(crate) fn join(&self, location: &str) -> Option<Self> {
        if location.starts_with("http://") || location.starts_with("https://") {
            return Self::parse(location);
        }
        if location.starts_with("//") {
            let scheme = match self.origin.scheme {
                Scheme::Http => "http:",
                Scheme::Https => "https:",
            };
            return Self::parse(&format!("{scheme}{location}"));
        }
        let path = if location.starts_with('/') {
            location.to_owned()
        } else {
            let base = self.path.split('?').next().unwrap_or_default();
            let directory = base.rsplit_once('/').map_or("", |(directory, _)| directory);
            format!("{directory}/{location}")
        };
        let uri: Uri = path.parse().ok()?;
        (uri.authority().is_none()).then(|| Self { origin: self.origin.clone(), path })
    }

    /// The address without query, which may carry a signature.
    pub(crate) fn shown(&self) -> String {
        let scheme = match self.origin.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        let path = self.path.split('?').next().unwrap_or_default();
        format!("{scheme}://{}{path}", self.origin)
    }
}

/// Whether an address may be reached because a registry said so, rather than because the operator did: nothing on
/// this machine, on its link, or where clouds keep their metadata.
pub(crate) fn is_public_enough(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let alibaba_metadata = v4.octets() == [100, 100, 100, 200];
            !(v4.is_loopback()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.octets()[0] == 0
                || alibaba_metadata)
        }
        IpAddr::V6(v6) => {
            let aws_metadata = v6.segments() == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254];
            !(v6.is_loopback()
                || v6.is_unicast_link_local()
                || v6.is_unspecified()
                || v6.is_multicast()
                || aws_metadata)
        }
    }
}

/// Checks a redirect of `from`; `registry` is where the chain of redirects began.
pub(crate) fn check_redirect(registry: &Origin, from: &Origin, to: &Origin) -> Result<(), &'static str> {
    if from.scheme == Scheme::Https && to.scheme == Scheme::Http {
        return Err("it would leave TLS");
    }
    if to.scheme == Scheme::Http && registry.scheme == Scheme::Https {
        return Err("it would leave TLS");
    }
    if to.host != registry.host && to.address().is_some_and(|address| !is_public_enough(address)) {
        return Err("the address belongs to this machine or its link");
    }
    Ok(())
}

/// Checks the address of a token server named by `registry`.
pub(crate) fn check_realm(registry: &Origin, realm: &Origin) -> Result<(), &'static str> {
    check_redirect(registry, registry, realm)
}

/// Whether the token server may see credentials kept for the registry: the same host or domain, or an allowed host.
pub(crate) fn may_have_credentials(registry: &Origin, realm: &Origin, allowed: &[String]) -> bool {
    realm.host == registry.host
        || allowed.iter().any(|host| host.eq_ignore_ascii_case(&realm.host))
        || (registry.address().is_none()
            && realm.address().is_none()
            && domain(&registry.host) == domain(&realm.host))
}

/// The domain somebody registered: the last two labels, or three where the last two look like `co.uk`.
fn domain(host: &str) -> &str {
    let host = host.trim_end_matches('.');
    let mut labels = host.rsplit('.');
    let top = labels.next().unwrap_or_default();
    let second = labels.next().unwrap_or_default();
    let count = if top.len() == 2 && second.len() <= 3 { 3 } else { 2 };
    let start = host.rmatch_indices('.').nth(count - 1).map_or(0, |(at, _)| at + 1);
    host.get(start..).unwrap_or(host)
}

impl RegistryError {
    pub(crate) fn refused(from: &Origin, target: &str, reason: &'static str) -> Self {
        Self::Refused { host: from.to_string(), target: target.chars().take(256).collect(), reason }
    }

    pub(crate) fn protocol(host: &Origin, what: impl Into<String>) -> Self {
        Self::Protocol { host: host.to_string(), what: what.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap_or_else(|| panic!("{text}"))
    }

    #[test]
    fn registries_are_https_unless_named_insecure() {
        let insecure = ["10.0.2.2:5000".to_owned()];
        for (registry, expected) in [
            ("docker.io", "https://registry-1.docker.io/"),
            ("ghcr.io", "https://ghcr.io/"),
            ("10.0.2.2:5000", "http://10.0.2.2:5000/"),
            ("10.0.2.2:5001", "https://10.0.2.2:5001/"),
            ("10.0.2.2", "https://10.0.2.2/"),
            ("[::1]:5000", "https://[::1]:5000/"),
        ] {
            let origin = Origin::of_registry(registry, &insecure).unwrap();
            assert_eq!(Url { origin, path: "/".into() }.shown(), expected);
        }
    }

    #[test]
    fn locations_are_absolute_or_relative_and_never_carry_a_user() {
        let base = url("https://r.example/v2/a/blobs/x?y=1");
        for (location, expected) in [
            ("https://cdn.example/b?s=1", Some("https://cdn.example/b")),
            ("/c", Some("https://r.example/c")),
            ("c", Some("https://r.example/v2/a/blobs/c")),
            ("//cdn.example:8443/b", Some("https://cdn.example:8443/b")),
            ("https://user@cdn.example/b", None),
            ("https://user:pw@cdn.example/b", None),
            ("ftp://cdn.example/b", Some("https://r.example/v2/a/blobs/ftp://cdn.example/b")),
            ("https://", None),
            ("/a b", None),
            ("/a\r\nb", None),
        ] {
            assert_eq!(base.join(location).map(|url| url.shown()).as_deref(), expected, "{location:?}");
        }
    }

    #[test]
    fn redirects_never_leave_tls_nor_enter_this_machine() {
        let registry = url("https://r.example/").origin;
        let plain = url("http://10.0.2.2:5000/").origin;
        for (from, to, allowed) in [
            (&registry, "https://cdn.example/", true),
            (&registry, "http://cdn.example/", false),
            (&registry, "https://127.0.0.1/", false),
            (&registry, "https://169.254.169.254/", false),
            (&registry, "https://[::ffff:169.254.169.254]/", false),
            (&registry, "https://[fe80::1]/", false),
            (&registry, "https://[::]/", false),
            (&registry, "https://0.0.0.1/", false),
            (&plain, "http://10.0.2.2:5001/", true),
            (&plain, "http://169.254.169.254/", false),
            (&plain, "https://cdn.example/", true),
        ] {
            assert_eq!(check_redirect(from, from, &url(to).origin).is_ok(), allowed, "{to}");
        }
        let cdn = url("https://cdn.example/").origin;
        assert!(check_redirect(&plain, &cdn, &url("http://cdn.example/").origin).is_err());
    }

    #[test]
    fn credentials_stay_within_the_domain() {
        for (registry, realm, allowed) in [
            ("registry-1.docker.io", "auth.docker.io", true),
            ("registry.gitlab.com", "gitlab.com", true),
            ("ghcr.io", "ghcr.io", true),
            ("r.example.com", "evil.com", false),
            ("r.shop.co.uk", "evil.co.uk", false),
            ("r.shop.co.uk", "auth.shop.co.uk", true),
            ("10.0.2.2", "10.1.2.2", false),
            ("r.example.com", "notexample.com", false),
            ("r.example.com", "tokens.example.net", true),
        ] {
            let origin = |host: &str| url(&format!("https://{host}/")).origin;
            let listed = ["tokens.example.net".to_owned()];
            assert_eq!(may_have_credentials(&origin(registry), &origin(realm), &listed), allowed, "{realm}");
        }
    }
}
