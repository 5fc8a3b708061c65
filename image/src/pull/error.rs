//! Why a pull failed, in terms that map to Docker's texts and statuses.

use std::io;

use crate::config::ConfigError;
use crate::digest::Digest;
use crate::manifest::ManifestError;
use crate::platform::Platform;
use crate::registry::{ContentError, RegistryError};
use crate::store::StoreError;
use crate::unpack::UnpackError;

/// A pull failed. Nothing of it is left but whole layers, which the next try finds.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry does not know the name or digest.
    #[error("manifest for {reference} not found: manifest unknown: manifest unknown")]
    NotFound {
        /// Familiar form.
        reference: String,
    },
    /// The registry refuses access, which may also mean that there is no such repository.
    #[error(
        "pull access denied for {repository}, repository does not exist or may require 'docker login': {message}"
    )]
    Denied {
        /// Familiar repository name.
        repository: String,
        /// The registry's words.
        message: String,
    },
    /// The registry wants credentials, or others than it was given.
    #[error("unauthorized: {message}")]
    Unauthorized {
        /// The registry's words.
        message: String,
    },
    /// The registry limits requests; retried as long as patience allows.
    #[error("toomanyrequests: {message}")]
    TooManyRequests {
        /// The registry's words.
        message: String,
    },
    /// No answer, or none that can be used.
    #[error("cannot pull from {host}")]
    Unreachable {
        /// The registry.
        host: String,
        /// What happened.
        #[source]
        source: RegistryError,
    },
    /// A manifest or index cannot be used.
    #[error("unusable manifest {digest}")]
    Manifest {
        /// Which document.
        digest: Digest,
        /// What is wrong.
        #[source]
        source: ManifestError,
    },
    /// The configuration cannot be used.
    #[error("unusable image configuration {digest}")]
    Config {
        /// Which one.
        digest: Digest,
        /// What is wrong.
        #[source]
        source: ConfigError,
    },
    /// The index has nothing for this machine.
    #[error("no matching manifest for {platform} in the manifest list entries")]
    NoPlatform {
        /// What was wanted.
        platform: Platform,
    },
    /// Content is not what its digest or size says.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// A layer cannot be unpacked.
    #[error("cannot unpack layer {layer}")]
    Unpack {
        /// The compressed blob.
        layer: Digest,
        /// What is wrong.
        #[source]
        source: UnpackError,
    },
    /// The disk is full. Nothing half-written is left.
    #[error("no space left on device")]
    NoSpace(#[source] io::Error),
    /// The store's files could not be written.
    #[error("cannot store image")]
    Store(#[source] StoreError),
    /// The pull was given up.
    #[error("pull was cancelled")]
    Cancelled,
}

impl From<StoreError> for PullError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Io { source, .. } if is_no_space(&source) => Self::NoSpace(source),
            other => Self::Store(other),
        }
    }
}

pub(crate) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
