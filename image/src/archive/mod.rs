//! Images as files: the archives `docker save` writes and `docker load` reads, and OCI layouts.
//!
//! An archive is as hostile as a registry. Its files are spooled under numbers of our own, so that no name in it
//! ever becomes a path; everything it says goes through the same parsers and digests as a pull.

mod load;
mod save;
mod spool;
#[cfg(test)]
mod tests;

use crate::digest::Digest;
use crate::pull::PullError;
use crate::reference::Reference;
use crate::store::{Image, StoreError};
use crate::unpack::UnpackError;

pub(crate) use load::synthesized;
pub use load::{Step, load, load_telling};
pub(crate) use save::{ReplayError, replay_verified};
pub use save::{SaveError, Selection, save};

/// An image that came out of an archive.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The image, now in the store.
    pub image: Image,
    /// Names the archive gave it; may be none.
    pub names: Vec<Reference>,
    /// Names that meant another image before, and its id.
    pub taken: Vec<(Reference, Digest)>,
}

/// An archive cannot be loaded. Images before the one that failed are in the store.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The archive itself cannot be read.
    #[error("cannot read the archive")]
    Archive(#[source] UnpackError),
    /// The archive is not one of images.
    #[error("invalid archive: {what}")]
    Layout {
        /// What is wrong.
        what: &'static str,
    },
    /// An index of the archive cannot be parsed.
    #[error("invalid archive: {file} is not what it should be")]
    Json {
        /// Which file.
        file: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// An image in it is refused for a reason that would end a pull too.
    #[error(transparent)]
    Image(#[from] PullError),
}

impl From<StoreError> for LoadError {
    fn from(error: StoreError) -> Self {
        Self::Image(error.into())
    }
}
