//! What can go wrong between this machine and a registry.

use std::io;
use std::time::Duration;

use crate::digest::Digest;

/// A request to a registry failed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The host's name could not be resolved.
    #[error("cannot resolve {host}")]
    Resolve {
        /// The name.
        host: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No connection, or it broke.
    #[error("cannot reach {host}")]
    Connect {
        /// Host and port.
        host: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something took longer than it may.
    #[error("{host} did not {what} within {} s", limit.as_secs_f32())]
    Timeout {
        /// Host and port.
        host: String,
        /// What was waited for.
        what: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// The answer broke HTTP or the registry protocol.
    #[error("{host} answered {what}")]
    Protocol {
        /// Host and port.
        host: String,
        /// What was wrong.
        what: String,
    },
    /// A redirect or token address that must not be followed.
    #[error("{host} sends on to {target:?}, which is refused: {reason}")]
    Refused {
        /// Who asked for it.
        host: String,
        /// Where to, without query.
        target: String,
        /// Which rule forbids it.
        reason: &'static str,
    },
    /// 401 although all credentials there are were tried.
    #[error("unauthorized: {message}")]
    Unauthorized {
        /// The registry's words.
        message: String,
    },
    /// 403.
    #[error("denied: {message}")]
    Denied {
        /// The registry's words.
        message: String,
    },
    /// 404.
    #[error("not found: {message}")]
    NotFound {
        /// The registry's words.
        message: String,
    },
    /// 429 after all tries.
    #[error("toomanyrequests: {message}")]
    TooManyRequests {
        /// The registry's words.
        message: String,
        /// What it asks to wait.
        after: Option<Duration>,
    },
    /// Another status.
    #[error("{host} answered status {status}: {message}")]
    Status {
        /// Host and port.
        host: String,
        /// HTTP status.
        status: u16,
        /// The registry's words.
        message: String,
        /// What it asks to wait.
        after: Option<Duration>,
    },
}

impl RegistryError {
    /// Whether the same request may succeed later.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::Timeout { .. }
            | Self::TooManyRequests { .. }
            | Self::Resolve { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 500 | 502 | 503 | 504),
            Self::Protocol { .. }
            | Self::Refused { .. }
            | Self::Unauthorized { .. }
            | Self::Denied { .. }
            | Self::NotFound { .. } => false,
        }
    }

    /// How long the registry asks to wait.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::TooManyRequests { after, .. } | Self::Status { after, .. } => *after,
            _ => None,
        }
    }
}

/// Bytes are not the bytes that were asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    /// Other bytes.
    #[error("digest mismatch: wanted {wanted}, got {got}")]
    Digest {
        /// Asked for.
        wanted: Digest,
        /// Computed.
        got: Digest,
    },
    /// The uncompressed layer is not the one the configuration lists.
    #[error("layer {layer} unpacks to {got}, but the image lists {wanted}")]
    DiffId {
        /// The compressed blob.
        layer: Digest,
        /// Listed.
        wanted: Digest,
        /// Computed.
        got: Digest,
    },
    /// The registry says a blob has another size than the manifest does.
    #[error("size mismatch of {digest}: the manifest says {wanted} bytes, the registry {got}")]
    Size {
        /// The blob.
        digest: Digest,
        /// Per manifest.
        wanted: u64,
        /// Per registry.
        got: u64,
    },
    /// A body is larger than its limit.
    #[error("{what} is larger than {limit} bytes")]
    TooLarge {
        /// What.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// The body ended early, every time it was asked for.
    #[error("{digest} ends after {got} of {wanted} bytes")]
    Truncated {
        /// The blob.
        digest: Digest,
        /// Bytes per manifest.
        wanted: u64,
        /// Bytes received.
        got: u64,
    },
}

/// Fetching failed, by the registry's doing or by what it sent.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The request failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The content is wrong.
    #[error(transparent)]
    Content(#[from] ContentError),
}
