//! Images in the store: what one consists of, how one is found by what users type, and its names.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::files::{self, Sync};
use super::layers::{LayerNumber, Lease};
use super::{State, Store, StoreError};
use crate::config::{History, ImageConfig};
use crate::digest::Digest;
use crate::manifest::{CONFIG_SIZE_MAX, MANIFEST_SIZE_MAX};
use crate::reference::Reference;

/// An image of the store, as it was when asked for.
#[derive(Clone, Debug)]
pub struct Image {
    /// Digest of the configuration.
    pub id: Digest,
    /// Digest of the manifest, of which the configuration and the layers are parts.
    pub manifest: Digest,
    /// Names with tags, sorted.
    pub names: Vec<Reference>,
    /// `repository@digest` in Docker's familiar form, for every place it was pulled from.
    pub repo_digests: Vec<String>,
    /// Bytes of file content over all layers.
    pub size: u64,
    /// RFC 3339 time as the author wrote it, empty when absent.
    pub created: String,
    /// Unix time in seconds at which it came into the store.
    pub stored_at: i64,
    /// The parsed configuration.
    pub config: Arc<ImageConfig>,
    /// Its layers in the store, lowest first.
    pub layers: Vec<LayerNumber>,
}

/// One step of an image's making.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What the author wrote about it.
    pub line: History,
    /// Bytes of file content it added.
    pub size: u64,
}

/// The exact bytes an image was made known by.
#[derive(Clone, Debug)]
pub struct ImageBlobs {
    /// The manifest and its digest.
    pub manifest: (Digest, Vec<u8>),
    /// The configuration and its digest.
    pub config: (Digest, Vec<u8>),
    /// The index through which the manifest was chosen.
    pub index: Option<(Digest, Vec<u8>)>,
}

/// `images/<hex>.json`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) format: u32,
    pub(super) id: Digest,
    pub(super) manifest: Digest,
    /// Every other blob that belongs to it: indexes.
    pub(super) blobs: Vec<Digest>,
    /// Canonical `registry/repository@digest`.
    pub(super) repo_digests: Vec<Reference>,
    pub(super) layers: Vec<LayerNumber>,
    pub(super) stored_at: i64,
}

/// `names/<hash>.json`
#[expect(clippy::struct_field_names, reason = "the field is the name the file is about")]
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Name {
    pub(super) format: u32,
    pub(super) name: Reference,
    pub(super) image: Digest,
}

/// A record with its configuration beside it.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) record: Record,
    pub(super) config: Arc<ImageConfig>,
}

/// Format number of `images/*.json` and `names/*.json`.
pub(super) const RECORD_FORMAT: u32 = 1;

/// Names and repository digests one image may have.
const NAMES_MAX: usize = 4096;

/// No image, or more than one, goes by the text.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// Nothing fits.
    #[error("No such image: {0}")]
    NotFound(String),
    /// An id prefix fits several images.
    #[error("{0} is ambiguous: several image ids start with it")]
    Ambiguous(String),
}

impl Store {
    /// All images, newest in the store first.
    pub fn list(&self) -> Vec<Image> {
        let state = self.state();
        let mut images: Vec<Image> = state.images.values().map(|entry| image(&state, entry)).collect();
        images.sort_by(|a, b| b.stored_at.cmp(&a.stored_at).then_with(|| a.id.cmp(&b.id)));
        images
    }

    /// The image a user means by `text`: id, `name@digest`, `name[:tag]`, or the start of an id.
    pub fn find(&self, text: &str) -> Result<Image, FindError> {
        let state = self.state();
        let id = lookup(&state, text)?;
        match state.images.get(&id) {
            Some(entry) => Ok(image(&state, entry)),
            None => Err(FindError::NotFound(text.to_owned())),
        }
    }

    /// All names in the repository that `text` is the bare name of; none when it has a tag or a digest, or is no name.
    pub fn tags_of(&self, text: &str) -> Vec<Reference> {
        let last = text.rsplit('/').next().unwrap_or(text);
        let Ok(bare) = text.parse::<Reference>() else { return Vec::new() };
        if last.contains([':', '@']) {
            return Vec::new();
        }
        let state = self.state();
        state.names.keys().filter(|name| name.name() == bare.name()).cloned().collect()
    }

    /// Gives `id` another name. The name is taken from the image that had it.
    pub fn tag(&self, id: &Digest, name: &Reference) -> Result<(), StoreError> {
        let mut state = self.state();
        if !state.images.contains_key(id) {
            return Err(StoreError::NoSuchImage(id.to_string()));
        }
        self.set_name(&mut state, id, name, Sync::Now)
    }

