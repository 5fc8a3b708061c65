//! Pushing: from an image of the store to a repository.
//!
//! Blobs the registry has, or another repository of it has, are not sent. The others are made again from tree and
//! recipe and packed anew, so their digests may differ from those they were pulled with; the configuration, and with
//! it the image's id, never does. If every layer is there as it was, the manifest is pushed byte for byte too.

#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flate2::write::GzEncoder;
use tokio::sync::mpsc;

use crate::archive::{ReplayError, replay_verified, synthesized};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::manifest::{Document, Layer, OCI_MANIFEST};
use crate::pull::Puller;
use crate::reference::Reference;
use crate::registry::{Credentials, Payload, RegistryError, Session};
use crate::store::{FindError, Image, LayerNumber, Staging, Store, StoreError};

/// Repositories of the registry that are asked for a blob before it is sent.
const MOUNTS_MAX: usize = 3;

/// Time between two reports of the same upload.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// One step of a push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushProgress {
    /// Short id of the layer.
    pub layer: String,
    /// What happens to it.
    pub status: PushStatus,
}

/// What happens to a layer. Texts are Docker's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PushStatus {
    /// "Preparing"
    Preparing,
    /// "Layer already exists"
    AlreadyExists,
    /// "Mounted from …"
    Mounted(String),
    /// "Pushing", with the bytes of its packed form.
    Pushing {
        /// Sent so far.
        current: u64,
        /// In all.
        total: u64,
    },
    /// "Pushed"
    Pushed,
}

/// What was pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Digest of the manifest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// A push failed. Blobs that were sent stay in the registry, unnamed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// No image has a name in that repository.
    #[error("An image does not exist locally with the tag: {0}")]
    NotFound(String),
    /// Images have other names in that repository.
    #[error("tag does not exist: {0}")]
    NoTag(String),
    /// A name with a digest cannot be pushed to.
    #[error("cannot push a digest reference")]
    ByDigest,
    /// The registry refuses.
    #[error("denied: {message}")]
    Denied {
        /// The registry's words.
        message: String,
    },
    /// The registry wants credentials, or others.
    #[error("unauthorized: {message}")]
    Unauthorized {
        /// The registry's words.
        message: String,
    },
    /// No answer, or none that can be used.
    #[error("cannot push to {host}")]
    Unreachable {
        /// The registry.
        host: String,
        /// What happened.
        #[source]
        source: RegistryError,
    },
    /// A layer's exact bytes were not kept, and the registry does not have them.
    #[error("layer {0} cannot be made again: its archive had several entries of one name")]
    Inexact(Digest),
    /// A layer is not what it was.
    #[error("layer {0} was damaged in the store")]
    Damaged(Digest),
    /// A layer cannot be packed.
    #[error("cannot pack a layer")]
    Pack(#[source] io::Error),
    /// The store cannot be read.
    #[error("cannot read the image store")]
    Store(#[from] StoreError),
}

/// A push under way.
struct Push<'a> {
    store: &'a Store,
    session: &'a Session,
    image: &'a Image,
    /// Repositories of the same registry the image is known in.
    siblings: Vec<String>,
    progress: Option<mpsc::Sender<PushProgress>>,
}

impl Puller {
    /// Pushes the image called `name` to where the name says. Dropping the future gives up.
    pub async fn push(
        &self,
        name: &Reference,
        auth: Option<Credentials>,
        progress: Option<mpsc::Sender<PushProgress>>,
    ) -> Result<Pushed, PushError> {
        let tag = name.tag().filter(|_| name.digest().is_none()).ok_or(PushError::ByDigest)?;
        let missing = || {
            if self.store().tags_of(&name.familiar_name()).is_empty() {
                PushError::NotFound(name.familiar_name())
            } else {
                PushError::NoTag(name.familiar())
            }
        };
        let image = self.store().find(&name.to_string()).map_err(|_: FindError| missing())?;
        let _lease = self.store().hold(&image).ok_or_else(missing)?;
        // Mirrors come first in the list; what is written goes to the registry itself.
        let session = self.client().sessions(name, auth).pop().ok_or_else(missing)?;
        let siblings = siblings(&image, name);
        let push = Push { store: self.store(), session: &session, image: &image, siblings, progress };
        let pushed = push.run(tag).await?;
        // From now on the image is also known by what it is called there.
        self.store().add_repo_digest(&image.id, &name.with_digest(pushed.digest.clone()))?;
        Ok(pushed)
    }
}

