//! The store by itself: naming, removing, leases, and what is left after each way to end.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::*;
use crate::config::ImageConfig;
use crate::testing::{ImageForge, Scratch};

fn open(scratch: &Scratch) -> Store {
    Store::open(&scratch.path().join("store")).unwrap()
}

fn count(directory: &Path) -> usize {
    fs::read_dir(directory).unwrap().count()
}

/// Counts of all the store keeps, as files.
fn counts(store: &Store) -> BTreeMap<&'static str, usize> {
    store.settle();
    ["images", "names", "layers", "staging", "trash", "blobs/sha256"]
        .into_iter()
        .map(|name| (name, count(&store.root().join(name))))
        .collect()
}

fn commit(store: &Store, content: &str, lease: &mut Lease) -> LayerNumber {
    let staging = store.stage().unwrap();
    fs::write(staging.tree().join("file"), content).unwrap();
    let facts = LayerFacts {
        diff_id: Digest::of(content.as_bytes()),
        blob: Some(Digest::of(format!("packed {content}").as_bytes())),
        chain: None,
        size: content.len() as u64,
        whiteouts: false,
        opaque_root: false,
        tar_size: None,
    };
    store.commit_layer(staging, &facts, lease).unwrap()
}

/// Records an image with a layer per text.
fn record(store: &Store, layers: &[&str], name: &str) -> Image {
    let mut lease = store.lease();
    let mut forge = ImageForge::new();
    forge.diff_ids = layers.iter().map(|content| Digest::of(content.as_bytes())).collect();
    let numbers = layers.iter().map(|content| commit(store, content, &mut lease)).collect();
    let (config, manifest) = (forge.config(), forge.manifest());
    let parsed = ImageConfig::parse(&config, layers.len()).unwrap();
    let top = Digest::of(&manifest);
    let blobs = ImageBlobs { manifest: (top.clone(), manifest), config: (forge.id(), config), index: None };
    let name: Reference = name.parse().unwrap();
    store.record_image(&blobs, parsed, numbers, Some(&name), &top).unwrap().0
}

fn free(_: &Image) -> Use {
    Use::Free
}

fn removed(list: &[Removed]) -> (usize, usize) {
    let untagged = list.iter().filter(|one| matches!(one, Removed::Untagged(_))).count();
    (untagged, list.len() - untagged)
}

#[test]
fn layers_are_shared_and_go_with_the_last_image_that_needs_them() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let one = record(&store, &["base", "one"], "one");
    let two = record(&store, &["base", "two"], "two");
    assert_eq!(one.layers[0], two.layers[0]);
    assert_eq!(counts(&store)["layers"], 3);
    assert_eq!(store.disk_usage(), 4 + 3 + 3);
    // The name, the repository digest, the image, one layer.
    assert_eq!(removed(&store.remove("one", false, &free).unwrap()), (2, 2));
    assert!(store.layer_dirs(&two)[0].join("file").exists());
    assert_eq!(removed(&store.remove("two", false, &free).unwrap()), (2, 3));
    let left = counts(&store);
    assert_eq!(left.values().sum::<usize>(), 0, "{left:?}");
    assert!(matches!(store.remove("two", false, &free), Err(RemoveError::Find(FindError::NotFound(_)))));
}

#[test]
fn a_name_moves_to_the_image_that_has_it_last() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let old = record(&store, &["old"], "app");
    let new = record(&store, &["new"], "app");
    assert_eq!(store.find("app").unwrap().id, new.id);
    assert!(store.find(&old.id.to_string()).unwrap().names.is_empty(), "the old one is nameless, not gone");
    assert_eq!(store.list().len(), 2);
    let pruned = store.prune(false, &free).unwrap();
    assert_eq!(pruned.freed, 3);
    assert_eq!(store.list().len(), 1);
    store.tag(&new.id, &"other:v1".parse().unwrap()).unwrap();
    assert_eq!(removed(&store.remove("app", false, &free).unwrap()), (1, 0), "another name is left");
    assert_eq!(store.find("other:v1").unwrap().id, new.id);
    assert!(store.tag(&old.id, &"x".parse().unwrap()).is_err());
}

#[test]
fn images_are_found_by_every_name_docker_allows() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let image = record(&store, &["a"], "ghcr.io/some/app:v1");
    let hex = image.id.hex();
    let digest = image.manifest.to_string();
    for text in [
        "ghcr.io/some/app:v1",
        &format!("sha256:{hex}"),
        hex,
        &hex[..12],
        &hex[..3],
        &format!("sha256:{}", &hex[..7]),
        &digest,
        &format!("ghcr.io/some/app@{digest}"),
        &format!("ghcr.io/some/app:other@{digest}"),
    ] {
        assert_eq!(store.find(text).unwrap().id, image.id, "{text}");
    }
    for text in ["", "ghcr.io/some/app", "app:v1", "sha256:", "zz", &format!("other@{digest}"), "../x"] {
        assert!(matches!(store.find(text), Err(FindError::NotFound(_))), "{text}");
    }
}

