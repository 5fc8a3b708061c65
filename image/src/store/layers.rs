//! Layers on disk: staged while being unpacked, then committed by one rename, found again by blob or diff id.
//!
//! A layer is shared between images by what was *computed* while unpacking it, never by what a configuration
//! claims. A layer whose tree depends on its place in an image (it left out parent directories, or it is the lowest
//! and has whiteouts) is shared only where its whole chain is the same.

use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::files::{self, Sync};
use super::{State, Store, StoreError};
use crate::digest::Digest;

/// Name of a layer's directory: short, because the kernel limits the text of an overlay mount to one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LayerNumber(pub(crate) u64);

/// What unpacking found out about a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerFacts {
    /// Digest of the uncompressed tar stream.
    pub diff_id: Digest,
    /// Digest of the bytes as transferred; `None` when it came in plain from an archive.
    pub blob: Option<Digest>,
    /// Chain id, only if the tree depends on its place in the image.
    pub chain: Option<Digest>,
    /// Bytes of file content.
    pub size: u64,
    /// The layer hides something of lower ones.
    pub whiteouts: bool,
    /// The layer hides everything below it.
    pub opaque_root: bool,
    /// Bytes of the tar stream, if the recipe in the staging directory makes it again.
    pub tar_size: Option<u64>,
}

/// `layer.json`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Layer {
    pub(super) format: u32,
    pub(super) diff_id: Digest,
    pub(super) chain: Option<Digest>,
    pub(super) blobs: Vec<Digest>,
    pub(super) size: u64,
    pub(super) whiteouts: bool,
    pub(super) opaque_root: bool,
    pub(super) tar_size: Option<u64>,
    /// Boot in which it was written; decides whether a layer without `complete` can be trusted.
    pub(super) boot: String,
}

/// Blobs remembered per layer; beyond that the oldest is forgotten, which only costs a download.
const BLOBS_PER_LAYER_MAX: usize = 16;

/// Format number of `layer.json`.
pub(super) const LAYER_FORMAT: u32 = 1;

/// A layer as its tar stream can be made again.
#[derive(Debug)]
pub(crate) struct LayerSource {
    pub(crate) diff_id: Digest,
    /// Bytes of the stream.
    pub(crate) size: u64,
    pub(crate) recipe: fs::File,
    pub(crate) tree: fs::File,
}

/// Keeps layers from being removed while it lives.
#[derive(Debug)]
pub struct Lease {
    store: Store,
    layers: Vec<LayerNumber>,
}

impl Lease {
    /// Adds a layer the lease's holder now relies on.
    pub(super) fn add(&mut self, state: &mut State, layer: LayerNumber) {
        *state.pins.entry(layer).or_default() += 1;
        self.layers.push(layer);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.store.state();
        for layer in self.layers.drain(..) {
            if let Some(count) = state.pins.get_mut(&layer) {
                *count -= 1;
                if *count == 0 {
                    state.pins.remove(&layer);
                }
            }
        }
    }
}

/// A directory for a layer being unpacked; deleted unless committed.
#[derive(Debug)]
pub struct Staging {
    store: Store,
    number: LayerNumber,
    committed: bool,
}

impl Staging {
    /// The layer's future root directory.
    pub fn tree(&self) -> PathBuf {
        self.directory().join("fs")
    }

    /// The file for the layer's recipe, new and empty.
    pub fn recipe(&self) -> Result<fs::File, StoreError> {
        let path = self.directory().join("recipe");
        fs::File::create_new(&path).map_err(StoreError::io("create", &path))
    }

    fn directory(&self) -> PathBuf {
        self.store.inner.root.join("staging").join(self.number.0.to_string())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        // Deleting a large tree takes time that whoever drops this may not have. What can be neither moved nor
        // deleted now is deleted when the store opens again.
        let trash = self.store.trash_directory(self.number);
        if fs::rename(self.directory(), trash).is_ok() {
            self.store.inner.upkeep.empty_trash();
        } else {
            let _ = fs::remove_dir_all(self.directory());
        }
    }
}

impl Store {
    /// A lease that holds nothing yet.
    pub fn lease(&self) -> Lease {
        Lease { store: self.clone(), layers: Vec::new() }
    }