    /// Remembers that a registry knows the image as `name`, which has a digest. No error when the image is gone.
    pub(crate) fn add_repo_digest(&self, id: &Digest, name: &Reference) -> Result<(), StoreError> {
        let mut state = self.state();
        let Some(entry) = state.images.get_mut(id) else { return Ok(()) };
        if entry.record.repo_digests.contains(name) || entry.record.repo_digests.len() >= NAMES_MAX {
            return Ok(());
        }
        entry.record.repo_digests.push(name.clone());
        files::write_record(&self.image_path(id), &entry.record, Sync::Later)
    }

    /// Root directories of the image's layers, lowest first, in the format overlayfs expects of lower layers.
    ///
    /// Layers below one that hides everything are left out, since overlayfs has no mark for that on a root.
    pub fn layer_dirs(&self, image: &Image) -> Vec<PathBuf> {
        let state = self.state();
        let hides_all = |layer: &LayerNumber| state.layers.get(layer).is_some_and(|layer| layer.opaque_root);
        let first = image.layers.iter().rposition(hides_all).unwrap_or_default();
        image.layers.iter().skip(first).map(|layer| self.layer_tree(*layer)).collect()
    }

    /// How the image was made, newest step first, with the size each step added.
    pub fn history(&self, image: &Image) -> Vec<Step> {
        let state = self.state();
        let mut layers = image.layers.iter();
        let mut steps: Vec<Step> = Vec::new();
        for line in &image.config.history {
            let layer = if line.empty_layer { None } else { layers.next() };
            let size = layer.and_then(|layer| state.layers.get(layer)).map_or(0, |layer| layer.size);
            steps.push(Step { line: line.clone(), size });
        }
        // Layers the author wrote no line for.
        steps.extend(layers.map(|layer| Step {
            line: History::default(),
            size: state.layers.get(layer).map_or(0, |layer| layer.size),
        }));
        steps.reverse();
        steps
    }

    /// Keeps the image's layers while the lease lives; for the time between finding an image and having a container
    /// that the closure given to [`Store::remove`] knows about. `None` when the image is gone.
    pub fn hold(&self, image: &Image) -> Option<Lease> {
        let mut lease = self.lease();
        let mut state = self.state();
        let held = state.images.contains_key(&image.id)
            && image.layers.iter().all(|layer| state.layers.contains_key(layer));
        if held {
            for layer in &image.layers {
                lease.add(&mut state, *layer);
            }
        }
        drop(state);
        held.then_some(lease)
    }

    /// The exact bytes of the image's manifest and configuration.
    pub fn blobs(&self, image: &Image) -> Result<ImageBlobs, StoreError> {
        Ok(ImageBlobs {
            manifest: (image.manifest.clone(), self.blob(&image.manifest, MANIFEST_SIZE_MAX)?),
            config: (image.id.clone(), self.blob(&image.id, CONFIG_SIZE_MAX)?),
            index: None,
        })
    }

    /// Records an image whose layers are all committed and leased, under `name`'s tag and digest.
    ///
    /// `top` is the digest the registry gave for the name: of the index if there was one. Returns the image and
    /// whether the name meant something else before.
    pub fn record_image(
        &self,
        blobs: &ImageBlobs,
        config: ImageConfig,
        layers: Vec<LayerNumber>,
        name: Option<&Reference>,
        top: &Digest,
    ) -> Result<(Image, bool), StoreError> {
        let index = blobs.index.as_ref();
        let id = &blobs.config.0;
        // Locked before the blobs are written, so that no sweep takes them before the record names them.
        let mut state = self.state();
        for (digest, bytes) in [Some(&blobs.manifest), Some(&blobs.config), index].into_iter().flatten() {
            self.put_blob(digest, bytes)?;
        }
        let mut record = match state.images.get(id) {
            Some(entry) => entry.record.clone(),
            None => Record {
                format: RECORD_FORMAT,
                id: id.clone(),
                manifest: blobs.manifest.0.clone(),
                blobs: Vec::new(),
                repo_digests: Vec::new(),
                layers: layers.clone(),
                stored_at: jiff::Timestamp::now().as_second(),
            },
        };
        record.layers = layers;
        for digest in [&blobs.manifest.0].into_iter().chain(index.map(|(digest, _)| digest)) {
            if *digest != record.manifest && !record.blobs.contains(digest) {
                record.blobs.push(digest.clone());
            }
        }
        if let Some(name) = name {
            let by_digest = name.with_digest(top.clone());
            if !record.repo_digests.contains(&by_digest) && record.repo_digests.len() < NAMES_MAX {
                record.repo_digests.push(by_digest);
            }
        }
        let known = state.images.contains_key(id);
        files::write_record(&self.image_path(id), &record, Sync::Later)?;
        let tagged = name.filter(|name| name.tag().is_some() && name.digest().is_none());
        let mut changed = !known;
        if let Some(name) = tagged {
            changed |= state.names.get(name) != Some(id);
            if let Err(error) = self.set_name(&mut state, id, name, Sync::Later) {
                if !known {
                    // An image nobody can name must not stay. What cannot be removed now is nameless at the worst.
                    let _ = files::remove(&self.image_path(id));
                }
                return Err(error);
            }
        }
        state.images.insert(id.clone(), Entry { record, config: Arc::new(config) });
        let image = state.images.get(id).map(|entry| image(&state, entry));
        drop(state);
        self.inner.upkeep.make_durable();
        image.map(|image| (image, changed)).ok_or_else(|| StoreError::NoSuchImage(id.to_string()))
    }