#[test]
fn an_id_that_starts_like_another_is_ambiguous() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for number in 0..17 {
        let image = record(&store, &[&format!("layer {number}")], &format!("app:{number}"));
        *seen.entry(image.id.hex()[..1].to_owned()).or_default() += 1;
    }
    // Seventeen ids share sixteen first digits.
    let (digit, _) = seen.iter().find(|(_, count)| **count > 1).unwrap();
    assert!(matches!(store.find(digit), Err(FindError::Ambiguous(_))));
}

#[test]
fn images_in_use_are_kept_as_docker_keeps_them() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let image = record(&store, &["a"], "app");
    let id = image.id.to_string();
    let running = |_: &Image| Use::Running("c1".into());
    let stopped = |_: &Image| Use::Stopped("c2".into());
    assert!(matches!(store.remove("app", false, &running), Err(RemoveError::Referenced { .. })));
    assert!(matches!(store.remove(&id, true, &running), Err(RemoveError::Running { .. })));
    assert!(matches!(store.remove(&id, false, &stopped), Err(RemoveError::Stopped { .. })));
    assert_eq!(removed(&store.remove("app", true, &running).unwrap()), (1, 0));
    assert!(store.layer_dirs(&image)[0].join("file").exists(), "the container's layers stay");
    assert!(store.prune(true, &stopped).unwrap().removed.is_empty());
    assert_eq!(store.list().len(), 1);
    record(&store, &["b"], "one/app");
    let two = store.find("one/app").unwrap();
    store.tag(&two.id, &"two/app".parse().unwrap()).unwrap();
    let by_id = two.id.to_string();
    assert!(matches!(store.remove(&by_id, false, &free), Err(RemoveError::ManyNames(_))));
    assert_eq!(removed(&store.remove(&by_id, true, &free).unwrap()), (3, 2));
}

#[test]
fn leased_layers_outlive_their_image() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let image = record(&store, &["a"], "app");
    let lease = store.hold(&image).unwrap();
    store.remove("app", false, &free).unwrap();
    assert!(store.layer_dirs(&image)[0].join("file").exists());
    assert!(store.hold(&image).is_none(), "an image that is gone cannot be held");
    drop(lease);
    store.prune(false, &free).unwrap();
    assert_eq!(counts(&store)["layers"], 0);
}

#[test]
fn what_was_durable_is_there_after_opening_again_and_leftovers_are_not() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let image = record(&store, &["a", "b"], "app");
    store.settle();
    // What a killed process leaves behind.
    fs::create_dir_all(store.root().join("staging/99/fs")).unwrap();
    fs::write(store.root().join("staging/99/fs/half"), "written").unwrap();
    fs::create_dir_all(store.root().join("trash/7/fs/deep")).unwrap();
    fs::write(store.root().join("names/x.json.new"), "half").unwrap();
    fs::write(store.root().join("blobs/sha256").join("0".repeat(64)), "orphan").unwrap();
    let root = store.root().to_owned();
    drop(store);
    let store = Store::open(&root).unwrap();
    let again = store.find("app").unwrap();
    assert_eq!((again.id, again.layers), (image.id, image.layers));
    let left = counts(&store);
    assert_eq!(
        (left["staging"], left["trash"], left["names"], left["blobs/sha256"]),
        (0, 0, 1, 2),
        "{left:?}"
    );
    assert!(record(&store, &["c"], "new").layers[0].0 > 2, "numbers are not used twice");
}

#[test]
fn layers_a_power_cut_may_have_hit_are_thrown_away_with_their_images() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    record(&store, &["base", "one"], "one");
    record(&store, &["base", "two"], "two");
    store.settle();
    let layers = store.find("one").unwrap().layers;
    let root = store.root().to_owned();
    // The layer only image one has was written by another boot and never marked.
    let hit = store.layer_directory(layers[1]);
    drop(store);
    fs::remove_file(hit.join("complete")).unwrap();
    let record = fs::read_to_string(hit.join("layer.json")).unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    fs::write(hit.join("layer.json"), record.replace(boot.trim(), "another boot")).unwrap();
    let store = Store::open(&root).unwrap();
    assert!(store.find("one").is_err());
    assert!(store.find("two").is_ok());
    let lost: Vec<String> = store.lost().iter().map(Reference::familiar).collect();
    assert_eq!(lost, ["one:latest"]);
    assert_eq!(counts(&store)["layers"], 2);
}

