//! Pulls against a registry that behaves, and against ones that do not.

use std::path::Path;

use super::*;
use crate::registry::ContentError;
use crate::testing::forge::{self, GZIP_LAYER, PLAIN_LAYER, ZSTD_LAYER, descriptor};
use crate::testing::registry::{Call, impatient, insecure, no_names};
use crate::testing::scratch::listing;
use crate::testing::{Forge, ImageForge, Reply, Scratch, TestRegistry};
use crate::unpack::UnpackError;

pub(super) fn puller(scratch: &Scratch, registry: &TestRegistry) -> Puller {
    let store = Store::open(&scratch.path().join("store")).unwrap();
    Puller::new(store, insecure(&[registry.host()]), no_names()).unwrap().with_patience(impatient())
}

pub(super) fn reference(registry: &TestRegistry, rest: &str) -> Reference {
    format!("{}/{rest}", registry.host()).parse().unwrap()
}

pub(super) fn amd64() -> Platform {
    "linux/amd64".parse().unwrap()
}

fn two_layers() -> ImageForge {
    let lower = Forge::new().dir("etc").file("etc/a", "lower a").file("etc/b", "b").finish();
    let upper = Forge::new().dir("etc").file("etc/a", "upper a").file("etc/.wh.b", "").finish();
    ImageForge::new().layer(&lower).layer(&upper)
}

