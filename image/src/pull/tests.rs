//! Pulls against a registry that behaves, and against ones that do not.

use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::testing::registry::{impatient, insecure, no_names};
use crate::testing::scratch::listing;
use crate::testing::{Forge, ImageForge, Scratch, TestRegistry};

fn puller(scratch: &Scratch, registry: &TestRegistry) -> Puller {
    let store = Store::open(&scratch.path().join("store")).unwrap();
    Puller::new(store, insecure(&[registry.host()]), no_names()).unwrap().with_patience(impatient())
}

fn reference(registry: &TestRegistry, rest: &str) -> Reference {
    format!("{}/{rest}", registry.host()).parse().unwrap()
}

fn amd64() -> Platform {
    "linux/amd64".parse().unwrap()
}

fn two_layers() -> ImageForge {
    let lower = Forge::new().dir("etc").file("etc/a", "lower a").file("etc/b", "b").finish();
    let upper = Forge::new().dir("etc").file("etc/a", "upper a").file("etc/.wh.b", "").finish();
    ImageForge::new().layer(&lower).layer(&upper)
}

fn entries(directory: &Path) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_once_and_found_by_all_its_names() {
    let (scratch, registry) = (Scratch::new(), TestRegistry::start().await);
    let forge = two_layers();
    registry.add("demo", "latest", &forge);
    let puller = puller(&scratch, &registry);
    let name = reference(&registry, "demo");
    let (sender, mut steps) = mpsc::channel(256);
    let image = puller.pull(&name, &amd64(), None, Some(sender)).await.unwrap();
    assert_eq!(image.id, forge.id());
    assert_eq!(image.names, [name.clone()]);
    assert_eq!(image.config.config.cmd, Some(vec!["/bin/sh".to_owned()]));
    assert_eq!(image.size, 7 + 1 + 7);
    let store = &puller.store;
    for text in
        [name.to_string(), image.id.to_string(), image.id.short().to_owned(), image.repo_digests[0].clone()]
    {
        assert_eq!(store.find(&text).unwrap().id, image.id, "{text}");
    }
    let dirs = store.layer_dirs(&image);
    assert_eq!(std::fs::read(dirs[0].join("etc/a")).unwrap(), b"lower a");
    assert_eq!(std::fs::read(dirs[1].join("etc/a")).unwrap(), b"upper a");
    assert!(listing(&dirs[1], false)["etc/b"].starts_with("char 0:0"));
    let mut seen = Vec::new();
    while let Ok(step) = steps.try_recv() {
        seen.push(step.status);
    }
    assert_eq!(seen.iter().filter(|status| **status == Status::PullComplete).count(), 2);
    assert_eq!(seen.last(), Some(&Status::Downloaded));

    let before = registry.count("/blobs/");
    let (sender, mut steps) = mpsc::channel(256);
    puller.pull(&name, &amd64(), None, Some(sender)).await.unwrap();
    assert_eq!(registry.count("/blobs/"), before, "everything was there already");
    let mut last = None;
    while let Ok(step) = steps.try_recv() {
        last = Some(step.status);
    }
    assert_eq!(last, Some(Status::UpToDate));
    scratch.assert_canary();
    assert_eq!(entries(&store.root().join("staging")), 0);
}