#[test]
fn an_agent_that_restarts_keeps_layers_that_are_not_durable_yet() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let image = record(&store, &["a"], "app");
    store.settle();
    let directory = store.layer_directory(image.layers[0]);
    drop(store);
    fs::remove_file(directory.join("complete")).unwrap();
    let store = open(&scratch);
    assert!(store.find("app").is_ok());
    store.settle();
    assert!(directory.join("complete").exists(), "and makes them so");
}

#[test]
fn damaged_records_cost_their_image_and_nothing_else() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let (bad, good) = (record(&store, &["a"], "bad"), record(&store, &["b"], "good"));
    store.settle();
    let root = store.root().to_owned();
    let files = [store.blob_path(&bad.id), store.image_path(&bad.id), store.name_path(&bad.names[0])];
    let layer = store.layer_directory(bad.layers[0]).join("layer.json");
    drop(store);
    for file in files.iter().chain([&layer]) {
        let before = fs::read(file).unwrap();
        // Empty, as journalling file systems leave what was never written back.
        fs::write(file, "").unwrap();
        let copy = scratch.path().join("copy");
        let _ = fs::remove_dir_all(&copy);
        assert!(std::process::Command::new("cp").arg("-a").arg(&root).arg(&copy).status().unwrap().success());
        let store = Store::open(&copy).unwrap();
        assert!(store.find("bad").is_err(), "{}", file.display());
        assert_eq!(store.find("good").unwrap().id, good.id);
        fs::write(file, before).unwrap();
    }
}

#[test]
fn a_store_has_one_user_and_a_known_format() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    assert!(matches!(Store::open(store.root()), Err(StoreError::Locked(_))));
    let root = store.root().to_owned();
    drop(store);
    fs::write(root.join("format"), "2").unwrap();
    assert!(matches!(Store::open(&root), Err(StoreError::Format(format)) if format == "2"));
}

#[test]
fn a_layer_whose_tree_depends_on_its_place_is_not_shared_elsewhere() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let mut lease = store.lease();
    let (blob, diff_id) = (Digest::of(b"blob"), Digest::of(b"diff"));
    let (here, there) = (Digest::of(b"here"), Digest::of(b"there"));
    let facts = LayerFacts {
        diff_id: diff_id.clone(),
        blob: Some(blob.clone()),
        chain: Some(here.clone()),
        size: 0,
        whiteouts: false,
        opaque_root: false,
        tar_size: None,
    };
    let number = store.commit_layer(store.stage().unwrap(), &facts, &mut lease).unwrap();
    let place = |chain| Place { blob: Some(&blob), diff_id: &diff_id, chain, lowest: false };
    assert_eq!(store.find_layer(&place(&here), &mut lease), Some(number));
    assert_eq!(store.find_layer(&place(&there), &mut lease), None);
    // A blob nobody fetched proves nothing, whatever diff id an image claims for it.
    let unknown = Digest::of(b"other blob");
    let claimed = Place { blob: Some(&unknown), ..place(&here) };
    assert_eq!(store.find_layer(&claimed, &mut lease), None);
}

#[test]
fn history_gives_each_layer_to_the_step_that_made_it() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let mut image = record(&store, &["one", "two two", "three"], "app");
    let line = |by: &str, empty_layer| crate::config::History {
        created_by: by.into(),
        empty_layer,
        ..crate::config::History::default()
    };
    let mut config = (*image.config).clone();
    config.history = vec![line("ADD", false), line("ENV", true), line("RUN", false)];
    image.config = Arc::new(config);
    let steps: Vec<(String, u64)> =
        store.history(&image).into_iter().map(|step| (step.line.created_by, step.size)).collect();
    let expected = [("", 5), ("RUN", 7), ("ENV", 0), ("ADD", 3)];
    assert_eq!(steps, expected.map(|(by, size)| (by.to_owned(), size)));
}

/// Stores of every format ever shipped must open. `UPDATE=1` is not offered: a fixture is written once.
#[test]
fn a_store_of_format_1_opens() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/store-1");
    let scratch = Scratch::new();
    let root = scratch.path().join("store");
    let copied = std::process::Command::new("cp").arg("-a").arg(&fixture).arg(&root).status().unwrap();
    assert!(copied.success());
    let store = Store::open(&root).unwrap();
    let image = store.find("registry.example/kept:1").unwrap();
    assert_eq!(image.layers.len(), 1);
    assert_eq!(fs::read(store.layer_dirs(&image)[0].join("etc/kept")).unwrap(), b"kept");
    assert_eq!(image.repo_digests.len(), 1);
    assert!(store.lost().is_empty());
}