    /// An empty directory to unpack a layer into.
    pub fn stage(&self) -> Result<Staging, StoreError> {
        let number = {
            let mut state = self.state();
            state.next += 1;
            LayerNumber(state.next)
        };
        let staging = Staging { store: self.clone(), number, committed: false };
        let tree = staging.tree();
        fs::create_dir_all(&tree).map_err(StoreError::io("create", &tree))?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&tree, mode).map_err(StoreError::io("set mode of", &tree))?;
        Ok(staging)
    }

    /// Finds a layer that came from `blob`, has `diff_id` and fits at the place `chain`, and leases it.
    pub fn find_layer(&self, wanted: &Place<'_>, lease: &mut Lease) -> Option<LayerNumber> {
        let mut state = self.state();
        let number = state.layers.iter().find(|(_, layer)| wanted.fits(layer)).map(|(number, _)| *number)?;
        lease.add(&mut state, number);
        Some(number)
    }

    /// Makes a staged layer one of the store's, and leases it. An equal layer that is already there wins.
    pub fn commit_layer(
        &self,
        mut staging: Staging,
        facts: &LayerFacts,
        lease: &mut Lease,
    ) -> Result<LayerNumber, StoreError> {
        let mut state = self.state();
        let same = |layer: &Layer| {
            layer.diff_id == facts.diff_id && layer.chain == facts.chain && layer.whiteouts == facts.whiteouts
        };
        if let Some(number) = state.layers.iter().find(|(_, layer)| same(layer)).map(|(number, _)| *number) {
            self.remember_blob(&mut state, number, facts.blob.as_ref())?;
            lease.add(&mut state, number);
            return Ok(number);
        }
        let layer = Layer {
            format: LAYER_FORMAT,
            diff_id: facts.diff_id.clone(),
            chain: facts.chain.clone(),
            blobs: facts.blob.iter().cloned().collect(),
            size: facts.size,
            whiteouts: facts.whiteouts,
            opaque_root: facts.opaque_root,
            tar_size: facts.tar_size,
            boot: self.inner.boot.clone(),
        };
        let from = staging.directory();
        if facts.tar_size.is_none() {
            files::remove(&from.join("recipe"))?;
        }
        files::write_record(&from.join("layer.json"), &layer, Sync::Later)?;
        let number = staging.number;
        fs::rename(&from, self.layer_directory(number)).map_err(StoreError::io("commit", &from))?;
        staging.committed = true;
        state.layers.insert(number, layer);
        lease.add(&mut state, number);
        Ok(number)
    }

    /// The root directory of a layer.
    pub(crate) fn layer_tree(&self, number: LayerNumber) -> PathBuf {
        self.layer_directory(number).join("fs")
    }

    /// What makes the layer's tar stream again; `None` when it cannot be made.
    pub(crate) fn layer_source(&self, number: LayerNumber) -> Result<Option<LayerSource>, StoreError> {
        let state = self.state();
        let Some(layer) = state.layers.get(&number) else { return Ok(None) };
        let Some(size) = layer.tar_size else { return Ok(None) };
        let path = self.layer_directory(number).join("recipe");
        let recipe = fs::File::open(&path).map_err(StoreError::io("open", &path))?;
        let path = self.layer_tree(number);
        let tree = fs::File::open(&path).map_err(StoreError::io("open", &path))?;
        Ok(Some(LayerSource { diff_id: layer.diff_id.clone(), size, recipe, tree }))
    }

    pub(super) fn layer_directory(&self, number: LayerNumber) -> PathBuf {
        self.inner.root.join("layers").join(number.0.to_string())
    }

    pub(super) fn trash_directory(&self, number: LayerNumber) -> PathBuf {
        self.inner.root.join("trash").join(number.0.to_string())
    }

    fn remember_blob(
        &self,
        state: &mut State,
        number: LayerNumber,
        blob: Option<&Digest>,
    ) -> Result<(), StoreError> {
        let Some((blob, layer)) = blob.zip(state.layers.get_mut(&number)) else { return Ok(()) };
        if layer.blobs.contains(blob) {
            return Ok(());
        }
        if layer.blobs.len() >= BLOBS_PER_LAYER_MAX {
            layer.blobs.remove(0);
        }
        layer.blobs.push(blob.clone());
        let path = self.layer_directory(number).join("layer.json");
        files::write_record(&path, layer, Sync::Later)
    }
}

/// Where in which image a layer is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Blob the manifest lists; `None` when only the diff id is known and was computed, as for archives.
    pub blob: Option<&'a Digest>,
    /// Diff id the configuration lists.
    pub diff_id: &'a Digest,
    /// Chain id up to and with this layer.
    pub chain: &'a Digest,
    /// It is the lowest layer.
    pub lowest: bool,
}

impl Place<'_> {
    fn fits(&self, layer: &Layer) -> bool {
        let known = self.blob.is_none_or(|blob| layer.blobs.contains(blob));
        let placed = match &layer.chain {
            Some(chain) => chain == self.chain,
            None => !(self.lowest && layer.whiteouts),
        };
        known && placed && layer.diff_id == *self.diff_id
    }
}

/// Marks a layer as durable. The caller has synced the file system since the layer was committed.
pub(super) fn mark_complete(directory: &std::path::Path) -> io::Result<()> {
    let path = directory.join("complete");
    fs::File::create(&path)?.sync_all()?;
    files::sync_parent(&path)
}
