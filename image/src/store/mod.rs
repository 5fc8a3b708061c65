//! The store: images, their blobs and their unpacked layers, as plain files below one directory.
//!
//! ```text
//! lock                    flock of the one process that uses the store
//! format                  "1"
//! blobs/sha256/<hex>      indexes, manifests, configurations, byte for byte as received
//! images/<hex>.json       one image: its blobs and its layers
//! names/<hash>.json       one name (registry/repository:tag) and the image it means
//! layers/<n>/fs           an unpacked layer, overlay format
//! layers/<n>/layer.json   what it is: diff id, the blobs it came from, size
//! layers/<n>/recipe       what its tar stream has beside the files, see `unpack::recipe`
//! layers/<n>/complete     written after a sync: the layer survives a power cut
//! staging/<n>             layers being unpacked; emptied when the store opens
//! trash/<n>               layers being deleted; emptied when the store opens
//! ```
//!
//! Files are written aside and renamed. An image may be used as soon as it is recorded; a background sync makes it
//! durable and only then marks its layers complete. A layer without the mark that an earlier boot wrote is thrown
//! away with the images that need it, so half-written files after a power cut never run.
//!
//! Rooms in reading order: `files` (atomic writes), `layers`, `images` (find, list, tag), `remove`, `upkeep`.

mod files;
mod images;
mod layers;
mod open;
mod remove;
#[cfg(test)]
mod tests;
mod upkeep;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use images::{FindError, Image, ImageBlobs, Step};
pub(crate) use layers::LayerSource;
pub use layers::{LayerFacts, LayerNumber, Lease, Place, Staging};
pub use remove::{Pruned, RemoveError, Removed, Use};

use crate::digest::Digest;
use crate::reference::Reference;

/// A handle on the store; clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    boot: String,
    state: Mutex<State>,
    upkeep: upkeep::Upkeep,
    /// Held for its flock.
    _lock: OwnedFd,
}

/// What the files say, kept in memory. Files change first, memory after.
#[derive(Debug, Default)]
struct State {
    next: u64,
    layers: BTreeMap<LayerNumber, layers::Layer>,
    images: HashMap<Digest, images::Entry>,
    names: BTreeMap<Reference, Digest>,
    pins: HashMap<LayerNumber, usize>,
    lost: Vec<Reference>,
}

/// The store's files could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the store open.
    #[error("image store {0} is in use by another process")]
    Locked(PathBuf),
    /// The store was written by a newer version.
    #[error("image store has format {0:?}, which this version does not know")]
    Format(String),
    /// A file operation failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was being done, as a verb.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The image is not, or no longer, in the store.
    #[error("no such image: {0}")]
    NoSuchImage(String),
}

impl StoreError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// Whether the file system has no room left.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

impl Store {
    /// Directory of the store.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// Names whose images were thrown away at open because a power cut hit before they were durable.
    pub fn lost(&self) -> Vec<Reference> {
        self.state().lost.clone()
    }

    /// Waits until all that was recorded so far is durable and all that was removed is deleted.
    ///
    /// Blocks; meant for shutdown and for tests.
    pub fn settle(&self) {
        self.inner.upkeep.settle();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while holding the lock leaves memory at worst behind the files, which the next open repairs.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
