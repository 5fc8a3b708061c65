//! Pulls from the registry everybody runs, of images other programs made. Left out where those are not installed.

use std::fs;
use std::process::Command;

use super::*;
use crate::testing::distribution::{Distribution, is_installed, layout, run};
use crate::testing::forge::{self, ZSTD_LAYER};
use crate::testing::registry::{insecure, no_names};
use crate::testing::scratch::listing;
use crate::testing::{Forge, Head, ImageForge, Listing, Scratch};

/// One layer with every ordinary kind of entry.
fn rich_tar() -> Vec<u8> {
    let long = format!("usr/share/{}", "long-name-".repeat(20));
    Forge::new()
        .entry(Head::new(b'5', "./").mode(0o755).mtime(1_234_567_890), b"")
        .entry(Head::new(b'5', "tmp").mode(0o1777), b"")
        .dir("usr")
        .dir("usr/bin")
        .dir("usr/share")
        .entry(Head::new(b'0', "usr/bin/su").mode(0o4755), b"#!set-user-id")
        .entry(Head::new(b'0', "usr/bin/owned").owner(1000, 2_100_000).mode(0o640), &vec![7; 100_000])
        .hard_link("usr/bin/again", "usr/bin/owned")
        .symlink("bin", "usr/bin")
        .symlink("absolute", "/usr/bin/su")
        .dir("dev")
        .entry(Head::new(b'3', "dev/null").device(1, 3).mode(0o666), b"")
        .entry(Head::new(b'4', "dev/sda").device(8, 0).mode(0o660).owner(0, 6), b"")
        .entry(Head::new(b'6', "dev/fifo").mode(0o600), b"")
        .pax(&[("path", long.as_bytes()), ("mtime", b"1500000000.123456789")])
        .file("short", "pax")
        .pax(&[("SCHILY.xattr.user.note", b"a=b\nc"), ("mtime", b"-5.5")])
        .file("usr/noted", "")
        .pax(&[("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0")])
        .file("usr/bin/ping", "capable")
        .finish()
}

async fn pull(registry: &Distribution, scratch: &Scratch, name: &str) -> (Store, Image) {
    let store = Store::open(&scratch.path().join("store")).unwrap();
    let puller =
        Puller::new(store.clone(), insecure(std::slice::from_ref(&registry.host)), no_names()).unwrap();
    let reference = format!("{}/{name}", registry.host).parse().unwrap();
    let image = puller.pull(&reference, &"linux/amd64".parse().unwrap(), None, None).await.unwrap();
    (store, image)
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_all_formats_come_from_the_distribution_registry() {
    let scratch = Scratch::new();
    let Some(registry) = Distribution::start(&scratch) else { return };
    let tar = rich_tar();
    let zstd = zstd::encode_all(&tar[..], 3).unwrap();
    let image = ImageForge::new().packed_layer(ZSTD_LAYER, zstd, &tar);
    registry.push(&layout(&scratch, "zstd", &image), "a/zstd:1", &[]);
    let image = ImageForge::new().layer(&tar);
    let path = layout(&scratch, "gzip", &image);
    registry.push(&path, "a/oci:1", &["--format=oci"]);
    registry.push(&path, "a/docker:1", &["--format=v2s2"]);
    for name in ["a/zstd:1", "a/oci:1", "a/docker:1"] {
        let (store, image) = pull(&registry, &scratch, name).await;
        let list = listing(&store.layer_dirs(&image)[0], false);
        assert!(list["usr/bin/su"].contains(" 4755 0:0 "), "{}", list["usr/bin/su"]);
        assert_eq!(list["bin"].split(" 777 ").next(), Some("link usr/bin"));
        // All three are the same layer, however it was packed.
        assert_eq!(std::fs::read_dir(store.root().join("layers")).unwrap().count(), 1);
    }
    scratch.assert_canary();
}

/// What another program makes of the same layer must not differ in anything.
#[test]
fn layers_unpack_as_umoci_unpacks_them() {
    if !is_installed("umoci") {
        return;
    }
    let scratch = Scratch::new();
    let tar = rich_tar();
    let path = layout(&scratch, "image", &ImageForge::new().layer(&tar));
    let theirs = scratch.path().join("theirs");
    run(Command::new("umoci")
        .args(["raw", "unpack", "--image"])
        .arg(format!("{}:latest", path.display()))
        .arg(&theirs));
    let ours = scratch.empty("ours");
    let root = fs::File::open(&ours).unwrap().into();
    let expected = crate::unpack::Expected {
        compression: crate::manifest::Compression::Gzip,
        size: tar.len() as u64,
        diff_id: &Digest::of(b""),
        lowest: true,
    };
    crate::unpack::unpack(&forge::gzip(&tar)[..], root, None, &expected).unwrap();
    let (ours, theirs): (Listing, Listing) = (listing(&ours, false), listing(&theirs, false));
    for (path, line) in &theirs {
        assert_eq!(ours.get(path), Some(line), "{path}");
    }
    assert_eq!(ours.len(), theirs.len());
}
