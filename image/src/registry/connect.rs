//! TCP and TLS to registries.

use std::io;
use std::path::PathBuf;

/// The certificates the operator named cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file cannot be read.
    #[error("cannot read certificates from {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file holds no usable certificate.
    #[error("{path} holds no usable certificate: {what}")]
    Certificate {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// TLS itself cannot be set up.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
}
