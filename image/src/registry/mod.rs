//! Talking to registries: one small HTTP/1.1 client that trusts nothing it is told.
//!
//! Redirects, authentication, retries and ranges are decided here and not by an HTTP library, because each of them
//! is a place where credentials leak or bytes go unverified. Names are resolved by the caller's resolver: a static
//! program must not ask the C library. Plain HTTP is spoken only to hosts the operator named.
//!
//! Rooms: `origin` (where a registry lives), `connect` (TCP, TLS), `http` (requests, redirects, time limits),
//! `payload` (bodies), `challenge` and `auth` (WWW-Authenticate, tokens), `client` (manifests and small blobs),
//! `blob` (layers), `upload`, `whole` (log in, search).

mod auth;
mod blob;
mod challenge;
mod client;
mod connect;
mod error;
mod http;
mod origin;
mod payload;
mod upload;
mod whole;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

pub use connect::TrustError;
pub use error::{ContentError, FetchError, RegistryError};
pub use whole::Hit;

pub(crate) use blob::Piece;
pub(crate) use client::{Client, Found, Session};
pub(crate) use payload::Payload;

/// A future on the heap, as trait methods that must be object safe return it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Turns a host name into addresses without the C library's help.
pub trait Resolve: Send + Sync {
    /// Addresses of `host` in order of preference. `host` is never an address itself.
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>>;
}

/// What a user is known by at a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// User name and password, or an access token in the password's place.
    Password {
        /// User name.
        username: String,
        /// Password.
        password: String,
    },
    /// A refresh token that an earlier log-in gave ("identity token").
    IdentityToken(String),
    /// A bearer token to be sent as it is.
    RegistryToken(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Secrets must not reach a log by way of `{:?}`.
        out.write_str(match self {
            Self::Password { .. } => "Password(..)",
            Self::IdentityToken(_) => "IdentityToken(..)",
            Self::RegistryToken(_) => "RegistryToken(..)",
        })
    }
}

/// What the operator says about registries.
#[derive(Clone, Debug, Default)]
pub struct Registries {
    /// `host[:port]` exactly as in references: plain HTTP is spoken to these and to no others.
    pub insecure: Vec<String>,
    /// Other places to ask first, by the registry they stand for.
    pub mirrors: Vec<Mirror>,
    /// PEM files with certificates trusted beside the built-in roots.
    pub ca_files: Vec<PathBuf>,
    /// Credentials by registry (`host[:port]`, `docker.io` for Docker Hub).
    pub credentials: BTreeMap<String, Credentials>,
    /// Hosts that may be sent a registry's credentials although they are not below its domain.
    pub token_hosts: Vec<String>,
}

/// A copy of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// The registry it copies, as in references.
    pub registry: String,
    /// Where it is: `host[:port]`.
    pub host: String,
    /// It may say what a tag means. Without, it is asked only for content whose digest is known.
    pub resolves_tags: bool,
}

/// Time limits and tries. The defaults are meant for the open internet.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Time to a connection to one address, TLS included.
    pub connect: Duration,
    /// Time from a request to the head of its answer.
    pub answer: Duration,
    /// Time in which at least one byte of a body must come.
    pub stall: Duration,
    /// Time over which a layer must come at [`RATE_MIN`] at least.
    pub rate_window: Duration,
    /// Tries of a request without any progress before it fails.
    pub tries: u32,
    /// Pause before the second try; doubled for each further one.
    pub first_pause: Duration,
    /// Longest pause, whatever the registry asks for.
    pub longest_pause: Duration,
}

/// Bytes per second below which a connection is given up and made anew.
pub const RATE_MIN: u64 = 128;

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(30),
            stall: Duration::from_secs(30),
            rate_window: Duration::from_secs(60),
            tries: 5,
            first_pause: Duration::from_millis(250),
            longest_pause: Duration::from_secs(120),
        }
    }
}
