//! Archives nobody would write: damaged in random places, and put together of random parts. Whatever comes, loading
//! ends with an answer, touches nothing outside the store, and leaves no half-made thing in it.

use std::fs;

use proptest::prelude::*;

use super::*;
use crate::archive::save;
use crate::platform::Platform;
use crate::store::Store;
use crate::testing::{Forge, ImageForge, Scratch};

const SHA: &str = "sha256:";

/// Loads and checks what must hold in any case.
fn survives(archive: &[u8]) {
    let scratch = Scratch::new();
    let store = Store::open(&scratch.empty("store")).unwrap();
    let platform: Platform = "linux/amd64".parse().unwrap();
    let result = load(&store, archive, &platform);
    scratch.assert_canary();
    assert_eq!(fs::read_dir(store.root().join("staging")).unwrap().count(), 0, "the spool was left behind");
    let images = store.list();
    if let Ok(loaded) = &result {
        assert!(!loaded.is_empty() && images.len() <= loaded.len());
    }
    for image in images {
        assert_eq!(store.layer_dirs(&image).iter().filter(|tree| !tree.is_dir()).count(), 0);
        // What was taken in can be given out again, or it is told why not.
        match save(&store, &[image.id.to_string()], &mut std::io::sink()) {
            Ok(()) | Err(SaveError::Inexact(_)) => {}
            Err(error) => panic!("an image that was loaded cannot be saved: {error}"),
        }
    }
}

fn hex(digest: &str) -> &str {
    digest.strip_prefix(SHA).unwrap()
}

/// A whole archive in both formats at once.
fn whole() -> Vec<u8> {
    let tar = Forge::new().dir("etc").file("etc/a", "a").symlink("l", "etc/a").finish();
    let image = ImageForge::new().layer(&tar).layer(&Forge::new().file("etc/.wh.a", "").finish());
    let manifest = image.manifest();
    let digest = Digest::of(&manifest);
    let mut forge = Forge::new();
    for (digest, bytes) in image.all_blobs() {
        forge = forge.file(format!("blobs/sha256/{}", hex(&digest)), bytes);
    }
    let line = format!(
        r#"{{"mediaType":"{}","digest":"{digest}","size":{},"annotations":{{"io.containerd.image.name":"demo:1"}}}}"#,
        crate::manifest::OCI_MANIFEST,
        manifest.len()
    );
    let layers: Vec<String> =
        image.blobs.keys().map(|digest| format!("\"blobs/sha256/{}\"", hex(digest))).collect();
    let docker = format!(
        r#"[{{"Config":"blobs/sha256/{}","RepoTags":["demo:2"],"Layers":[{}]}}]"#,
        image.id().hex(),
        layers.join(",")
    );
    forge
        .file(format!("blobs/sha256/{}", digest.hex()), &manifest)
        .file("manifest.json", docker)
        .file("index.json", format!(r#"{{"schemaVersion":2,"manifests":[{line}]}}"#))
        .file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#)
        .finish()
}

/// Texts that stand where a path, a digest or a document is expected.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("../../etc/shadow".to_owned()),
        Just("/etc/shadow".to_owned()),
        Just("c.json".to_owned()),
        Just("l.tar".to_owned()),
        Just("sha256:../../x".to_owned()),
        Just(format!("{SHA}{}", "a".repeat(64))),
        Just("demo:1".to_owned()),
        Just(String::new()),
        "[a-z./:@-]{0,40}",
        any::<String>(),
    ]
}

/// One file of an archive: ordinary names with odd content, and the other way round.
fn part() -> impl Strategy<Value = (u8, String, Vec<u8>)> {
    let name = prop_oneof![
        Just("manifest.json".to_owned()),
        Just("index.json".to_owned()),
        Just("oci-layout".to_owned()),
        Just("repositories".to_owned()),
        text(),
    ];
    let json = (text(), text(), text()).prop_map(|(a, b, c)| {
        let value = serde_json::json!([{ "Config": a, "RepoTags": [b.clone()], "Layers": [c.clone()] }]);
        value.to_string().into_bytes()
    });
    let index = (text(), text()).prop_map(|(digest, name)| {
        serde_json::json!({ "manifests": [{ "digest": digest,
            "annotations": { "io.containerd.image.name": name } }] })
        .to_string()
        .into_bytes()
    });
    let config = Just(ImageForge::new().config());
    let content = prop_oneof![json, index, config, prop::collection::vec(any::<u8>(), 0..200)];
    let kind =
        prop_oneof![8 => Just(b'0'), 1 => Just(b'1'), 1 => Just(b'2'), 1 => Just(b'5'), 1 => Just(b'3')];
    (kind, name, content)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn damaged_archives_do_no_harm(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = whole();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        survives(&bytes);
    }

    #[test]
    fn archives_of_random_parts_do_no_harm(parts in prop::collection::vec(part(), 0..6), packed in any::<bool>()) {
        let mut forge = Forge::new();
        for (kind, name, content) in parts {
            let head = crate::testing::forge::Head::new(kind, name);
            forge = match kind {
                b'0' => forge.entry(head, &content),
                _ => forge.entry(head.link(&content[..content.len().min(99)]), b""),
            };
        }
        let bytes = forge.finish();
        survives(&if packed { crate::testing::forge::gzip(&bytes) } else { bytes });
    }

    #[test]
    fn random_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        survives(&bytes);
    }
}

#[test]
fn the_archive_that_is_damaged_is_a_good_one() {
    let scratch = Scratch::new();
    let store = Store::open(&scratch.empty("store")).unwrap();
    let loaded = load(&store, &whole()[..], &"linux/amd64".parse().unwrap()).unwrap();
    assert_eq!(loaded[0].names[0].familiar(), "demo:1", "an archive that is a layout is read as one");
}