/// Other repositories of the registry `name` is in that have the image.
fn siblings(image: &Image, name: &Reference) -> Vec<String> {
    let known = image.repo_digests.iter().filter_map(|text| text.parse::<Reference>().ok());
    let mut all: Vec<String> = known
        .filter(|other| other.registry() == name.registry() && other.repository() != name.repository())
        .map(|other| other.repository().to_owned())
        .collect();
    all.dedup();
    all.truncate(MOUNTS_MAX);
    all
}

impl Push<'_> {
    async fn run(self, tag: &str) -> Result<Pushed, PushError> {
        let blobs = self.store.blobs(self.image)?;
        let original = Document::parse(&blobs.manifest.1, None).ok();
        let listed = match &original {
            Some(Document::Manifest(manifest)) => manifest.layers.clone(),
            _ => Vec::new(),
        };
        let mut descriptors = Vec::new();
        let mut same = listed.len() == self.image.layers.len();
        for (number, layer) in self.image.layers.iter().enumerate() {
            let diff_id = self.image.config.rootfs.diff_ids.get(number).unwrap_or(&self.image.id);
            let descriptor = self.layer(*layer, diff_id, listed.get(number)).await?;
            same &= descriptor.is_none();
            descriptors.push((descriptor, listed.get(number)));
        }
        let config = Payload::Bytes(Bytes::from(blobs.config.1.clone()));
        if self.call(self.session.has_blob(&blobs.config.0).await)?.is_none() {
            self.call(self.session.upload(&blobs.config.0, &config).await)?;
        }
        let (digest, bytes, media_type) = if same {
            let media_type = media_type(&blobs.manifest.1);
            (blobs.manifest.0, blobs.manifest.1, media_type)
        } else {
            let lines: Vec<String> =
                descriptors.into_iter().filter_map(|(new, old)| new.or(old.map(layer_line))).collect();
            let (digest, bytes) = synthesized(&blobs.config, &lines);
            (digest, bytes, OCI_MANIFEST.to_owned())
        };
        let size = bytes.len() as u64;
        self.call(self.session.put_manifest(tag, &media_type, bytes).await)?;
        Ok(Pushed { digest, size })
    }

    /// Sees to it that the registry has the layer. Returns its descriptor if that is not the one it came with.
    async fn layer(
        &self,
        number: LayerNumber,
        diff_id: &Digest,
        listed: Option<&Layer>,
    ) -> Result<Option<String>, PushError> {
        let source = self.store.layer_source(number)?;
        let report = |status| report_to(self.progress.as_ref(), diff_id, status);
        report(PushStatus::Preparing);
        if let Some(layer) = listed {
            if self.call(self.session.has_blob(&layer.digest).await)? == Some(layer.size) {
                report(PushStatus::AlreadyExists);
                return Ok(None);
            }
            for sibling in &self.siblings {
                if self.call(self.session.mount(&layer.digest, sibling).await)? {
                    report(PushStatus::Mounted(sibling.clone()));
                    return Ok(None);
                }
            }
        }
        let Some(source) = source else {
            let digest = listed.map_or_else(|| self.image.id.clone(), |layer| layer.digest.clone());
            return Err(PushError::Inexact(digest));
        };
        let staging = self.store.stage()?;
        let packing = tokio::task::spawn_blocking(move || {
            let packed = pack(source, &staging.tree().join("layer"));
            (staging, packed)
        });
        let (staging, packed) = packing.await.map_err(|error| PushError::Pack(io::Error::other(error)))?;
        let (digest, size) = packed?;
        self.send(&staging, &digest, size, diff_id).await?;
        let (digest_text, media) = (digest.to_string(), "application/vnd.oci.image.layer.v1.tar+gzip");
        Ok(Some(format!(r#"{{"mediaType":"{media}","digest":"{digest_text}","size":{size}}}"#)))
    }

    async fn send(
        &self,
        staging: &Staging,
        digest: &Digest,
        size: u64,
        diff_id: &Digest,
    ) -> Result<(), PushError> {
        let report = |status| report_to(self.progress.as_ref(), diff_id, status);
        if self.call(self.session.has_blob(digest).await)? == Some(size) {
            report(PushStatus::AlreadyExists);
            return Ok(());
        }
        report(PushStatus::Pushing { current: 0, total: size });
        let (progress, id) = (self.progress.clone(), diff_id.clone());
        let told = Mutex::new(Instant::now());
        let watch = move |current| {
            let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
            if told.elapsed() >= REPORT_EVERY {
                *told = Instant::now();
                report_to(progress.as_ref(), &id, PushStatus::Pushing { current, total: size });
            }
        };
        let payload = Payload::File(staging.tree().join("layer"), size, Arc::new(watch));
        self.call(self.session.upload(digest, &payload).await)?;
        report(PushStatus::Pushed);
        Ok(())
    }

    fn call<T>(&self, result: Result<T, RegistryError>) -> Result<T, PushError> {
        result.map_err(|error| match error {
            RegistryError::Denied { message } => PushError::Denied { message },
            RegistryError::Unauthorized { message } => PushError::Unauthorized { message },
            source => PushError::Unreachable { host: self.session.host(), source },
        })
    }
}

fn report_to(progress: Option<&mpsc::Sender<PushProgress>>, layer: &Digest, status: PushStatus) {
    if let Some(progress) = progress {
        // Full or closed: both mean that nobody looks at the moment.
        let _ = progress.try_send(PushProgress { layer: layer.short().to_owned(), status });
    }
}

/// Packs a layer into a file; returns digest and size of the packed form.
fn pack(source: crate::store::LayerSource, path: &Path) -> Result<(Digest, u64), PushError> {
    let file = std::fs::File::create_new(path).map_err(PushError::Pack)?;
    let out = Counted { out: file, hasher: Hasher::new(Algorithm::Sha256), size: 0 };
    let mut encoder = GzEncoder::new(out, flate2::Compression::default());
    replay_verified(source, &mut encoder).map_err(|error| match error {
        ReplayError::Damaged(digest) => PushError::Damaged(digest),
        ReplayError::Io(error) => PushError::Pack(error),
    })?;
    let out = encoder.finish().map_err(PushError::Pack)?;
    Ok((out.hasher.finish(), out.size))
}

/// Hashes and counts what is written.
struct Counted<W> {
    out: W,
    hasher: Hasher,
    size: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hasher.update(bytes.get(..count).unwrap_or(bytes));
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A layer's descriptor as JSON.
pub(crate) fn layer_line(layer: &Layer) -> String {
    let suffix = match layer.compression {
        crate::manifest::Compression::None => "",
        crate::manifest::Compression::Gzip => "+gzip",
        crate::manifest::Compression::Zstd => "+zstd",
    };
    format!(
        r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar{suffix}","digest":"{}","size":{}}}"#,
        layer.digest, layer.size
    )
}

/// The media type a manifest says it has; OCI's if it says none.
fn media_type(manifest: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        media_type: Option<String>,
    }
    let typed = serde_json::from_slice::<Typed>(manifest).ok();
    typed.and_then(|typed| typed.media_type).unwrap_or_else(|| OCI_MANIFEST.to_owned())
}
