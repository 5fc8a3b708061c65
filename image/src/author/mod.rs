//! Images made here: of a container's changes, or of a file system somebody hands in.
//!
//! The new layer goes the way of any other, through the strict reader and into a tree by descriptor, so an image made
//! here can be saved, pushed and shared like one that was pulled. Its configuration keeps all the parent's says that
//! is not replaced.

mod change;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{BufReader, Read};

use serde_json::{Map, Value};

pub use change::ChangeError;

use crate::archive::synthesized;
use crate::config::{History, ImageConfig, RunConfig, chain_ids};
use crate::digest::Digest;
use crate::manifest::{Document, LAYERS_MAX, OCI_LAYER};
use crate::platform::Platform;
use crate::pull::{PullError, Reporter, Verified, unpack_error};
use crate::push::layer_line;
use crate::store::{Image, ImageBlobs, LayerNumber, Lease, Store, StoreError};
use crate::unpack;

/// What an image made here says of itself.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Defaults for containers.
    pub run: RunConfig,
    /// What it is for, where no parent says so.
    pub platform: Platform,
    /// Who made it.
    pub author: String,
    /// A line about why.
    pub comment: String,
    /// The command that made the layer.
    pub created_by: String,
}

/// An image cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorError {
    /// The layer is refused for a reason that would end a pull too.
    #[error(transparent)]
    Layer(#[from] PullError),
    /// The parent has as many layers as an image may have.
    #[error("an image cannot have more than {LAYERS_MAX} layers")]
    TooManyLayers,
    /// The parent is gone.
    #[error("No such image: {0}")]
    NoParent(Digest),
    /// The configuration cannot be made.
    #[error("cannot write the image's configuration")]
    Config(#[source] serde_json::Error),
    /// The store's files could not be written.
    #[error("cannot store image")]
    Store(#[from] StoreError),
}

/// A layer made here, kept while this lives.
pub struct NewLayer {
    number: LayerNumber,
    diff_id: Digest,
    size: u64,
    _leases: Vec<Lease>,
}

impl Store {
    /// Unpacks a tar stream, packed in any way, as a layer above those of `parent`. Blocks.
    pub fn make_layer(&self, parent: Option<&Image>, tar: impl Read) -> Result<NewLayer, AuthorError> {
        let below = parent.map_or(&[][..], |parent| &parent.layers);
        if below.len() >= LAYERS_MAX {
            return Err(AuthorError::TooManyLayers);
        }
        let held = parent.map(|parent| self.hold_parent(parent)).transpose()?;
        let staging = self.stage()?;
        let recipe = staging.recipe()?;
        let tree = staging.tree();
        let failed = |source| StoreError::Io { action: "open", path: tree.clone(), source };
        let root = File::open(&tree).map_err(failed)?;
        let lowest = below.is_empty();
        let unpacked = unpack::unpack_any(BufReader::new(tar), root.into(), Some(recipe), lowest);
        let (diff_id, outcome) = unpacked.map_err(|error| unpack_error(&Digest::of(b""), error))?;
        let size = outcome.length;
        let mut all: Vec<Digest> =
            parent.map(|parent| parent.config.rootfs.diff_ids.clone()).unwrap_or_default();
        all.push(diff_id.clone());
        let chain = chain_ids(&all).pop().unwrap_or_else(|| diff_id.clone());
        // Unpacked, the blob is its own tar stream.
        let verified =
            Verified { staging, diff_id: diff_id.clone(), outcome, blob: diff_id.clone(), chain, lowest };
        let fetched = verified.commit(self, self.lease(), Reporter::new(None))?;
        let mut lease = self.lease();
        let mut leases: Vec<Lease> = held.into_iter().collect();
        let number = fetched.finish(self, below, &mut lease, &mut leases)?;
        leases.push(lease);
        Ok(NewLayer { number, diff_id, size, _leases: leases })
    }

    /// Records an image of `parent`'s layers and a new one, without a name. Blocks.
    pub fn make_image(
        &self,
        parent: Option<&Image>,
        layer: Option<&NewLayer>,
        draft: &Draft,
    ) -> Result<Image, AuthorError> {
        let _held = parent.map(|parent| self.hold_parent(parent)).transpose()?;
        let mut layers = parent.map(|parent| parent.layers.clone()).unwrap_or_default();
        layers.extend(layer.map(|layer| layer.number));
        let bytes = self.configuration(parent, layer, draft)?;
        let config = (Digest::of(&bytes), bytes);
        let unusable = |source| PullError::Config { digest: config.0.clone(), source };
        let parsed = ImageConfig::parse(&config.1, layers.len()).map_err(unusable)?;
        let mut lines = parent.map(|parent| self.layer_lines(parent)).transpose()?.unwrap_or_default();
        lines.extend(layer.map(|layer| plain_line(&layer.diff_id, layer.size)));
        let manifest = synthesized(&config, &lines);
        let top = manifest.0.clone();
        let blobs = ImageBlobs { manifest, config, index: None };
        let (image, _) = self.record_image(&blobs, parsed, layers, None, &top)?;
        Ok(image)
    }

    fn hold_parent(&self, parent: &Image) -> Result<Lease, AuthorError> {
        self.hold(parent).ok_or_else(|| AuthorError::NoParent(parent.id.clone()))
    }

    /// The parent's configuration with what is new.
    fn configuration(
        &self,
        parent: Option<&Image>,
        layer: Option<&NewLayer>,
        draft: &Draft,
    ) -> Result<Vec<u8>, AuthorError> {
        let mut config: Map<String, Value> = match parent {
            Some(parent) => {
                serde_json::from_slice(&self.blobs(parent)?.config.1).map_err(AuthorError::Config)?
            }
            None => Map::new(),
        };
        // What older engines wrote about the container an image was made of; it would be wrong now.
        for key in ["id", "parent", "container", "container_config", "docker_version", "throwaway"] {
            config.remove(key);
        }
        let platform = &draft.platform;
        config.entry("architecture").or_insert_with(|| platform.architecture.clone().into());
        config.entry("os").or_insert_with(|| platform.os.clone().into());
        if let (None, Some(variant)) = (parent, &platform.variant) {
            config.insert("variant".into(), variant.clone().into());
        }
        let created = jiff::Timestamp::now().to_string();
        config.insert("created".into(), created.clone().into());
        config.insert("author".into(), draft.author.clone().into());
        let run = serde_json::to_value(&draft.run).map_err(AuthorError::Config)?;
        config.insert("config".into(), without_empties(run));
        let mut diff_ids: Vec<Digest> =
            parent.map(|parent| parent.config.rootfs.diff_ids.clone()).unwrap_or_default();
        diff_ids.extend(layer.map(|layer| layer.diff_id.clone()));
        config.insert("rootfs".into(), serde_json::json!({ "type": "layers", "diff_ids": diff_ids }));
        let mut history = parent.map(|parent| parent.config.history.clone()).unwrap_or_default();
        // Lines and layers are counted off against each other, so a parent without lines gets some.
        let told = history.iter().filter(|line| !line.empty_layer).count();
        let below = parent.map_or(0, |parent| parent.layers.len());
        let unknown = History {
            created: parent.map(|parent| parent.created.clone()).unwrap_or_default(),
            ..History::default()
        };
        history.extend(std::iter::repeat_n(unknown, below.saturating_sub(told)));
        history.push(History {
            created,
            created_by: draft.created_by.clone(),
            author: draft.author.clone(),
            comment: draft.comment.clone(),
            empty_layer: layer.is_none(),
        });
        config.insert("history".into(), serde_json::to_value(history).map_err(AuthorError::Config)?);
        serde_json::to_vec(&config).map_err(AuthorError::Config)
    }

    /// Descriptors of an image's layers as JSON, as its manifest has them.
    fn layer_lines(&self, image: &Image) -> Result<Vec<String>, AuthorError> {
        let listed = Document::parse(&self.blobs(image)?.manifest.1, None).ok();
        if let Some(Document::Manifest(manifest)) = listed
            && manifest.layers.len() == image.layers.len()
        {
            return Ok(manifest.layers.iter().map(layer_line).collect());
        }
        let numbers = image.layers.iter().zip(&image.config.rootfs.diff_ids);
        let line = |(number, diff_id): (&LayerNumber, &Digest)| {
            let size = self.layer_source(*number)?.map_or(0, |source| source.size);
            Ok(plain_line(diff_id, size))
        };
        numbers.map(line).collect()
    }
}

fn plain_line(diff_id: &Digest, size: u64) -> String {
    format!(r#"{{"mediaType":"{OCI_LAYER}","digest":"{diff_id}","size":{size}}}"#)
}

/// An object without the fields that say nothing.
fn without_empties(value: Value) -> Value {
    let says_something = |value: &Value| match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    };
    match value {
        Value::Object(map) => map.into_iter().filter(|(_, value)| says_something(value)).collect(),
        other => other,
    }
}
