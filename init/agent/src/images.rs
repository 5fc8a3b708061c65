//! Images: the store, and pulls that tell of what they did.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use berth_image::{BoxFuture, Credentials, Image, Platform, Progress, PullError, Puller, Reference, Resolve, Store};
use berth_net::resolver::Resolver;
use tokio::sync::mpsc;

use crate::command::{Event, Handle};
use crate::config;
use crate::logs::now_ns;
use crate::store::write_durably;

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
            crate::log::warning!("image {} was not durable when power failed and is gone, continuing", name.familiar());
        }
        let mut registries =
            berth_image::Registries { insecure: wanted.insecure.clone(), ..berth_image::Registries::default() };
        if let Some(pem) = &wanted.ca {
            let path = run.join("registries.pem");
            write_durably(&path, pem.as_bytes()).map_err(ImagesError::Write)?;
            registries.ca_files.push(path);
        }
        let puller = Puller::new(store.clone(), registries, Arc::new(Names(resolver))).map_err(ImagesError::Trust)?;
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
        owner.announce(Event { kind: "image", action: "pull".to_owned(), id: name, attributes, at_ns: now_ns() });
        Ok(image)
    }
}
