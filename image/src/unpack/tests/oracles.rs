//! What other programs and the kernel make of the same bytes. Left out where they are not there.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::*;

fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// A tree with one of everything.
fn tree(root: &Path) {
    let deep = root.join("d".repeat(200)).join("e".repeat(200));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("f".repeat(150)), "deep").unwrap();
    fs::write(root.join("plain"), vec![7; 100_000]).unwrap();
    fs::hard_link(root.join("plain"), root.join("again")).unwrap();
    std::os::unix::fs::symlink("/t".repeat(150), root.join("link")).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"x", 3_000_000).unwrap();
    sparse.set_len(5_000_000).unwrap();
    let root = root.display();
    for line in [
        format!("mkfifo {root}/fifo"),
        format!("mknod {root}/null c 1 3"),
        format!("chown 3000000:70000 {root}/plain"),
        format!("touch -d 1960-05-05T05:05:05.123456789 {root}/plain"),
        format!("touch {root}/a\\ b"),
        format!("chmod 6755 {root}/sparse"),
    ] {
        assert!(succeeds(Command::new("sh").args(["-c", &line])), "{line}");
    }
}

#[test]
fn archives_of_every_format_compare_equal_in_gnu_tar_and_are_made_again_exactly() {
    if !succeeds(Command::new("tar").arg("--version")) {
        return;
    }
    let scratch = Scratch::new();
    let source = scratch.empty("source");
    tree(&source);
    for options in [
        &["--format=gnu"][..],
        &["--format=gnu", "--sparse"],
        &["--format=oldgnu", "--sparse"],
        &["--format=pax"],
        &["--format=pax", "--sparse", "--sparse-version=0.0"],
        &["--format=pax", "--sparse", "--sparse-version=0.1"],
        &["--format=pax", "--sparse", "--sparse-version=1.0"],
        &["--format=ustar"],
        &["--format=v7"],
    ] {
        let archive = scratch.path().join("archive.tar");
        // Older formats leave out what they cannot hold, and say so by their status.
        let _ = Command::new("tar")
            .args(options)
            .arg("-cf")
            .arg(&archive)
            .arg("-C")
            .arg(&source)
            .arg(".")
            .output();
        let bytes = fs::read(&archive).unwrap();
        let tree = tempfile::tempdir_in(scratch.path()).unwrap();
        let recipe = tree.path().with_extension("recipe");
        let root = File::open(tree.path()).unwrap();
        let any = Digest::of(b"");
        let expected = Expected {
            compression: Compression::None,
            size: bytes.len() as u64,
            diff_id: &any,
            lowest: false,
        };
        let writing = File::create(&recipe).unwrap();
        let (digest, outcome) =
            unpack(&bytes[..], root.try_clone().unwrap().into(), Some(writing), &expected).unwrap();
        let compared =
            Command::new("tar").arg("-df").arg(&archive).arg("-C").arg(tree.path()).output().unwrap();
        assert!(compared.status.success(), "{options:?}: {}", String::from_utf8_lossy(&compared.stdout));
        let mut again = Vec::new();
        replay(File::open(&recipe).unwrap(), std::os::fd::AsFd::as_fd(&root), &mut again).unwrap();
        assert_eq!(Digest::of(&again), digest, "{options:?}");
        assert_eq!((outcome.length, outcome.exact), (bytes.len() as u64, true), "{options:?}");
        assert!(fs::metadata(&recipe).unwrap().len() < 16_384, "content went into the recipe");
    }
}

#[test]
fn the_kernel_shows_what_the_layers_mean() {
    let scratch = Scratch::new();
    let layers = [
        Forge::new()
            .dir("kept")
            .file("kept/a", "1")
            .file("kept/b", "1")
            .dir("emptied")
            .file("emptied/old", "1")
            .dir("replaced")
            .file("replaced/old", "1")
            .file("gone", "1"),
        Forge::new()
            .dir("kept")
            .file("kept/.wh.a", "")
            .file("kept/c", "2")
            .dir("emptied")
            .file("emptied/.wh.old2", "")
            .file("emptied/.wh..wh..opq", "")
            .file("emptied/new", "2")
            .file(".wh.replaced", "")
            .file("replaced/new", "2")
            .file(".wh.gone", ""),
    ];
    let mut lower = Vec::new();
    for (number, layer) in layers.into_iter().enumerate() {
        let tree = scratch.empty(&format!("l{number}"));
        let bytes = layer.finish();
        let any = Digest::of(b"");
        let expected = Expected {
            compression: Compression::None,
            size: bytes.len() as u64,
            diff_id: &any,
            lowest: number == 0,
        };
        unpack(&bytes[..], File::open(&tree).unwrap().into(), None, &expected).unwrap();
        lower.insert(0, tree.display().to_string());
    }
    let merged = scratch.empty("merged");
    let options = format!("ro,lowerdir={}", lower.join(":"));
    if !succeeds(Command::new("mount").args(["-t", "overlay", "-o", &options, "overlay"]).arg(&merged)) {
        return;
    }
    let list = crate::testing::scratch::listing(&merged, false);
    assert!(succeeds(Command::new("umount").arg(&merged)));
    let names: Vec<&str> = list.keys().map(String::as_str).collect();
    assert_eq!(names, ["", "emptied", "emptied/new", "kept", "kept/b", "kept/c", "replaced", "replaced/new"]);
}
