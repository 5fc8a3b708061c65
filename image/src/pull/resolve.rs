//! From a name to one manifest and one configuration, both verified.

use super::error::PullError;
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::manifest::{self, CONFIG_SIZE_MAX, Document, Layer, MANIFEST_SIZE_MAX, Manifest, ManifestError};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::registry::{FetchError, Found, RegistryError, Session};
use crate::store::{Place, Store};

/// Indexes that may point to indexes.
const INDEX_DEPTH_MAX: u32 = 2;

/// A blob and its digest.
type Bytes = (Digest, Vec<u8>);

/// An image whose layers are still to come.
pub(super) struct Resolved {
    /// Digest behind the name: of the outermost document.
    pub(super) top: Digest,
    pub(super) manifest: Manifest,
    pub(super) manifest_bytes: Bytes,
    pub(super) index_bytes: Option<Bytes>,
    pub(super) config: ImageConfig,
    pub(super) config_bytes: Bytes,
    /// Where to fetch layers, the place that knew the manifest first.
    pub(super) sessions: Vec<Session>,
}

impl Resolved {
    /// Layers with the place each has in the image, lowest first.
    pub(super) fn places<'a>(&'a self, chain: &'a [Digest]) -> Vec<(&'a Layer, Place<'a>)> {
        let ids = self.config.rootfs.diff_ids.iter().zip(chain);
        let layers = self.manifest.layers.iter().zip(ids).enumerate();
        layers
            .map(|(number, (layer, (diff_id, chain)))| {
                (layer, Place { blob: Some(&layer.digest), diff_id, chain, lowest: number == 0 })
            })
            .collect()
    }
}

/// Finds out what `reference` means for `platform`.
pub(super) async fn resolve(
    store: &Store,
    sessions: &[Session],
    reference: &Reference,
    platform: &Platform,
) -> Result<Resolved, PullError> {
    let mut last = PullError::NotFound { reference: reference.familiar() };
    let mut places: Vec<Session> = Vec::new();
    for (number, session) in sessions.iter().enumerate() {
        if reference.digest().is_none() && !session.resolves_tags() {
            // Content whose digest is known may still come from there.
            places.push(session.clone());
            continue;
        }
        match session.manifest(&reference.selector()).await {
            Ok(found) => {
                places.extend(sessions.get(number..).unwrap_or_default().iter().cloned());
                return Resolver { store, places, reference, platform }.document(found).await;
            }
            // A mirror that does not know a name or does not answer says nothing about the registry itself.
            Err(error) => last = named(error, &session.host(), reference),
        }
    }
    Err(last)
}

struct Resolver<'a> {
    store: &'a Store,
    /// In the order in which they are asked.
    places: Vec<Session>,
    reference: &'a Reference,
    platform: &'a Platform,
}

impl Resolver<'_> {
    async fn document(self, found: Found) -> Result<Resolved, PullError> {
        let top = found.digest.clone();
        let mut index_bytes = None;
        let mut found = found;
        let mut depth = 0;
        let manifest = loop {
            let unusable = |source| PullError::Manifest { digest: found.digest.clone(), source };
            match Document::parse(&found.bytes, found.content_type.as_deref()).map_err(unusable)? {
                Document::Manifest(manifest) => break manifest,
                Document::Index(_) if depth >= INDEX_DEPTH_MAX => {
                    return Err(unusable(ManifestError::Limit { what: "too many indexes within indexes" }));
                }
                Document::Index(entries) => {
                    let entry =
                        manifest::choose(&entries, self.platform).ok_or_else(|| self.no_platform())?;
                    let next = self.manifest(&entry.digest).await?;
                    let outer = std::mem::replace(&mut found, next);
                    // Only the outermost has a name, so only that one is kept.
                    index_bytes.get_or_insert((outer.digest, outer.bytes));
                    depth += 1;
                }
            }
        };
        let config_bytes = self.config(&manifest).await?;
        let unusable = |source| PullError::Config { digest: manifest.config.clone(), source };
        let config = ImageConfig::parse(&config_bytes, manifest.layers.len()).map_err(unusable)?;
        if !config.os.is_empty() && config.os != self.platform.os {
            return Err(self.no_platform());
        }
        Ok(Resolved {
            top,
            manifest_bytes: (found.digest, found.bytes),
            index_bytes,
            config,
            config_bytes: (manifest.config.clone(), config_bytes),
            manifest,
            sessions: self.places,
        })
    }

    async fn manifest(&self, digest: &Digest) -> Result<Found, PullError> {
        if let Some(bytes) = self.store.known_blob(digest, MANIFEST_SIZE_MAX) {
            return Ok(Found { digest: digest.clone(), bytes, content_type: None });
        }
        let mut last = None;
        for place in &self.places {
            match place.manifest(&digest.to_string()).await {
                Ok(found) => return Ok(found),
                Err(error) => last = Some(named(error, &place.host(), self.reference)),
            }
        }
        Err(last.unwrap_or(PullError::Cancelled))
    }

    async fn config(&self, manifest: &Manifest) -> Result<Vec<u8>, PullError> {
        if let Some(bytes) = self.store.known_blob(&manifest.config, CONFIG_SIZE_MAX) {
            return Ok(bytes);
        }
        let mut last = None;
        for place in &self.places {
            match place.small_blob(&manifest.config, manifest.config_size).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => last = Some(named(error, &place.host(), self.reference)),
            }
        }
        Err(last.unwrap_or(PullError::Cancelled))
    }

    fn no_platform(&self) -> PullError {
        PullError::NoPlatform { platform: self.platform.clone() }
    }
}

/// An error of a request that was about `reference` itself.
pub(super) fn named(error: FetchError, host: &str, reference: &Reference) -> PullError {
    match error {
        FetchError::Content(error) => error.into(),
        FetchError::Registry(RegistryError::NotFound { .. }) => {
            PullError::NotFound { reference: reference.familiar() }
        }
        FetchError::Registry(RegistryError::Denied { message }) => {
            PullError::Denied { repository: reference.familiar_name(), message }
        }
        FetchError::Registry(RegistryError::Unauthorized { message }) => PullError::Unauthorized { message },
        FetchError::Registry(RegistryError::TooManyRequests { message, .. }) => {
            PullError::TooManyRequests { message }
        }
        FetchError::Registry(source) => PullError::Unreachable { host: host.to_owned(), source },
    }
}
