//! A small client of the API over a unix socket or TCP with mutual TLS, for the tools and the tests.
//!
//! Every request runs under a deadline; streams and hijacked connections only until they are open.
//!
//! ```no_run
//! # async fn demo() -> Result<(), berth_api::client::ClientError> {
//! use berth_api::client::Client;
//! let client = Client::unix("/run/docker.sock");
//! let version: berth_api::docker::system::VersionAnswer = client.get("/version").await?;
//! # Ok(())
//! # }
//! ```

mod connect;
mod frames;
mod request;
mod stream;

pub use frames::{Frame, FrameStream, read_frame};
pub use request::{Client, DEFAULT_DEADLINE, MAX_ANSWER_BYTES};
pub use stream::{Hijacked, Streaming};

use std::io;
use std::time::Duration;

/// Why a request has no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection to the socket or address.
    #[error("cannot connect to {target}")]
    Connect {
        /// Path or address.
        target: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The certificates or the key are not usable.
    #[error("cannot use the {what} given for TLS")]
    Credentials {
        /// Which part.
        what: &'static str,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The request could not be built, as with a path that is no URI.
    #[error("cannot build the request for {path}")]
    Request {
        /// The path.
        path: String,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The connection broke.
    #[error("the connection broke during {path}")]
    Broken {
        /// The path asked for.
        path: String,
        /// How.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server refused.
    #[error("{path}: {status}: {message}")]
    Refused {
        /// The path asked for.
        path: String,
        /// HTTP status.
        status: u16,
        /// Message of the error body, or the body.
        message: String,
    },
    /// The answer is not what it should be.
    #[error("cannot decode the answer of {path}")]
    Decode {
        /// The path asked for.
        path: String,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// Took too long.
    #[error("no answer of {path} within {after:?}")]
    Deadline {
        /// The path asked for.
        path: String,
        /// The deadline.
        after: Duration,
    },
}

impl ClientError {
    /// The HTTP status of a refusal.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}
