//! Archives other programs wrote, and ones made to do harm.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::*;
use crate::digest::Digest;
use crate::platform::Platform;
use crate::registry::ContentError;
use crate::store::Store;
use crate::testing::scratch::listing;
use crate::testing::{Forge, ImageForge, Scratch};

fn amd64() -> Platform {
    "linux/amd64".parse().unwrap()
}

fn layers() -> (Vec<u8>, Vec<u8>) {
    let lower = Forge::new().dir("etc").file("etc/a", "a").finish();
    let upper = Forge::new().file("etc/b", "b").file("etc/.wh.a", "").finish();
    (lower, upper)
}

fn image() -> ImageForge {
    let (lower, upper) = layers();
    ImageForge::new().layer(&lower).layer(&upper)
}

/// An OCI layout as an archive, with `name` as its only name.
fn oci(image: &ImageForge, name: &str) -> Forge {
    let manifest = image.manifest();
    let mut forge = Forge::new();
    for (digest, bytes) in image.all_blobs() {
        forge = forge.file(format!("blobs/sha256/{}", digest.strip_prefix("sha256:").unwrap()), bytes);
    }
    let digest = Digest::of(&manifest);
    let line = format!(
        r#"{{"mediaType":"{}","digest":"{digest}","size":{},"annotations":{{"io.containerd.image.name":"{name}"}}}}"#,
        crate::manifest::OCI_MANIFEST,
        manifest.len()
    );
    forge
        .file(format!("blobs/sha256/{}", digest.hex()), &manifest)
        .file("index.json", format!(r#"{{"schemaVersion":2,"manifests":[{line}]}}"#))
        .file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#)
}

/// Docker's older format, with layers as plain tar.
fn docker(image: &ImageForge, tars: &[&[u8]], tag: &str) -> Forge {
    let mut forge = Forge::new();
    let mut paths = Vec::new();
    for (number, tar) in tars.iter().enumerate() {
        forge = forge.file(format!("l{number}/layer.tar"), tar);
        paths.push(format!("\"l{number}/layer.tar\""));
    }
    let config = format!("{}.json", image.id().hex());
    let text = format!(r#"[{{"Config":"{config}","RepoTags":["{tag}"],"Layers":[{}]}}]"#, paths.join(","));
    forge.file(config, image.config()).file("manifest.json", text)
}

fn try_load(scratch: &Scratch, archive: &[u8]) -> (Store, Result<Vec<Loaded>, LoadError>) {
    let store = Store::open(&scratch.empty("store")).unwrap();
    let result = load(&store, archive, &amd64());
    assert_eq!(fs::read_dir(store.root().join("staging")).unwrap().count(), 0, "the spool was left behind");
    scratch.assert_canary();
    (store, result)
}

fn refused(archive: &[u8]) -> LoadError {
    let (store, result) = try_load(&Scratch::new(), archive);
    assert!(store.list().is_empty());
    result.unwrap_err()
}

#[test]
fn both_formats_give_the_same_image_packed_or_not() {
    let (lower, upper) = layers();
    let plain = oci(&image(), "demo:1").finish();
    let packed = crate::testing::forge::gzip(&plain);
    let older = docker(&image(), &[&lower, &upper], "demo:1").finish();
    for archive in [&plain, &packed, &zstd::encode_all(&plain[..], 1).unwrap(), &older] {
        let scratch = Scratch::new();
        let (store, result) = try_load(&scratch, archive);
        let loaded = result.unwrap();
        assert_eq!(loaded[0].image.id, image().id());
        assert_eq!(loaded[0].names[0].familiar(), "demo:1");
        let found = store.find("demo:1").unwrap();
        assert_eq!(found.names.len(), 1);
        assert!(found.repo_digests.is_empty(), "it came from no registry");
        let dirs = store.layer_dirs(&found);
        assert_eq!(fs::read(dirs[0].join("etc/a")).unwrap(), b"a");
        assert!(listing(&dirs[1], false)["etc/a"].starts_with("char 0:0"));
        // Again: nothing new.
        load(&store, &archive[..], &amd64()).unwrap();
        assert_eq!(fs::read_dir(store.root().join("layers")).unwrap().count(), 2);
        let root = store.root().to_owned();
        drop(store);
        assert!(Store::open(&root).unwrap().find("demo:1").is_ok(), "it survives a restart");
    }
}

#[test]
fn archives_skopeo_writes_are_loaded() {
    if Command::new("skopeo").arg("--version").output().is_err() {
        return;
    }
    let scratch = Scratch::new();
    let layout = scratch.empty("layout");
    let tar = scratch.path().join("layout.tar");
    fs::write(&tar, oci(&image(), "latest").finish()).unwrap();
    let run = |command: &mut Command| {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    run(Command::new("tar").arg("-xf").arg(&tar).arg("-C").arg(&layout));
    for (number, target) in ["docker-archive", "oci-archive"].iter().enumerate() {
        let archive = scratch.path().join(target);
        run(Command::new("skopeo")
            .args(["--insecure-policy", "copy", "-q"])
            .arg(format!("oci:{}", layout.display()))
            .arg(format!("{target}:{}:demo/app:{number}", archive.display())));
        let store = Store::open(&scratch.empty(&format!("store{number}"))).unwrap();
        let loaded = load(&store, fs::File::open(&archive).unwrap(), &amd64()).unwrap();
        assert_eq!(store.layer_dirs(&loaded[0].image).len(), 2, "{target}");
        assert!(store.find(&format!("demo/app:{number}")).is_ok(), "{target}");
    }
}

#[test]
fn names_in_an_archive_never_become_paths() {
    let (lower, upper) = layers();
    let good = docker(&image(), &[&lower, &upper], "demo:1").finish();
    for (from, to) in [
        ("l0/layer.tar\",", "../../../../etc/shadow\","),
        ("l0/layer.tar\",", "/etc/shadow\","),
        ("l0/layer.tar\",", "missing\","),
    ] {
        // The reference in manifest.json changes, the file's name in the archive does not.
        let text = format!(
            r#"[{{"Config":"{}.json","RepoTags":[],"Layers":["l0/layer.tar","l1/layer.tar"]}}]"#,
            image().id().hex()
        );
        let archive = Forge::new()
            .file("l1/layer.tar", &upper)
            .file(format!("{}.json", image().id().hex()), image().config())
            .file("manifest.json", text.replace(from, to))
            .finish();
        assert!(matches!(refused(&archive), LoadError::Layout { .. }), "{to}");
    }
    let canary = Scratch::new();
    let secret = canary.canary().join("file").display().to_string();
    for link in [secret.as_str(), "../../../../etc/shadow", "../l0/layer.tar"] {
        let archive = Forge::new().symlink("l0/layer.tar", link).raw(&good).finish();
        assert!(matches!(refused(&archive), LoadError::Layout { .. }), "{link}");
    }
    for name in ["../escape", "a/../../escape"] {
        let archive = Forge::new().file(name, "x").raw(&good).finish();
        assert!(matches!(refused(&archive), LoadError::Layout { .. }), "{name}");
    }
    assert!(!Path::new("/escape").exists());
}

#[test]
fn a_layer_that_occurs_twice_may_be_a_link_within_the_archive() {
    let (lower, _) = layers();
    let image = ImageForge::new().layer(&lower).layer(&lower);
    let config = format!("{}.json", image.id().hex());
    let text = format!(r#"[{{"Config":"{config}","RepoTags":null,"Layers":["a/layer.tar","b/layer.tar"]}}]"#);
    let archive = Forge::new()
        .file("a/layer.tar", &lower)
        .symlink("b/layer.tar", "../a/layer.tar")
        .file(config, image.config())
        .file("manifest.json", text)
        .finish();
    let (_, result) = try_load(&Scratch::new(), &archive);
    let loaded = result.unwrap();
    assert!(loaded[0].names.is_empty());
    assert_eq!(loaded[0].image.layers[0], loaded[0].image.layers[1]);
}

#[test]
fn archives_that_lie_are_refused() {
    let (lower, upper) = layers();
    let wrong = docker(&image(), &[&upper, &lower], "demo:1").finish();
    assert!(matches!(refused(&wrong), LoadError::Image(PullError::Content(ContentError::DiffId { .. }))));
    let mut other = image();
    let first = other.blobs.keys().next().unwrap().clone();
    let last = other.blobs.get_mut(&first).unwrap().last_mut().unwrap();
    *last ^= 1;
    assert!(matches!(
        refused(&oci(&other, "demo:1").finish()),
        LoadError::Image(PullError::Content(ContentError::Digest { .. }))
    ));
    for archive in [
        Forge::new().finish(),
        Forge::new().file("manifest.json", "[]").finish(),
        Forge::new().file("manifest.json", "{}").finish(),
        Forge::new().file("oci-layout", "{}").file("index.json", r#"{"manifests":[]}"#).finish(),
        Forge::new().file("manifest.json", "[]").file("manifest.json", "[]").finish(),
        b"not an archive".to_vec(),
    ] {
        refused(&archive);
    }
}

#[test]
fn what_is_saved_loads_again_as_the_same_image() {
    let rich = crate::testing::Forge::new()
        .dir("d")
        .file("d/empty", "")
        .file("d/big", vec![3; 200_000])
        .hard_link("d/again", "d/big")
        .symlink("l", "d/big")
        .pax(&[("mtime", b"1.5"), ("SCHILY.xattr.user.k", b"v")])
        .file("d/noted", "x")
        .file("implied/file", "y")
        .file(".wh.gone", "content of a whiteout")
        .finish();
    let trailing = [&rich[..], &[0; 8192], b"bytes after the end"].concat();
    let (lower, _) = layers();
    let image = ImageForge::new().layer(&lower).layer(&trailing).layer(&lower);
    let scratch = Scratch::new();
    let (store, result) = try_load(&scratch, &oci(&image, "demo:1").finish());
    let loaded = result.unwrap();
    store.tag(&loaded[0].image.id, &"other:2".parse().unwrap()).unwrap();
    let mut archive = Vec::new();
    save(&store, &["demo:1".into(), "other:2".into(), "demo:1".into()], &mut archive).unwrap();
    let again = Scratch::new();
    let (copy, result) = try_load(&again, &archive);
    let names: Vec<String> = result.unwrap()[0].names.iter().map(Reference::familiar).collect();
    assert_eq!(names, ["demo:1", "other:2"]);
    let (before, after) = (store.find("demo:1").unwrap(), copy.find("other:2").unwrap());
    assert_eq!(before.id, after.id, "the id is that of the configuration, byte for byte");
    for (one, other) in store.layer_dirs(&before).iter().zip(copy.layer_dirs(&after)) {
        let strip = |path: &Path| {
            let mut list = listing(path, false);
            // What nobody gave a time has that of its making.
            list.retain(|path, _| !["implied", "gone", ""].contains(&path.as_str()));
            list
        };
        assert_eq!(strip(one), strip(&other));
    }
    // By id there is no name.
    let mut nameless = Vec::new();
    save(&store, &[before.id.short().to_owned()], &mut nameless).unwrap();
    let (_, result) = try_load(&Scratch::new(), &nameless);
    assert!(result.unwrap()[0].names.is_empty());
    assert!(matches!(save(&store, &["missing".into()], &mut Vec::new()), Err(SaveError::Find(_))));
}

#[test]
fn other_programs_read_what_is_saved() {
    if Command::new("skopeo").arg("--version").output().is_err() {
        return;
    }
    let scratch = Scratch::new();
    let (store, result) = try_load(&scratch, &oci(&image(), "demo/app:1").finish());
    let id = result.unwrap()[0].image.id.clone();
    let file = scratch.path().join("saved.tar");
    save(&store, &["demo/app:1".into()], fs::File::create(&file).unwrap()).unwrap();
    for transport in ["docker-archive", "oci-archive"] {
        let source = format!("{transport}:{}", file.display());
        let target = scratch.empty(transport);
        let output = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "-q", &source])
            .arg(format!("dir:{}", target.display()))
            .output()
            .unwrap();
        assert!(output.status.success(), "{transport}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(target.join(id.hex()).exists(), "{transport}: the configuration is another");
    }
}

#[test]
fn a_bare_name_stands_for_all_its_tags() {
    let scratch = Scratch::new();
    let (store, result) = try_load(&scratch, &oci(&image(), "demo/app:1").finish());
    let id = result.unwrap()[0].image.id.clone();
    for name in ["demo/app:2", "demo/apple:1"] {
        store.tag(&id, &name.parse().unwrap()).unwrap();
    }
    let file = scratch.path().join("saved.tar");
    save(&store, &["demo/app".into()], fs::File::create(&file).unwrap()).unwrap();
    let other = Scratch::new();
    let (_, result) = try_load(&other, &fs::read(&file).unwrap());
    let names: Vec<String> = result.unwrap()[0].names.iter().map(Reference::familiar).collect();
    assert_eq!(names, ["demo/app:1", "demo/app:2"]);
    if Command::new("skopeo").arg("--version").output().is_err() {
        return;
    }
    for source in ["docker-archive:FILE:demo/app:2", "docker-archive:FILE:demo/app:1"] {
        let source = source.replace("FILE", &file.display().to_string());
        let output = Command::new("skopeo").args(["inspect", "--config", &source]).output().unwrap();
        assert!(output.status.success(), "{source}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(String::from_utf8_lossy(&output.stdout).contains("2024-01-02T03:04:05Z"));
    }
}

#[test]
fn a_load_tells_of_layers_and_of_names_it_takes() {
    let scratch = Scratch::new();
    let (store, result) = try_load(&scratch, &oci(&image(), "demo:1").finish());
    let first = result.unwrap()[0].image.id.clone();
    let other = ImageForge::new().layer(&Forge::new().file("f", vec![1; 3 << 20]).finish());
    let archive = oci(&other, "demo:1").finish();
    let (mut layers, mut images) = (Vec::new(), 0);
    let loaded = load_telling(&store, &archive[..], &amd64(), &mut |step| match step {
        Step::Layer { current, total, .. } => layers.push((current, total)),
        Step::Image(_) => images += 1,
    })
    .unwrap();
    let name: Reference = "demo:1".parse().unwrap();
    assert_eq!(loaded[0].taken, [(name, first)]);
    assert_eq!(images, 1);
    let (last, total) = *layers.last().unwrap();
    assert_eq!(last, total, "all of the layer was read");
    // What is there already is not unpacked again.
    let again = load_telling(&store, &archive[..], &amd64(), &mut |step| {
        assert!(matches!(step, Step::Image(_)), "{step:?}");
    });
    assert!(again.unwrap()[0].taken.is_empty());
}

#[test]
fn layers_that_cannot_be_made_again_are_told_before_anything_is_written() {
    let twice = Forge::new().file("f", "first").file("f", "second").finish();
    let scratch = Scratch::new();
    let (store, result) = try_load(&scratch, &oci(&ImageForge::new().layer(&twice), "demo:1").finish());
    result.unwrap();
    let mut archive = Vec::new();
    assert!(matches!(save(&store, &["demo:1".into()], &mut archive), Err(SaveError::Inexact(_))));
    assert!(archive.is_empty());
}

/// A reader that went away.
struct Full;

impl std::io::Write for Full {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::BrokenPipe.into())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_layer_damaged_in_the_store_is_noticed() {
    let scratch = Scratch::new();
    let (store, result) = try_load(&scratch, &oci(&image(), "demo:1").finish());
    let file = store.layer_dirs(&result.unwrap()[0].image)[0].join("etc/a");
    for content in ["b", "longer", ""] {
        fs::write(&file, content).unwrap();
        let saved = save(&store, &["demo:1".into()], &mut Vec::new());
        assert!(matches!(saved, Err(SaveError::Damaged(_))), "{content:?}: {saved:?}");
    }
    assert!(matches!(save(&store, &["demo:1".into()], Full), Err(SaveError::Write(_))));
}
