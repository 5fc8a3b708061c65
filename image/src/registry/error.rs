//! What can go wrong between this machine and a registry.

use std::io;
use std::time::Duration;

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