    pub(super) fn image_path(&self, id: &Digest) -> PathBuf {
        self.inner.root.join("images").join(format!("{}.json", id.hex()))
    }

    pub(super) fn name_path(&self, name: &Reference) -> PathBuf {
        // A name may be longer than a file name may be, so the file goes by its hash.
        let hash = Digest::of(name.to_string().as_bytes());
        self.inner.root.join("names").join(format!("{}.json", hash.hex()))
    }

    pub(super) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.inner.root.join("blobs").join(digest.algorithm().name()).join(digest.hex())
    }

    /// Reads a blob and checks it against its digest.
    pub(super) fn blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, StoreError> {
        let path = self.blob_path(digest);
        let bytes = files::read(&path, limit).map_err(StoreError::io("read", &path))?;
        if digest.matches(&bytes) {
            return Ok(bytes);
        }
        Err(StoreError::io("verify", &path)(std::io::ErrorKind::InvalidData.into()))
    }

    /// A blob the store may already have from another tag or image, verified.
    pub(crate) fn known_blob(&self, digest: &Digest, limit: u64) -> Option<Vec<u8>> {
        self.blob(digest, limit).ok()
    }

    fn put_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
        // Written even when it exists: a copy damaged by a power cut is repaired by pulling again.
        files::write(&self.blob_path(digest), bytes, Sync::Later)
    }

    fn set_name(
        &self,
        state: &mut State,
        id: &Digest,
        name: &Reference,
        sync: Sync,
    ) -> Result<(), StoreError> {
        if state.names.get(name) == Some(id) {
            return Ok(());
        }
        let record = Name { format: RECORD_FORMAT, name: name.clone(), image: id.clone() };
        files::write_record(&self.name_path(name), &record, sync)?;
        state.names.insert(name.clone(), id.clone());
        Ok(())
    }
}

/// The id `text` stands for. Names win over the start of an id, as in Docker.
pub(super) fn lookup(state: &State, text: &str) -> Result<Digest, FindError> {
    let missing = || FindError::NotFound(text.chars().take(512).collect());
    if let Ok(digest) = text.parse::<Digest>() {
        return by_digest(state, &digest).ok_or_else(missing);
    }
    if let Ok(reference) = text.parse::<Reference>() {
        let found = match reference.digest() {
            Some(digest) => {
                let wanted = reference.with_digest(digest.clone());
                state.images.values().find(|entry| entry.record.repo_digests.contains(&wanted))
            }
            None => state.names.get(&reference).and_then(|id| state.images.get(id)),
        };
        if let Some(entry) = found {
            return Ok(entry.record.id.clone());
        }
    }
    let prefix = text.strip_prefix("sha256:").unwrap_or(text);
    if prefix.is_empty() || !prefix.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(missing());
    }
    let mut fits = state.images.keys().filter(|id| id.hex().starts_with(prefix));
    match (fits.next(), fits.next()) {
        (Some(id), None) => Ok(id.clone()),
        (None, _) => Err(missing()),
        (Some(_), Some(_)) => Err(FindError::Ambiguous(text.to_owned())),
    }
}

fn by_digest(state: &State, digest: &Digest) -> Option<Digest> {
    if state.images.contains_key(digest) {
        return Some(digest.clone());
    }
    let owns = |record: &Record| record.manifest == *digest || record.blobs.contains(digest);
    state.images.values().find(|entry| owns(&entry.record)).map(|entry| entry.record.id.clone())
}

pub(super) fn image(state: &State, entry: &Entry) -> Image {
    let record = &entry.record;
    let names =
        state.names.iter().filter(|(_, id)| **id == record.id).map(|(name, _)| name.clone()).collect();
    let size = record.layers.iter().filter_map(|layer| state.layers.get(layer)).map(|layer| layer.size).sum();
    Image {
        id: record.id.clone(),
        manifest: record.manifest.clone(),
        names,
        repo_digests: record.repo_digests.iter().map(Reference::familiar).collect(),
        size,
        created: entry.config.created.clone(),
        stored_at: record.stored_at,
        config: Arc::clone(&entry.config),
        layers: record.layers.clone(),
    }
}

/// Names by image, for code that goes through all of them.
pub(super) fn names_of(state: &State) -> BTreeMap<Digest, Vec<Reference>> {
    let mut names: BTreeMap<Digest, Vec<Reference>> = BTreeMap::new();
    for (name, id) in &state.names {
        names.entry(id.clone()).or_default().push(name.clone());
    }
    names
}
