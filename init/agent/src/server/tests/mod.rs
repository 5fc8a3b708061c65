//! The server against a scripted owner: what the stock command line and raw requests get.

mod cli;
mod contract;
mod errors;
mod goldens;
mod images;
mod owner;
mod storm;
mod tls;
mod wire;

use std::path::PathBuf;
use std::sync::Arc;

use berth_image::{Digest, Platform, Puller, Reference, Registries, Store};
use tokio::sync::broadcast;

use super::host::{Facts, Machine, Power};
use super::{Api, listen};
use crate::command::Handle;

/// A machine of which nothing is asked but its facts.
struct TestMachine;

impl Machine for TestMachine {
    fn status(&self) -> berth_api::host::Status {
        berth_api::host::Status { name: "test".into(), ..Default::default() }
    }

    fn config(&self) -> berth_api::host::Config {
        berth_api::host::Config { source: "test".into(), ..Default::default() }
    }

    fn power(&self, _power: Power) {}

    fn facts(&self) -> Facts {
        Facts { id: "id".into(), name: "test".into(), ..Facts::default() }
    }
}

struct NoNames;

impl berth_image::Resolve for NoNames {
    fn resolve<'a>(
        &'a self,
        _host: &'a str,
    ) -> berth_image::BoxFuture<'a, std::io::Result<Vec<std::net::IpAddr>>> {
        Box::pin(async { Err(std::io::ErrorKind::NotFound.into()) })
    }
}

/// A server on a unix socket, with an image called `alpine:latest` and a scripted owner.
pub(super) struct Server {
    pub(super) socket: PathBuf,
    pub(super) api: Arc<Api>,
    _folder: tempfile::TempDir,
}

impl Server {
    pub(super) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("images")).unwrap();
        let image = add_image(&store, "alpine:latest");
        let puller = Puller::new(store.clone(), Registries::default(), Arc::new(NoNames)).unwrap();
        let (handle, queue) = Handle::new(broadcast::Sender::new(64));
        tokio::spawn(owner::Script::new(handle.clone(), image).run(queue));
        let api = Api::new(handle, store, puller, Arc::new(TestMachine));
        let socket = folder.path().join("docker.sock");
        tokio::spawn(listen::serve_unix(listen::bind_unix(&socket).unwrap(), api.clone()));
        Self { socket, api, _folder: folder }
    }

    pub(super) fn client(&self) -> berth_api::client::Client {
        berth_api::client::Client::unix(&self.socket)
    }
}

/// Puts an image without layers into the store; answers with its id.
fn add_image(store: &Store, name: &str) -> String {
    let platform = Platform::host();
    let config = format!(
        r#"{{"architecture":"{}","os":"linux","created":"2020-09-13T12:26:40Z","config":{{"Cmd":["/bin/sh"],
        "Env":["PATH=/bin"]}},"rootfs":{{"type":"layers","diff_ids":[]}},"history":[]}}"#,
        platform.architecture
    );
    let blob = |text: &str| (Digest::of(text.as_bytes()), text.as_bytes().to_vec());
    let manifest = blob("{}");
    let blobs =
        berth_image::store::ImageBlobs { manifest: manifest.clone(), config: blob(&config), index: None };
    let parsed = berth_image::ImageConfig::parse(config.as_bytes(), 0).unwrap();
    let name: Reference = name.parse().unwrap();
    store.record_image(&blobs, parsed, Vec::new(), Some(&name), &manifest.0).unwrap().0.id.to_string()
}