pub(super) fn entries(directory: &Path) -> usize {
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
    assert_eq!(image.names, std::slice::from_ref(&name));
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

/// Pulls `demo` and checks that a failure leaves nothing behind.
pub(super) async fn try_pull(scratch: &Scratch, registry: &TestRegistry) -> Result<Image, PullError> {
    let puller = puller(scratch, registry);
    let result = puller.pull(&reference(registry, "demo"), &amd64(), None, None).await;
    let root = puller.store.root().to_owned();
    assert_eq!(entries(&root.join("staging")), 0, "a tree was left in staging");
    if result.is_err() {
        assert!(puller.store.list().is_empty());
        assert_eq!(entries(&root.join("names")), 0);
    }
    scratch.assert_canary();
    result
}

pub(super) async fn scripted(
    script: impl FnMut(&Call) -> Option<Reply> + Send + 'static,
) -> (Scratch, TestRegistry) {
    let (scratch, registry) = (Scratch::new(), TestRegistry::start().await);
    registry.add("demo", "latest", &big());
    registry.script(script);
    (scratch, registry)
}

/// One layer of a size that takes several reads, and does not compress.
pub(super) fn big() -> ImageForge {
    static IMAGE: std::sync::OnceLock<ImageForge> = std::sync::OnceLock::new();
    IMAGE.get_or_init(make_big).clone()
}

fn make_big() -> ImageForge {
    let mut noise = Vec::with_capacity(1 << 20);
    let mut seed = Digest::of(b"seed");
    while noise.len() < 1 << 20 {
        seed = Digest::of(seed.hex().as_bytes());
        noise.extend_from_slice(seed.hex().as_bytes());
    }
    let tar = Forge::new().file("noise", noise).finish();
    ImageForge::new().packed_layer(PLAIN_LAYER, tar.clone(), &tar)
}

pub(super) fn is_layer(call: &Call) -> bool {
    call.path.contains("/blobs/") && call.path.ends_with(big().blobs.keys().next().unwrap())
}

pub(super) fn usual(call: &Call) -> Reply {
    let blob = big().blobs.into_values().next().unwrap();
    let from =
        call.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    match from {
        Some(from) => Reply::new(206)
            .header("content-range", format!("bytes {from}-{}/{}", blob.len() - 1, blob.len()))
            .body(&blob[from..]),
        None => Reply::new(200).body(blob),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_at_the_same_time_fetch_each_layer_once() {
    let (scratch, registry) = (Scratch::new(), TestRegistry::start().await);
    let shared = Forge::new().file("shared", vec![5; 300_000]).finish();
    for number in 0..4 {
        let own = Forge::new().file(format!("own{number}"), "x").finish();
        registry.add(
            "demo",
            &number.to_string(),
            &ImageForge::new().layer(&shared).layer(&own).layer(&shared),
        );
    }
    let puller = puller(&scratch, &registry);
    let mut pulls = JoinSet::new();
    for number in 0..12 {
        let (puller, name) = (puller.clone(), reference(&registry, &format!("demo:{}", number % 4)));
        pulls.spawn(async move { puller.pull(&name, &amd64(), None, None).await.map(|image| image.layers) });
    }
    while let Some(result) = pulls.join_next().await {
        let layers = result.unwrap().unwrap();
        assert_eq!(layers[0], layers[2], "the same layer twice in one image is legal");
    }
    let digest = Digest::of(&forge::gzip(&shared)).to_string();
    assert_eq!(registry.count(&digest), 1);
    assert_eq!(entries(&puller.store.root().join("layers")), 5);
    assert_eq!(puller.store.list().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_without_their_directories_take_them_from_below() {
    let (scratch, registry) = (Scratch::new(), TestRegistry::start().await);
    let base =
        Forge::new().entry(crate::testing::Head::new(b'5', "srv").mode(0o750).owner(3, 4), b"").finish();
    let other =
        Forge::new().entry(crate::testing::Head::new(b'5', "srv").mode(0o711).owner(8, 9), b"").finish();
    let upper = Forge::new().file("srv/data", "x").finish();
    registry.add("demo", "one", &ImageForge::new().layer(&base).layer(&upper));
    registry.add("demo", "two", &ImageForge::new().layer(&other).layer(&upper));
    let puller = puller(&scratch, &registry);
    for (tag, expected) in [("one", "dir 750 3:4"), ("two", "dir 711 8:9")] {
        let name = reference(&registry, &format!("demo:{tag}"));
        let image = puller.pull(&name, &amd64(), None, None).await.unwrap();
        let list = listing(&puller.store.layer_dirs(&image)[1], false);
        assert!(list["srv"].starts_with(expected), "{}", list["srv"]);
        puller.pull(&name, &amd64(), None, None).await.unwrap();
    }
    assert_eq!(entries(&puller.store.root().join("layers")), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_of_an_index_is_chosen_by_platform() {
    let (scratch, registry) = (Scratch::new(), TestRegistry::start().await);
    let tar = Forge::new().file("f", "x").finish();
    let arm = ImageForge { architecture: "arm64".into(), ..ImageForge::new().layer(&tar) };
    let amd = ImageForge::new().layer(&tar);
    registry.add("demo", "arm", &arm);
    registry.add("demo", "amd", &amd);
    let index = forge::index(&[("arm64", &arm.manifest()), ("amd64", &amd.manifest())]);
    registry.add_manifest("demo", "latest", index.clone());
    let puller = puller(&scratch, &registry);
    let name = reference(&registry, "demo");
    let image = puller.pull(&name, &amd64(), None, None).await.unwrap();
    assert_eq!(image.id, amd.id());
    assert_eq!(image.repo_digests, [format!("{}@{}", name.familiar_name(), Digest::of(&index))]);
    let by_digest = name.with_digest(Digest::of(&index));
    assert_eq!(puller.pull(&by_digest, &amd64(), None, None).await.unwrap().id, amd.id());
    let error = puller.pull(&name, &"linux/s390x".parse().unwrap(), None, None).await.unwrap_err();
    assert!(matches!(error, PullError::NoPlatform { .. }));
    // An index that contains itself by way of another ends too.
    let nested = forge::index(&[("amd64", &forge::index(&[("amd64", &forge::index(&[("amd64", &index)]))]))]);
    registry.add_manifest("demo", "nested", nested);
    registry.add_manifest("demo", "n1", forge::index(&[("amd64", &forge::index(&[("amd64", &index)]))]));
    registry.add_manifest("demo", "n2", forge::index(&[("amd64", &index)]));
    let error = puller.pull(&reference(&registry, "demo:nested"), &amd64(), None, None).await.unwrap_err();
    assert!(matches!(error, PullError::Manifest { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_contradict_themselves_are_refused() {
    let tar = Forge::new().file("f", "x").finish();
    let good = ImageForge::new().layer(&tar);
    let fewer = ImageForge { diff_ids: vec![], ..good.clone() };
    let more = ImageForge { diff_ids: vec![Digest::of(&tar), Digest::of(&tar)], ..good.clone() };
    let other = ImageForge { diff_ids: vec![Digest::of(b"another")], ..good.clone() };
    let packed = |media_type: &str, bytes: Vec<u8>| ImageForge::new().packed_layer(media_type, bytes, &tar);
    let zstd = zstd::encode_all(&tar[..], 1).unwrap();
    let gzip = forge::gzip(&tar);
    let escape = Forge::new().file("../../../x", "x").finish();
    for (case, image) in [
        ("fewer", fewer),
        ("more", more),
        ("other", other),
        ("zstd as gzip", packed(GZIP_LAYER, zstd)),
        ("gzip as zstd", packed(ZSTD_LAYER, gzip.clone())),
        ("gzip as tar", packed(PLAIN_LAYER, gzip.clone())),
        ("xz", packed(GZIP_LAYER, b"\xfd7zXZ\0rest".to_vec())),
        ("truncated", packed(GZIP_LAYER, gzip[..gzip.len() - 4].to_vec())),
        ("rubbish", packed(GZIP_LAYER, [&gzip[..], b"rubbish"].concat())),
        ("escape", ImageForge::new().layer(&escape)),
    ] {
        let (scratch, registry) = (Scratch::new(), TestRegistry::start().await);
        registry.add("demo", "latest", &image);
        let error = try_pull(&scratch, &registry).await.unwrap_err();
        match case {
            "fewer" | "more" => assert!(matches!(error, PullError::Config { .. }), "{case}: {error:?}"),
            "other" => {
                assert!(
                    matches!(error, PullError::Content(ContentError::DiffId { .. })),
                    "{case}: {error:?}"
                );
            }
            "escape" => assert!(
                matches!(error, PullError::Unpack { source: UnpackError::Entry { .. }, .. }),
                "{case}: {error:?}"
            ),
            _ => assert!(
                matches!(error, PullError::Unpack { source: UnpackError::Compression { .. }, .. }),
                "{case}: {error:?}"
            ),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claimed_diff_id_shares_nothing() {
    let (scratch, registry) = (Scratch::new(), TestRegistry::start().await);
    let trusted = Forge::new().file("f", "trusted").finish();
    let evil = Forge::new().file("f", "evil").finish();
    registry.add("demo", "good", &ImageForge::new().layer(&trusted));
    let claims = ImageForge { diff_ids: vec![Digest::of(&trusted)], ..ImageForge::new().layer(&evil) };
    registry.add("demo", "evil", &claims);
    let puller = puller(&scratch, &registry);
    puller.pull(&reference(&registry, "demo:good"), &amd64(), None, None).await.unwrap();
    let error = puller.pull(&reference(&registry, "demo:evil"), &amd64(), None, None).await.unwrap_err();
    assert!(matches!(error, PullError::Content(ContentError::DiffId { .. })), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_that_lie_are_refused() {
    let good = big().manifest();
    let text = String::from_utf8(good.clone()).unwrap();
    let foreign = text.replace(PLAIN_LAYER, "application/vnd.docker.image.rootfs.foreign.diff.tar.zip");
    let cases: Vec<(&str, Reply)> = vec![
        (
            "other digest",
            Reply::new(200).header("docker-content-digest", Digest::of(b"x").to_string()).body(good.clone()),
        ),
        ("too large", Reply::new(200).body(vec![b' '; (4 << 20) + 1])),
        ("endless", Reply { unsized_body: true, ..Reply::new(200).body(vec![b' '; 5 << 20]) }),
        ("not JSON", Reply::new(200).body("<html>")),
        ("schema 1", Reply::new(200).body(r#"{"schemaVersion":1,"fsLayers":[]}"#)),
        ("type", Reply::new(200).header("content-type", crate::manifest::OCI_INDEX).body(good.clone())),
        ("foreign", Reply::new(200).body(foreign)),
        ("negative", Reply::new(200).body(text.replace(r#""size":"#, r#""size":-"#))),
        ("traversal", Reply::new(200).body(text.replace("sha256:", "sha256:../../"))),
    ];
    for (case, reply) in cases {
        let (scratch, registry) =
            scripted(move |call| call.path.contains("/manifests/").then(|| reply.clone())).await;
        let error = try_pull(&scratch, &registry).await.unwrap_err();
        let expected = match case {
            "other digest" => matches!(error, PullError::Content(ContentError::Digest { .. })),
            "too large" | "endless" => matches!(error, PullError::Content(ContentError::TooLarge { .. })),
            _ => matches!(error, PullError::Manifest { .. }),
        };
        assert!(expected, "{case}: {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_carry_what_docker_says() {
    for (status, body, expected) in [
        (404, "", "manifest for HOST/demo:latest not found: manifest unknown: manifest unknown"),
        (
            403,
            r#"{"errors":[{"code":"DENIED","message":"no"}]}"#,
            "pull access denied for HOST/demo, repository does not exist or may require 'docker login': no",
        ),
        (
            401,
            r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#,
            "unauthorized: authentication required",
        ),
        (
            429,
            r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#,
            "toomanyrequests: slow down",
        ),
        (500, "", "cannot pull from HOST"),
    ] {
        let (scratch, registry) =
            scripted(move |call| call.path.contains("/manifests/").then(|| Reply::new(status).body(body)))
                .await;
        let error = try_pull(&scratch, &registry).await.unwrap_err();
        assert_eq!(error.to_string().replace(&registry.host(), "HOST"), expected);
        let tries = if status == 429 || status == 500 { 3 } else { 1 };
        assert_eq!(registry.count("/manifests/"), tries, "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused_before_it_is_fetched() {
    let (scratch, registry) = (Scratch::new(), TestRegistry::start().await);
    let mut image = big();
    let digest = image.blobs.keys().next().unwrap().clone();
    image.layers = vec![descriptor(PLAIN_LAYER, &digest, 60 << 30)];
    registry.add("demo", "latest", &image);
    let result = try_pull(&scratch, &registry).await;
    match result.unwrap_err() {
        PullError::NoSpace(_) => assert_eq!(registry.count(&digest), 0),
        // A disk with that much room finds out from the registry.
        error => assert!(matches!(error, PullError::Content(ContentError::Size { .. })), "{error:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_leaves_nothing_half_written() {
    let (scratch, registry) = (Scratch::new(), TestRegistry::start().await);
    let small = scratch.empty("small");
    let mount = |arguments: &[&str]| {
        std::process::Command::new(arguments[0])
            .args(&arguments[1..])
            .arg(&small)
            .status()
            .is_ok_and(|s| s.success())
    };
    if !mount(&["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs"]) {
        return;
    }
    // Small as it travels, too large when unpacked.
    let tar = Forge::new().file("kept", "x").file("zeros", vec![0; 4 << 20]).finish();
    registry.add("demo", "latest", &ImageForge::new().layer(&tar));
    let store = Store::open(&small.join("store")).unwrap();
    let puller = Puller::new(store.clone(), insecure(&[registry.host()]), no_names()).unwrap();
    let result = puller.pull(&reference(&registry, "demo"), &amd64(), None, None).await;
    let left = (entries(&store.root().join("staging")), entries(&store.root().join("layers")));
    store.settle();
    drop((puller, store));
    assert!(mount(&["umount", "-l"]));
    assert!(matches!(result, Err(PullError::NoSpace(_))), "{result:?}");
    assert_eq!(left, (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn pulling_and_removing_at_once_never_leaves_an_image_without_its_layers() {
    let (scratch, registry) = (Scratch::new(), TestRegistry::start().await);
    let shared = Forge::new().file("shared", vec![5; 50_000]).finish();
    for number in 0..3 {
        let own = Forge::new().dir("d").file(format!("d/own{number}"), "x").finish();
        registry.add("demo", &number.to_string(), &ImageForge::new().layer(&shared).layer(&own));
    }
    let puller = puller(&scratch, &registry);
    let mut tasks = JoinSet::new();
    for task in 0..6 {
        let (puller, host) = (puller.clone(), registry.host());
        tasks.spawn(async move {
            for round in 0..15 {
                let name: Reference = format!("{host}/demo:{}", (task + round) % 3).parse().unwrap();
                let platform = amd64();
                let pulling = puller.pull(&name, &platform, None, None);
                // Some pulls are given up at an arbitrary point.
                let patience = std::time::Duration::from_millis(if round % 4 == 3 { 3 } else { 60_000 });
                let Ok(image) = tokio::time::timeout(patience, pulling).await else { continue };
                let image = image.unwrap();
                if let Some(_lease) = puller.store().hold(&image) {
                    for directory in puller.store().layer_dirs(&image) {
                        assert!(directory.exists(), "a layer of a held image is gone");
                    }
                }
                let free = |_: &Image| crate::store::Use::Free;
                let _ = match round % 3 {
                    0 => puller.store().prune(true, &free).map(drop).map_err(drop),
                    1 => puller.store().remove(&name.to_string(), false, &free).map(drop).map_err(drop),
                    _ => Ok(()),
                };
            }
        });
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }
    let store = puller.store().clone();
    for image in store.list() {
        assert!(
            store
                .layer_dirs(&image)
                .iter()
                .all(|directory| directory.join("shared").exists() || directory.join("d").exists())
        );
    }
    store.prune(true, &|_| crate::store::Use::Free).unwrap();
    let start = std::time::Instant::now();
    let left = |name: &str| entries(&store.root().join(name));
    while ["images", "names", "layers", "staging", "trash", "blobs/sha256"].iter().any(|name| left(name) > 0)
    {
        store.prune(true, &|_| crate::store::Use::Free).unwrap();
        assert!(start.elapsed() < std::time::Duration::from_secs(10), "something is left for ever");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}
