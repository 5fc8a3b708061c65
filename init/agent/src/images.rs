//! Images: the store, and pulls that tell of what they did.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use berth_image::{
    BoxFuture, Credentials, Image, Platform, Progress, PullError, Puller, Reference, Resolve, Store,
};
use berth_net::host::Status;
use berth_net::resolver::Resolver;
use tokio::sync::{mpsc, watch};

use crate::command::{Event, Handle};
use crate::config;
use crate::logs::now_ns;
use crate::store::write_durably;

/// How long a lost image waits for the network.
const ONLINE_TIMEOUT: Duration = Duration::from_secs(60);
/// First wait after a lost image could not be pulled.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Longest wait between two tries.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Tries per lost image: about a quarter of an hour.
const RESTORE_TRIES: u32 = 20;

/// The machine's own resolver as the registry client wants it.
struct Names(Resolver);

impl Resolve for Names {
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(self.0.lookup(host))
    }
}

/// The store and the puller.
#[derive(Clone)]
pub(crate) struct Images {
    store: Store,
    puller: Puller,
}

/// Why images are not to be had at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImagesError {
    /// The store cannot be opened.
    #[error("open the image store")]
    Store(#[source] berth_image::StoreError),
    /// The machine file's authorities cannot be used.
    #[error("use the authorities of [registries]")]
    Trust(#[source] berth_image::registry::TrustError),
    /// They cannot be written where the client reads them.
    #[error("write the authorities of [registries]")]
    Write(#[source] io::Error),
}

impl Images {
    /// Opens the store in `root`. `run` is a directory for files that need not survive a boot.
    pub(crate) fn open(
        root: &Path,
        run: &Path,
        wanted: &config::Registries,
        resolver: Resolver,
    ) -> Result<Self, ImagesError> {
        let store = Store::open(root).map_err(ImagesError::Store)?;
        for name in store.lost() {
            crate::log::warning!(
                "image {} was not durable when power failed and is gone; it will be pulled again",
                name.familiar()
            );
        }
        let mut registries = berth_image::Registries {
            insecure: wanted.insecure.clone(),
            ..berth_image::Registries::default()
        };
        if let Some(pem) = &wanted.ca {
            let path = run.join("registries.pem");
            write_durably(&path, pem.as_bytes()).map_err(ImagesError::Write)?;
            registries.ca_files.push(path);
        }
        let puller =
            Puller::new(store.clone(), registries, Arc::new(Names(resolver))).map_err(ImagesError::Trust)?;
        Ok(Self { store, puller })
    }

    /// The store.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// The puller.
    pub(crate) fn puller(&self) -> &Puller {
        &self.puller
    }

    /// Pulls again what a power cut took, one name after the other, until each is back or its registry says no.
    pub(crate) async fn restore_lost(self, owner: Handle, mut online: watch::Receiver<Status>) {
        let lost = self.store.lost();
        if lost.is_empty() {
            return;
        }
        // Over or not, the pull says what is wrong.
        let _ = tokio::time::timeout(ONLINE_TIMEOUT, online.wait_for(Status::is_online)).await;
        for name in lost {
            let mut wait = FIRST_WAIT;
            for _ in 0..RESTORE_TRIES {
                // A unit or a user may have been quicker.
                if self.store.find(&name.to_string()).is_ok() {
                    break;
                }
                let Err(error) = self.pull(&owner, &name, &Platform::host(), None, None).await else { break };
                crate::log::warning!(
                    "image {} was lost and cannot be pulled again: {}, continuing",
                    name.familiar(),
                    crate::log::chain(&error)
                );
                if !may_pass(&error) {
                    break;
                }
                tokio::time::sleep(wait).await;
                wait = wait.saturating_mul(2).min(LONGEST_WAIT);
            }
        }
    }

    /// Pulls an image and tells of it. Dropping the future cancels the pull.
    pub(crate) async fn pull(
        &self,
        owner: &Handle,
        reference: &Reference,
        platform: &Platform,
        auth: Option<Credentials>,
        progress: Option<mpsc::Sender<Progress>>,
    ) -> Result<Image, PullError> {
        let image = self.puller.pull(reference, platform, auth, progress).await?;
        let name = reference.familiar();
        let attributes = BTreeMap::from([("name".to_owned(), reference.familiar_name())]);
        owner.announce(Event {
            kind: "image",
            action: "pull".to_owned(),
            id: name,
            attributes,
            at_ns: now_ns(),
        });
        Ok(image)
    }
}

/// Whether the same pull may succeed later: an image made here, or one nobody may have without a log-in, never comes.
fn may_pass(error: &PullError) -> bool {
    match error {
        PullError::Unreachable { .. }
        | PullError::TooManyRequests { .. }
        | PullError::Content(_)
        | PullError::NoSpace(_)
        | PullError::Store(_)
        | PullError::Cancelled => true,
        PullError::NotFound { .. }
        | PullError::Denied { .. }
        | PullError::Unauthorized { .. }
        | PullError::Manifest { .. }
        | PullError::Config { .. }
        | PullError::NoPlatform { .. }
        | PullError::Unpack { .. } => false,
    }
}
