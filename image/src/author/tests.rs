//! Images made of trees and of other images, and what they are good for afterwards.

use std::fs;

use super::*;
use crate::archive;
use crate::testing::{Forge, ImageForge, Scratch};

fn store(scratch: &Scratch) -> Store {
    Store::open(&scratch.empty("store")).unwrap()
}

fn draft() -> Draft {
    Draft {
        run: RunConfig { cmd: Some(vec!["sh".into()]), ..RunConfig::default() },
        platform: "linux/amd64".parse().unwrap(),
        author: "me".into(),
        comment: "why".into(),
        created_by: "sh -c make".into(),
    }
}

/// Loads an image of one layer.
fn parent(store: &Store) -> Image {
    let tar = Forge::new().dir("etc").file("etc/a", "a").finish();
    let image = ImageForge::new().layer(&tar);
    let mut forge = Forge::new().file("0.tar", &tar).file("c.json", image.config());
    forge = forge.file("manifest.json", r#"[{"Config":"c.json","RepoTags":["base:1"],"Layers":["0.tar"]}]"#);
    let bytes = forge.finish();
    archive::load(store, &bytes[..], &"linux/amd64".parse().unwrap()).unwrap().remove(0).image
}

#[test]
fn an_image_of_a_file_system_is_saved_and_loaded_again() {
    let scratch = Scratch::new();
    let store = store(&scratch);
    let tar = Forge::new().dir("bin").file("bin/sh", "#!").finish();
    let layer = store.make_layer(None, &crate::testing::forge::gzip(&tar)[..]).unwrap();
    let image = store.make_image(None, Some(&layer), &draft()).unwrap();
    assert_eq!(image.config.rootfs.diff_ids, [Digest::of(&tar)]);
    assert_eq!((image.config.author.as_str(), image.config.os.as_str()), ("me", "linux"));
    assert_eq!(image.config.history[0].comment, "why");
    let mut saved = Vec::new();
    archive::save(&store, &[image.id.to_string()], &mut saved).unwrap();
    let other = Scratch::new();
    let second = self::store(&other);
    let loaded = archive::load(&second, &saved[..], &"linux/amd64".parse().unwrap()).unwrap().remove(0);
    assert_eq!(loaded.image.id, image.id);
    assert_eq!(fs::read(second.layer_dirs(&loaded.image)[0].join("bin/sh")).unwrap(), b"#!");
    scratch.assert_canary();
}

#[test]
fn a_child_has_its_parents_layers_and_one_more() {
    let scratch = Scratch::new();
    let store = store(&scratch);
    let parent = parent(&store);
    // The archive leaves out `etc`, whose attributes then come from the parent.
    let tar = Forge::new().file("etc/b", "b").file("etc/.wh.a", "").finish();
    let layer = store.make_layer(Some(&parent), &tar[..]).unwrap();
    let image = store.make_image(Some(&parent), Some(&layer), &draft()).unwrap();
    assert_eq!(image.layers.len(), 2);
    assert_eq!(image.layers[0], parent.layers[0]);
    let sizes: Vec<(String, u64)> =
        store.history(&image).into_iter().map(|step| (step.line.comment, step.size)).collect();
    assert_eq!(
        sizes,
        [("why".to_owned(), 1), (String::new(), 1)],
        "a parent without history keeps its place"
    );
    assert_eq!(image.config.config.cmd, Some(vec!["sh".to_owned()]));
    // The parent may go: its layer stays for the child.
    store.remove("base:1", false, &|_| crate::Use::Free).unwrap();
    assert!(store.layer_dirs(&image)[0].join("etc/a").exists());
}

#[test]
fn without_changes_there_is_no_new_layer() {
    let scratch = Scratch::new();
    let store = store(&scratch);
    let parent = parent(&store);
    let image = store.make_image(Some(&parent), None, &draft()).unwrap();
    assert_eq!(image.layers, parent.layers);
    assert!(image.config.history.last().unwrap().empty_layer);
    assert_ne!(image.id, parent.id);
}

#[test]
fn a_layer_nobody_used_goes_with_the_next_sweep() {
    let scratch = Scratch::new();
    let store = store(&scratch);
    let tar = Forge::new().file("f", vec![7; 1000]).finish();
    drop(store.make_layer(None, &tar[..]).unwrap());
    assert_eq!(store.disk_usage(), 1000);
    store.prune(false, &|_| crate::Use::Free).unwrap();
    assert_eq!(store.disk_usage(), 0);
}

#[test]
fn what_is_no_archive_leaves_nothing_behind() {
    let scratch = Scratch::new();
    let store = store(&scratch);
    let error = store.make_layer(None, &b"no archive at all"[..]).err().unwrap();
    assert!(matches!(error, AuthorError::Layer(PullError::Unpack { .. })), "{error:?}");
    store.settle();
    assert_eq!(fs::read_dir(store.root().join("layers")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(store.root().join("staging")).unwrap().count(), 0);
}
