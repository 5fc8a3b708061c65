//! Loading: from an archive to images in the store.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};

use serde::Deserialize;

use super::spool::{self, Spool, blob_name, layer_error};
use super::{LoadError, Loaded};
use crate::config::{ImageConfig, chain_ids};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::manifest::{
    self, CONFIG_SIZE_MAX, Compression, Document, INDEX_ENTRIES_MAX, LAYERS_MAX, MANIFEST_SIZE_MAX,
    OCI_CONFIG, OCI_INDEX, OCI_MANIFEST,
};
use crate::platform::Platform;
use crate::pull::{Fetched, PullError, Reporter, Verified};
use crate::reference::Reference;
use crate::registry::ContentError;
use crate::store::{ImageBlobs, Place, Store};
use crate::unpack::{self, Expected, UnpackError};

/// `index.json` of an OCI layout.
#[derive(Deserialize)]
struct Index {
    manifests: Vec<IndexEntry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct IndexEntry {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// A line of Docker's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// A layer in the spool.
struct LayerFile {
    file: File,
    size: u64,
    compression: Compression,
    /// What the manifest calls it, where there is one.
    digest: Option<Digest>,
}

/// An image of the archive before its layers are unpacked.
struct Candidate {
    config: (Digest, Vec<u8>),
    parsed: ImageConfig,
    manifest: Option<(Digest, Vec<u8>)>,
    layers: Vec<LayerFile>,
    names: Vec<Reference>,
}

/// What a load tells while it runs.
#[derive(Clone, Debug)]
pub enum Step<'a> {
    /// A layer that is not in the store yet is unpacked.
    Layer {
        /// Digest of its tar stream.
        diff_id: &'a Digest,
        /// Bytes read of it.
        current: u64,
        /// Bytes it has in the archive.
        total: u64,
    },
    /// An image is in the store.
    Image(&'a Loaded),
}

/// Where steps go.
type Tell<'a> = &'a mut dyn FnMut(Step<'_>);

/// Bytes of a layer between two steps about it.
const STEP_BYTES: u64 = 1 << 20;

/// Loads every image of an archive, packed or plain. Blocks.
///
/// An archive that is an OCI layout is read as one, even if it has Docker's older files too; where an entry of it
/// is itself an index, the image for `platform` is taken.
pub fn load(store: &Store, reader: impl Read, platform: &Platform) -> Result<Vec<Loaded>, LoadError> {
    load_telling(store, reader, platform, &mut |_| {})
}

/// As [`load`], telling of every step.
pub fn load_telling(
    store: &Store,
    reader: impl Read,
    platform: &Platform,
    tell: Tell<'_>,
) -> Result<Vec<Loaded>, LoadError> {
    let spool = Spool::read(store, reader)?;
    let candidates = if spool.has("oci-layout") && spool.has("index.json") {
        oci(&spool, platform)?
    } else if spool.has("manifest.json") {
        docker(&spool)?
    } else {
        return Err(LoadError::Layout { what: "it has neither index.json nor manifest.json" });
    };
    if candidates.is_empty() {
        return Err(LoadError::Layout { what: "it has no image" });
    }
    candidates
        .into_iter()
        .map(|candidate| {
            let loaded = candidate.store(store, tell)?;
            tell(Step::Image(&loaded));
            Ok(loaded)
        })
        .collect()
}

fn oci(spool: &Spool, platform: &Platform) -> Result<Vec<Candidate>, LoadError> {
    let bytes = spool.small("index.json", MANIFEST_SIZE_MAX)?;
    let index: Index =
        serde_json::from_slice(&bytes).map_err(|source| LoadError::Json { file: "index.json", source })?;
    if index.manifests.len() > INDEX_ENTRIES_MAX {
        return Err(LoadError::Layout { what: "it has too many images" });
    }
    let mut candidates: Vec<Candidate> = Vec::new();
    for entry in index.manifests {
        let name = entry.annotations.as_ref().and_then(annotated_name);
        let candidate = oci_image(spool, &entry, platform)?;
        // The same image under several names is one entry per name.
        match candidates.iter_mut().find(|known| known.manifest == candidate.manifest) {
            Some(known) => known.names.extend(name),
            None => candidates.push(Candidate { names: name.into_iter().collect(), ..candidate }),
        }
    }
    Ok(candidates)
}

/// The full name, where a program gave one. A bare tag names no repository.
fn annotated_name(annotations: &BTreeMap<String, String>) -> Option<Reference> {
    let full = annotations.get("io.containerd.image.name");
    let short =
        || annotations.get("org.opencontainers.image.ref.name").filter(|name| name.contains([':', '/']));
    full.or_else(short)?.parse().ok().filter(|name: &Reference| name.digest().is_none())
}

fn oci_image(spool: &Spool, entry: &IndexEntry, platform: &Platform) -> Result<Candidate, LoadError> {
    let mut digest = entry.digest.clone();
    let mut media_type =
        Some(entry.media_type.as_str()).filter(|text| [OCI_INDEX, OCI_MANIFEST].contains(text));
    for _ in 0..3 {
        let bytes = spool.blob(&digest, MANIFEST_SIZE_MAX)?;
        let unusable = |source| PullError::Manifest { digest: digest.clone(), source };
        match Document::parse(&bytes, media_type).map_err(unusable)? {
            Document::Manifest(parsed) => return oci_candidate(spool, (digest, bytes), &parsed),
            Document::Index(mut entries) => {
                // Archives often hold one platform of an index that lists many.
                entries.retain(|entry| spool.has_blob(&entry.digest));
                let chosen = manifest::choose(&entries, platform);
                let chosen = chosen.ok_or_else(|| PullError::NoPlatform { platform: platform.clone() })?;
                digest = chosen.digest.clone();
                media_type = None;
            }
        }
    }
    Err(LoadError::Layout { what: "it has too many indexes within indexes" })
}

fn oci_candidate(
    spool: &Spool,
    manifest: (Digest, Vec<u8>),
    parsed: &manifest::Manifest,
) -> Result<Candidate, LoadError> {
    let config = spool.blob(&parsed.config, CONFIG_SIZE_MAX)?;
    let mut layers = Vec::with_capacity(parsed.layers.len());
    for layer in &parsed.layers {
        let (file, got) = spool.open(&blob_name(&layer.digest))?;
        if got != layer.size {
            let (digest, wanted) = (layer.digest.clone(), layer.size);
            return Err(PullError::Content(ContentError::Size { digest, wanted, got }).into());
        }
        let (size, compression) = (layer.size, layer.compression);
        layers.push(LayerFile { file, size, compression, digest: Some(layer.digest.clone()) });
    }
    candidate((parsed.config.clone(), config), Some(manifest), layers, Vec::new())
}

fn docker(spool: &Spool) -> Result<Vec<Candidate>, LoadError> {
    let bytes = spool.small("manifest.json", MANIFEST_SIZE_MAX)?;
    let images: Vec<DockerImage> =
        serde_json::from_slice(&bytes).map_err(|source| LoadError::Json { file: "manifest.json", source })?;
    if images.len() > INDEX_ENTRIES_MAX {
        return Err(LoadError::Layout { what: "it has too many images" });
    }
    let mut candidates = Vec::with_capacity(images.len());
    for image in images {
        if image.layers.len() > LAYERS_MAX {
            return Err(LoadError::Layout { what: "an image of it has too many layers" });
        }
        let outside = LoadError::Layout { what: "it refers to a file outside" };
        let clean = |path: &str| spool::name(path.as_bytes());
        let config = spool.small(&clean(&image.config).ok_or(outside)?, CONFIG_SIZE_MAX)?;
        let mut layers = Vec::with_capacity(image.layers.len());
        for path in &image.layers {
            let outside = LoadError::Layout { what: "it refers to a file outside" };
            let name = clean(path).ok_or(outside)?;
            let (file, size) = spool.open(&name)?;
            let mut head = Vec::new();
            let sniffing = spool.open(&name)?.0.take(4).read_to_end(&mut head);
            sniffing.map_err(|error| LoadError::Archive(UnpackError::Read(error)))?;
            layers.push(LayerFile { file, size, compression: unpack::sniff(&head), digest: None });
        }
        let tags = image.repo_tags.unwrap_or_default();
        let names = tags.iter().filter_map(|tag| tag.parse().ok()).collect();
        candidates.push(candidate((Digest::of(&config), config), None, layers, names)?);
    }
    Ok(candidates)
}

fn candidate(
    config: (Digest, Vec<u8>),
    manifest: Option<(Digest, Vec<u8>)>,
    layers: Vec<LayerFile>,
    names: Vec<Reference>,
) -> Result<Candidate, LoadError> {
    let unusable = |source| PullError::Config { digest: config.0.clone(), source };
    let parsed = ImageConfig::parse(&config.1, layers.len()).map_err(unusable)?;
    Ok(Candidate { config, parsed, manifest, layers, names })
}

impl Candidate {
    fn store(self, store: &Store, tell: Tell<'_>) -> Result<Loaded, LoadError> {
        let chain = chain_ids(&self.parsed.rootfs.diff_ids);
        let mut lease = store.lease();
        let mut kept = Vec::new();
        let mut numbers = Vec::with_capacity(self.layers.len());
        let mut descriptors = Vec::with_capacity(self.layers.len());
        let places = self.parsed.rootfs.diff_ids.iter().zip(&chain);
        for (layer, (diff_id, chain)) in self.layers.into_iter().zip(places) {
            let lowest = numbers.is_empty();
            let (fetched, descriptor) = layer.fetch(store, diff_id, chain, lowest, tell)?;
            numbers.push(fetched.finish(store, &numbers, &mut lease, &mut kept)?);
            descriptors.push(descriptor);
        }
        let manifest = self.manifest.unwrap_or_else(|| synthesized(&self.config, &descriptors));
        let top = manifest.0.clone();
        let blobs = ImageBlobs { manifest, config: self.config, index: None };
        let (image, _) = store.record_image(&blobs, self.parsed, numbers, None, &top)?;
        let mut taken = Vec::new();
        for name in &self.names {
            let before = store.find(&name.to_string()).ok().filter(|before| before.id != image.id);
            taken.extend(before.map(|before| (name.clone(), before.id)));
            store.tag(&image.id, name)?;
        }
        let image = store.find(&image.id.to_string()).unwrap_or(image);
        Ok(Loaded { image, names: self.names, taken })
    }
}

impl LayerFile {
    /// The layer in the store, and its descriptor as JSON.
    fn fetch(
        self,
        store: &Store,
        diff_id: &Digest,
        chain: &Digest,
        lowest: bool,
        tell: Tell<'_>,
    ) -> Result<(Fetched, String), LoadError> {
        let mut lease = store.lease();
        if let Some(blob) = &self.digest {
            let place = Place { blob: Some(blob), diff_id, chain, lowest };
            if let Some(number) = store.find_layer(&place, &mut lease) {
                return Ok((Fetched::Committed { number, lease }, String::new()));
            }
        }
        let staging = store.stage()?;
        let recipe = staging.recipe()?;
        let tree = staging.tree();
        let failed = |source| crate::store::StoreError::Io { action: "open", path: tree.clone(), source };
        let root = File::open(&tree).map_err(failed)?;
        let algorithm = self.digest.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        let total = self.size;
        let mut told = |current| tell(Step::Layer { diff_id, current, total });
        let mut source = Hashing {
            source: BufReader::new(self.file),
            hasher: Hasher::new(algorithm),
            passed: 0,
            next: 0,
            tell: &mut told,
        };
        let expected = Expected { compression: self.compression, size: self.size, diff_id, lowest };
        let result = unpack::unpack(&mut source, root.into(), Some(recipe), &expected);
        let blob = source.finish().map_err(|error| LoadError::Archive(UnpackError::Read(error)))?;
        if let Some(wanted) = self.digest.filter(|wanted| *wanted != blob) {
            return Err(PullError::Content(ContentError::Digest { wanted, got: blob }).into());
        }
        let (got, outcome) = result.map_err(|error| layer_error(&blob, error))?;
        if got != *diff_id {
            let wanted = diff_id.clone();
            return Err(PullError::Content(ContentError::DiffId { layer: blob, wanted, got }).into());
        }
        let suffix = match self.compression {
            Compression::None => "",
            Compression::Gzip => "+gzip",
            Compression::Zstd => "+zstd",
        };
        let descriptor = format!(
            r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar{suffix}","digest":"{blob}","size":{}}}"#,
            self.size
        );
        let verified = Verified { staging, diff_id: got, outcome, blob, chain: chain.clone(), lowest };
        Ok((verified.commit(store, lease, Reporter::new(None))?, descriptor))
    }
}

/// A manifest for an image that came without one.
pub(crate) fn synthesized(config: &(Digest, Vec<u8>), layers: &[String]) -> (Digest, Vec<u8>) {
    let text = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{{"mediaType":"{OCI_CONFIG}","digest":"{}","size":{}}},"layers":[{}]}}"#,
        config.0,
        config.1.len(),
        layers.join(",")
    );
    (Digest::of(text.as_bytes()), text.into_bytes())
}

/// Hashes what is read, and tells how far it is.
struct Hashing<'a, R> {
    source: R,
    hasher: Hasher,
    passed: u64,
    /// Bytes at which the next step is told.
    next: u64,
    tell: &'a mut dyn FnMut(u64),
}

impl<R: BufRead> Hashing<'_, R> {
    /// Reads what is left, too.
    fn finish(mut self) -> io::Result<Digest> {
        loop {
            let count = self.fill_buf()?.len();
            if count == 0 {
                (self.tell)(self.passed);
                return Ok(self.hasher.finish());
            }
            self.consume(count);
        }
    }
}

impl<R: BufRead> BufRead for Hashing<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.source.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        // What was shown last is still in the buffer, so this cannot fail nor block.
        if let Ok(buffer) = self.source.fill_buf() {
            self.hasher.update(buffer.get(..count).unwrap_or(buffer));
        }
        self.source.consume(count);
        self.passed += count as u64;
        if self.passed >= self.next {
            self.next = self.passed + STEP_BYTES;
            (self.tell)(self.passed);
        }
    }
}

impl<R: BufRead> Read for Hashing<'_, R> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(target)?;
        self.consume(count);
        Ok(count)
    }
}
