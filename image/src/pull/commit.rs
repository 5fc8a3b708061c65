//! From an unpacked and verified tree to a layer of the store.

use std::os::fd::AsFd as _;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};

use super::error::PullError;
use super::progress::{Reporter, Status};
use crate::digest::Digest;
use crate::store::{LayerFacts, LayerNumber, Lease, Staging, Store};
use crate::unpack::{self, Outcome, UnpackError};

/// A tree whose bytes had all the digests they should have.
pub(crate) struct Verified {
    pub(crate) staging: Staging,
    pub(crate) diff_id: Digest,
    pub(crate) outcome: Outcome,
    /// The blob it came from.
    pub(crate) blob: Digest,
    /// Its place in the image.
    pub(crate) chain: Digest,
    pub(crate) lowest: bool,
}

/// A layer that is there, or that waits for those below it.
pub(crate) enum Fetched {
    /// In the store.
    Committed { number: LayerNumber, lease: Lease },
    /// Unpacked and verified, but without the attributes of directories it left out.
    Unplaced { staging: Staging, facts: LayerFacts, implied: Vec<Vec<u8>>, blob: Digest, reporter: Reporter },
}

impl Verified {
    /// Commits the layer, unless it needs to know the layers below first.
    pub(crate) fn commit(
        self,
        store: &Store,
        mut lease: Lease,
        reporter: Reporter,
    ) -> Result<Fetched, PullError> {
        let Self { staging, diff_id, outcome, blob, chain, lowest } = self;
        let unplaced = !outcome.implied.is_empty();
        let facts = LayerFacts {
            diff_id,
            blob: Some(blob.clone()),
            chain: (unplaced || (lowest && outcome.whiteouts)).then_some(chain),
            size: outcome.size,
            whiteouts: outcome.whiteouts,
            opaque_root: outcome.opaque_root,
            tar_size: outcome.exact.then_some(outcome.length),
        };
        if unplaced {
            return Ok(Fetched::Unplaced { staging, facts, implied: outcome.implied, blob, reporter });
        }
        let number = store.commit_layer(staging, &facts, &mut lease)?;
        reporter.report(Status::PullComplete);
        Ok(Fetched::Committed { number, lease })
    }
}

impl Fetched {
    /// The layer's number; one that waited gets the attributes of the layers below and is committed.
    pub(crate) fn finish(
        self,
        store: &Store,
        below: &[LayerNumber],
        lease: &mut Lease,
        kept: &mut Vec<Lease>,
    ) -> Result<LayerNumber, PullError> {
        match self {
            Self::Committed { number, lease } => {
                kept.push(lease);
                Ok(number)
            }
            Self::Unplaced { staging, facts, implied, blob, reporter } => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let open = |path: PathBuf| {
                    rustix::fs::open(&path, flags, Mode::empty()).map_err(|errno| {
                        let path = path.display().to_string();
                        unpack_error(&blob, UnpackError::Write { action: "open", path, source: errno.into() })
                    })
                };
                let root = open(staging.tree())?;
                let lower = below.iter().rev().map(|number| open(store.layer_tree(*number)));
                let lower = lower.collect::<Result<Vec<_>, _>>()?;
                unpack::adopt(root.as_fd(), &implied, &lower).map_err(|error| unpack_error(&blob, error))?;
                let number = store.commit_layer(staging, &facts, lease)?;
                reporter.report(Status::PullComplete);
                Ok(number)
            }
        }
    }
}

/// An error of unpacking `layer`; a full disk is one of its own.
pub(crate) fn unpack_error(layer: &Digest, error: UnpackError) -> PullError {
    match error.into_no_space() {
        Ok(source) => PullError::NoSpace(source),
        Err(source) => PullError::Unpack { layer: layer.clone(), source },
    }
}
