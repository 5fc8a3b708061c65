//! Pulling: from a name to an image in the store.
//!
//! ```text
//! name ─ manifest or index ─ manifest ─ configuration ─┬ layer ┐
//!                                                      ├ layer ┼─ image recorded
//!                                                      └ layer ┘
//! ```
//!
//! A layer goes from the socket to its tree in one pass. Three are in flight at a time over all pulls, and a layer
//! two pulls need is fetched once. Dropping the future cancels the pull: what was committed stays for the next try,
//! what was not is deleted.

#[cfg(test)]
mod access_tests;
mod ask;
mod commit;
#[cfg(test)]
mod debian_tests;
mod error;
#[cfg(test)]
mod fault_tests;
mod layer;
mod progress;
mod resolve;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

pub use ask::Described;
pub(crate) use commit::{Fetched, Verified, unpack_error};
pub use error::PullError;
pub(crate) use progress::Reporter;
pub use progress::{Progress, Status};

use self::layer::LayerJob;
use self::resolve::Resolved;
use crate::config::chain_ids;
use crate::digest::Digest;
use crate::platform::Platform;
use crate::reference::Reference;
use crate::registry::{Client, Credentials, Patience, Registries, Resolve, TrustError};
use crate::store::{Image, ImageBlobs, LayerNumber, Store};

/// Layers fetched and unpacked at a time, over all pulls. Each costs about 1 MiB, and up to 17 MiB if it is
/// packed with zstd and a large window.
const LAYERS_IN_FLIGHT: usize = 3;

/// Pulls images into a store. Clones share connections, tokens and the limit on layers in flight.
#[derive(Clone)]
pub struct Puller {
    store: Store,
    client: Arc<Client>,
    shared: Arc<Shared>,
}

/// What pulls that run at the same time share.
struct Shared {
    permits: Semaphore,
    /// One lock per blob being fetched.
    flights: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
}

impl Shared {
    /// The lock whose holder alone may fetch `blob`.
    fn flight(&self, blob: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights.retain(|_, flight| flight.strong_count() > 0);
        if let Some(flight) = flights.get(blob).and_then(Weak::upgrade) {
            return flight;
        }
        let flight = Arc::new(tokio::sync::Mutex::new(()));
        flights.insert(blob.clone(), Arc::downgrade(&flight));
        flight
    }
}

impl Puller {
    /// A puller for `store`. Reads the certificate files named in `registries`.
    pub fn new(store: Store, registries: Registries, resolver: Arc<dyn Resolve>) -> Result<Self, TrustError> {
        let client = Arc::new(Client::new(registries, resolver, Patience::default())?);
        let shared = Shared { permits: Semaphore::new(LAYERS_IN_FLIGHT), flights: Mutex::default() };
        Ok(Self { store, client, shared: Arc::new(shared) })
    }

    /// The store pulls go to and pushes come from.
    pub fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// The same with other time limits.
    #[must_use]
    pub fn with_patience(mut self, patience: Patience) -> Self {
        self.client = Arc::new(self.client.with_patience(patience));
        self
    }

    /// Pulls what `reference` names for `platform`. Dropping the future cancels the pull.
    ///
    /// `auth` goes before the credentials configured for the registry. `progress` should have room for at least
    /// 64 steps; when it is full, steps are lost, never time.
    pub async fn pull(
        &self,
        reference: &Reference,
        platform: &Platform,
        auth: Option<Credentials>,
        progress: Option<mpsc::Sender<Progress>>,
    ) -> Result<Image, PullError> {
        let reporter = Reporter::new(progress);
        let sessions = self.client.sessions(reference, auth);
        let resolved = resolve::resolve(&self.store, &sessions, reference, platform).await?;
        self.check_space(&resolved)?;
        let layers = self.layers(&resolved, &reporter).await?;
        let top = resolved.top.clone();
        let (image, changed) = self.record(reference, resolved, layers).await?;
        reporter.report(Status::Digest(top));
        reporter.report(if changed { Status::Downloaded } else { Status::UpToDate });
        Ok(image)
    }

    /// Fails early when not even the compressed layers would fit.
    fn check_space(&self, resolved: &Resolved) -> Result<(), PullError> {
        let Ok(space) = rustix::fs::statvfs(self.store.root()) else { return Ok(()) };
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        let lease = &mut self.store.lease();
        let chain = chain_ids(&resolved.config.rootfs.diff_ids);
        let places = resolved.places(&chain);
        let missing = places.iter().filter(|(_, place)| self.store.find_layer(place, lease).is_none());
        let needed: u64 = missing.map(|(layer, _)| layer.size).fold(0, u64::saturating_add);
        if needed > free {
            let text = format!("the layers have {needed} bytes, {free} are free");
            return Err(PullError::NoSpace(std::io::Error::new(std::io::ErrorKind::StorageFull, text)));
        }
        Ok(())
    }

    /// Fetches and unpacks all layers; those that lack directories are finished when all below them are there.
    async fn layers(&self, resolved: &Resolved, reporter: &Reporter) -> Result<Vec<Fetched>, PullError> {
        let chain = chain_ids(&resolved.config.rootfs.diff_ids);
        // Dropping the set, with this future or after an error, aborts what still runs.
        let mut jobs = JoinSet::new();
        for (number, (layer, place)) in resolved.places(&chain).into_iter().enumerate() {
            let job = LayerJob {
                store: self.store.clone(),
                shared: Arc::clone(&self.shared),
                sessions: resolved.sessions.clone(),
                layer: layer.clone(),
                diff_id: place.diff_id.clone(),
                chain: place.chain.clone(),
                lowest: place.lowest,
                reporter: reporter.of(&layer.digest),
            };
            jobs.spawn(async move { (number, job.run().await) });
        }
        let mut fetched: Vec<Option<Fetched>> = (0..jobs.len()).map(|_| None).collect();
        while let Some(joined) = jobs.join_next().await {
            let Ok((number, result)) = joined else { return Err(PullError::Cancelled) };
            let result = result?;
            if let Some(slot) = fetched.get_mut(number) {
                *slot = Some(result);
            }
        }
        Ok(fetched.into_iter().flatten().collect())
    }

    async fn record(
        &self,
        reference: &Reference,
        resolved: Resolved,
        layers: Vec<Fetched>,
    ) -> Result<(Image, bool), PullError> {
        let store = self.store.clone();
        let reference = reference.clone();
        let recording = tokio::task::spawn_blocking(move || {
            let mut lease = store.lease();
            let mut numbers: Vec<LayerNumber> = Vec::with_capacity(layers.len());
            // Leases of layers found before live until the image is recorded.
            let mut found = Vec::new();
            for layer in layers {
                let number = layer.finish(&store, &numbers, &mut lease, &mut found)?;
                numbers.push(number);
            }
            let blobs = ImageBlobs {
                manifest: resolved.manifest_bytes,
                config: resolved.config_bytes,
                index: resolved.index_bytes,
            };
            let recorded =
                store.record_image(&blobs, resolved.config, numbers, Some(&reference), &resolved.top)?;
            Ok(recorded)
        });
        recording.await.unwrap_or(Err(PullError::Cancelled))
    }
}
