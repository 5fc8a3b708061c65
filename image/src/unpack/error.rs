//! Why a layer was refused.

use std::io;

/// A layer cannot be unpacked. Paths are shown as far as they are text.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The source of the bytes ended or failed.
    #[error("cannot read the layer")]
    Read(#[source] io::Error),
    /// The compressed stream is damaged, or not what its media type promises.
    #[error("compressed stream is damaged: {what}")]
    Compression {
        /// What is wrong.
        what: String,
    },
    /// The tar stream breaks the format.
    #[error("tar entry {entry}: {what}")]
    Tar {
        /// Number of the entry, from 1.
        entry: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// An entry that must not be in a layer.
    #[error("{path:?}: {what}")]
    Entry {
        /// Its path.
        path: String,
        /// What is wrong.
        what: &'static str,
    },
    /// A limit on what a layer may hold.
    #[error("layer exceeds the limit of {limit} {what}")]
    Limit {
        /// What is limited.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The file system refuses an entry.
    #[error("cannot {action} {path:?}")]
    Write {
        /// What was being done.
        action: &'static str,
        /// Path of the entry.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl UnpackError {
    /// An error met while reading the uncompressed stream: of the decoder, or of the source below it.
    pub(crate) fn stream(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::InvalidData
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::UnexpectedEof
            | io::ErrorKind::Other => Self::Compression { what: error.to_string() },
            io::ErrorKind::QuotaExceeded => {
                Self::Limit { what: "times its compressed size", limit: super::stream::RATIO_MAX }
            }
            _ => Self::Read(error),
        }
    }

    /// The error of the file system, if that is what it was.
    pub(crate) fn into_no_space(self) -> Result<io::Error, Self> {
        match self {
            Self::Write { source, .. }
                if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
            {
                Ok(source)
            }
            other => Err(other),
        }
    }
}
