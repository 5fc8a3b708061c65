//! Saving: from images of the store to an archive that is an OCI layout and Docker's older format at once.
//!
//! Configurations are written byte for byte, so an image keeps its id. Layers are written as plain tar, made again
//! from tree and recipe; manifests are written anew to say so.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;

use serde::Serialize;

use super::load::synthesized;
use crate::digest::{Digest, Hasher};
use crate::manifest::{OCI_LAYER, OCI_MANIFEST};
use crate::reference::Reference;
use crate::store::{FindError, Image, LayerSource, Lease, Store, StoreError};
use crate::unpack;

/// Bytes of a tar block.
const BLOCK: usize = 512;

/// An archive cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// No image goes by a name.
    #[error(transparent)]
    Find(#[from] FindError),
    /// A layer has entries that replaced each other, and its exact bytes were not kept.
    #[error("layer {0} cannot be written: its archive had several entries of one name")]
    Inexact(Digest),
    /// What was made again is not what was unpacked. The archive written so far is worthless.
    #[error("layer {0} was damaged in the store")]
    Damaged(Digest),
    /// The store cannot be read.
    #[error("cannot read the image store")]
    Store(#[from] StoreError),
    /// The archive cannot be written.
    #[error("cannot write the archive")]
    Write(#[from] io::Error),
}

/// An image that will be written.
struct Chosen {
    image: Image,
    names: Vec<Reference>,
    config: Vec<u8>,
    manifest: (Digest, Vec<u8>),
    layers: Vec<LayerSource>,
    /// Keeps the layers while they are read.
    _lease: Lease,
}

/// A line of Docker's `manifest.json`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

/// Writes the images that go by `names`. Blocks.
///
/// Nothing is written before all images are found.
pub fn save(store: &Store, names: &[String], out: impl Write) -> Result<(), SaveError> {
    Selection::choose(store, names)?.write(out)
}

/// Images that were found and are kept until they are written.
pub struct Selection {
    chosen: Vec<Chosen>,
}

impl Selection {
    /// Finds the images that go by `names`.
    ///
    /// A name is kept in the archive; a name without a tag stands for all tags of the repository; an id brings no
    /// name along.
    pub fn choose(store: &Store, names: &[String]) -> Result<Self, SaveError> {
        let mut chosen: Vec<Chosen> = Vec::new();
        for text in names {
            let tags = store.tags_of(text);
            if tags.is_empty() {
                let image = store.find(text)?;
                let name = text.parse().ok().filter(|name| image.names.contains(name));
                choose(store, &mut chosen, image, name)?;
            }
            for name in tags {
                choose(store, &mut chosen, store.find(&name.to_string())?, Some(name))?;
            }
        }
        Ok(Self { chosen })
    }

    /// The images, each once.
    pub fn images(&self) -> impl Iterator<Item = &Image> {
        self.chosen.iter().map(|one| &one.image)
    }

    /// Writes the archive.
    pub fn write(mut self, out: impl Write) -> Result<(), SaveError> {
        let mut archive = Archive { out, written: BTreeSet::new() };
        for one in &mut self.chosen {
            for layer in std::mem::take(&mut one.layers) {
                archive.layer(layer)?;
            }
            archive.blob(&one.image.id, &one.config)?;
            archive.blob(&one.manifest.0, &one.manifest.1)?;
        }
        archive.file("index.json", &index(&self.chosen)?)?;
        archive.file("manifest.json", &docker_manifest(&self.chosen)?)?;
        archive.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        archive.file("repositories", &repositories(&self.chosen)?)?;
        archive.out.write_all(&[0; 2 * BLOCK])?;
        archive.out.flush()?;
        Ok(())
    }
}

fn choose(
    store: &Store,
    chosen: &mut Vec<Chosen>,
    image: Image,
    name: Option<Reference>,
) -> Result<(), SaveError> {
    if let Some(known) = chosen.iter_mut().find(|known| known.image.id == image.id) {
        known.names.extend(name.filter(|name| !known.names.contains(name)));
        return Ok(());
    }
    let gone = || FindError::NotFound(image.id.to_string());
    let lease = store.hold(&image).ok_or_else(gone)?;
    let config = store.blobs(&image)?.config;
    let mut layers = Vec::with_capacity(image.layers.len());
    let mut descriptors = Vec::with_capacity(image.layers.len());
    for (number, diff_id) in image.layers.iter().zip(&image.config.rootfs.diff_ids) {
        let layer = store.layer_source(*number)?.ok_or_else(|| SaveError::Inexact(diff_id.clone()))?;
        descriptors
            .push(format!(r#"{{"mediaType":"{OCI_LAYER}","digest":"{diff_id}","size":{}}}"#, layer.size));
        layers.push(layer);
    }
    let manifest = synthesized(&config, &descriptors);
    let names = name.into_iter().collect();
    chosen.push(Chosen { image, names, config: config.1, manifest, layers, _lease: lease });
    Ok(())
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

fn index(chosen: &[Chosen]) -> io::Result<Vec<u8>> {
    let mut lines = Vec::new();
    for one in chosen {
        let (digest, bytes) = &one.manifest;
        let line = |annotations: BTreeMap<&str, String>| {
            serde_json::json!({
                "mediaType": OCI_MANIFEST, "digest": digest, "size": bytes.len(), "annotations": annotations,
            })
        };
        if one.names.is_empty() {
            lines.push(line(BTreeMap::new()));
        }
        for name in &one.names {
            let tag = name.tag().unwrap_or_default().to_owned();
            lines.push(line(BTreeMap::from([
                ("io.containerd.image.name", name.to_string()),
                ("org.opencontainers.image.ref.name", tag),
            ])));
        }
    }
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": crate::manifest::OCI_INDEX, "manifests": lines,
    });
    Ok(serde_json::to_vec(&index)?)
}

fn docker_manifest(chosen: &[Chosen]) -> io::Result<Vec<u8>> {
    let lines: Vec<DockerImage> = chosen
        .iter()
        .map(|one| DockerImage {
            config: blob_path(&one.image.id),
            repo_tags: one.names.iter().map(Reference::familiar).collect(),
            layers: one.image.config.rootfs.diff_ids.iter().map(blob_path).collect(),
        })
        .collect();
    Ok(serde_json::to_vec(&lines)?)
}

/// Docker's oldest index, which some programs still look at: repository, tag, and what it stands for.
fn repositories(chosen: &[Chosen]) -> io::Result<Vec<u8>> {
    let mut all: BTreeMap<String, BTreeMap<&str, &str>> = BTreeMap::new();
    for one in chosen {
        for name in &one.names {
            let tag = name.tag().unwrap_or_default();
            all.entry(name.familiar_name()).or_default().insert(tag, one.image.id.hex());
        }
    }
    Ok(serde_json::to_vec(&all)?)
}

/// The archive being written, and which blobs it has.
struct Archive<W> {
    out: W,
    written: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    fn blob(&mut self, digest: &Digest, bytes: &[u8]) -> Result<(), SaveError> {
        let path = blob_path(digest);
        if !self.written.insert(path.clone()) {
            return Ok(());
        }
        Ok(self.file(&path, bytes)?)
    }

    fn layer(&mut self, layer: LayerSource) -> Result<(), SaveError> {
        let path = blob_path(&layer.diff_id);
        if !self.written.insert(path.clone()) {
            return Ok(());
        }
        self.out.write_all(&header(&path, layer.size))?;
        replay_verified(layer, &mut self.out)
            .map_err(|error| match error {
                ReplayError::Damaged(digest) => SaveError::Damaged(digest),
                ReplayError::Io(error) => SaveError::Write(error),
            })
            .and_then(|size| Ok(self.pad(size)?))
    }

    fn file(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(&header(path, bytes.len() as u64))?;
        self.out.write_all(bytes)?;
        self.pad(bytes.len() as u64)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let rest = usize::try_from(size % BLOCK as u64).unwrap_or_default();
        let padding = [0; BLOCK];
        self.out.write_all(padding.get(..(BLOCK - rest) % BLOCK).unwrap_or_default())
    }
}

/// Making a layer's stream again failed.
pub(crate) enum ReplayError {
    /// The bytes are others than those that were unpacked.
    Damaged(Digest),
    /// Reading or writing failed.
    Io(io::Error),
}

/// Writes a layer's tar stream and compares its digest and length; returns the length.
pub(crate) fn replay_verified(layer: LayerSource, out: &mut impl Write) -> Result<u64, ReplayError> {
    let LayerSource { diff_id, size, recipe, tree } = layer;
    let mut sink = Hashed { out, hasher: diff_id.hasher(), length: 0, broken: None };
    let result = replay(recipe, &tree, &mut sink);
    if let Some(error) = sink.broken {
        return Err(ReplayError::Io(error));
    }
    // Everything else that can fail is reading what the store should have.
    if result.is_err() || sink.length != size || sink.hasher.finish() != diff_id {
        return Err(ReplayError::Damaged(diff_id));
    }
    Ok(size)
}

fn replay(recipe: File, tree: &File, out: &mut impl Write) -> io::Result<()> {
    unpack::replay(recipe, tree.as_fd(), out)
}

/// Hashes what is written, and keeps the error of the writer apart from those of the store.
struct Hashed<'a, W> {
    out: &'a mut W,
    hasher: Hasher,
    length: u64,
    broken: Option<io::Error>,
}

impl<W: Write> Write for Hashed<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.out.write_all(bytes) {
            Ok(()) => {
                self.hasher.update(bytes);
                self.length += bytes.len() as u64;
                Ok(bytes.len())
            }
            Err(error) => {
                let kind = error.kind();
                self.broken = Some(error);
                Err(kind.into())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The header of a plain file of root, without a time so that archives of the same images are the same.
fn header(path: &str, size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, value: &[u8]| {
        for (slot, byte) in block.iter_mut().skip(at).zip(value) {
            *slot = *byte;
        }
    };
    put(0, path.as_bytes());
    put(100, b"0000644\x000000000\x000000000\0");
    let octal = format!("{size:011o}\0");
    if octal.len() == 12 {
        put(124, octal.as_bytes());
    } else {
        // Base 256, for layers of 8 GiB and more.
        put(128, &size.to_be_bytes());
        put(124, &[0x80]);
    }
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    for (slot, byte) in block.iter_mut().skip(148).zip(format!("{sum:06o}\0 ").bytes()) {
        *slot = byte;
    }
    block
}
