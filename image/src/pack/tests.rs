//! Trees packed and unpacked again: what comes out is what went in.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::*;
use crate::testing::Scratch;
use crate::testing::scratch::listing;
use crate::unpack;

fn packed(tree: &Path, keep: &dyn Fn(&[u8]) -> bool) -> Result<Vec<u8>, PackError> {
    let mut bytes = Vec::new();
    let root = File::open(tree).unwrap();
    pack(root.as_fd(), &mut bytes, keep).map(|()| bytes)
}

/// Unpacks as a layer above others.
fn unpacked(scratch: &Scratch, bytes: &[u8]) -> std::path::PathBuf {
    let target = scratch.empty("out");
    let root = File::open(&target).unwrap();
    unpack::unpack_any(bytes, root.into(), None, false).unwrap();
    target
}

/// A listing without the top, whose attributes are not in the archive.
fn below(tree: &Path) -> crate::testing::scratch::Listing {
    let mut all = listing(tree, false);
    all.remove("");
    all
}

fn filled(scratch: &Scratch) -> std::path::PathBuf {
    let tree = scratch.empty("tree");
    let deep = tree.join("d".repeat(120)).join("e".repeat(120));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("long"), "x").unwrap();
    fs::create_dir(tree.join("empty")).unwrap();
    fs::set_permissions(tree.join("empty"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(tree.join("file"), vec![7; 1500]).unwrap();
    fs::set_permissions(tree.join("file"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::write(tree.join("block"), vec![1; 512]).unwrap();
    fs::hard_link(tree.join("file"), tree.join("link")).unwrap();
    std::os::unix::fs::symlink("l".repeat(300), tree.join("sym")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, tree.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0)
        .unwrap();
    // Where the file system has such attributes.
    let _ = rustix::fs::setxattr(tree.join("file"), "user.a", b"=\n\0", rustix::fs::XattrFlags::empty());
    tree
}

#[test]
fn every_kind_of_file_comes_back_as_it_was() {
    let scratch = Scratch::new();
    let tree = filled(&scratch);
    let bytes = packed(&tree, &|_| true).unwrap();
    assert_eq!(bytes.len() % 512, 0);
    let out = unpacked(&scratch, &bytes);
    assert_eq!(below(&out), below(&tree));
    let inode = |name: &str| std::os::unix::fs::MetadataExt::ino(&fs::metadata(out.join(name)).unwrap());
    assert_eq!(inode("file"), inode("link"));
    assert_eq!(packed(&tree, &|_| true).unwrap(), bytes, "the same tree gives the same bytes");
}

#[test]
fn other_readers_understand_the_stream() {
    let scratch = Scratch::new();
    let tree = filled(&scratch);
    let archive = scratch.path().join("a.tar");
    fs::write(&archive, packed(&tree, &|_| true).unwrap()).unwrap();
    let listed = std::process::Command::new("tar").arg("-tf").arg(&archive).output();
    let Ok(listed) = listed else { return };
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let names = String::from_utf8(listed.stdout).unwrap();
    assert!(names.lines().any(|line| line.ends_with("/long")), "{names}");
    assert_eq!(names.lines().count(), 9, "{names}");
}

#[test]
fn what_is_not_kept_is_left_out_with_all_below() {
    let scratch = Scratch::new();
    let tree = scratch.empty("tree");
    fs::create_dir_all(tree.join("dev/pts")).unwrap();
    fs::create_dir_all(tree.join("etc")).unwrap();
    fs::write(tree.join("etc/hosts"), "").unwrap();
    fs::write(tree.join("etc/own"), "").unwrap();
    let bytes = packed(&tree, &|path| path != b"dev" && path != b"etc/hosts").unwrap();
    let out = unpacked(&scratch, &bytes);
    assert_eq!(below(&out).keys().collect::<Vec<_>>(), ["etc", "etc/own"]);
}

#[test]
fn a_name_that_would_delete_a_file_is_refused() {
    let scratch = Scratch::new();
    let tree = scratch.empty("tree");
    fs::write(tree.join(".wh.passwd"), "").unwrap();
    assert!(matches!(packed(&tree, &|_| true), Err(PackError::Entry { .. })));
}

#[test]
fn sockets_are_left_out() {
    let scratch = Scratch::new();
    let tree = scratch.empty("tree");
    let _socket = std::os::unix::net::UnixListener::bind(tree.join("s")).unwrap();
    assert_eq!(packed(&tree, &|_| true).unwrap(), [0; 1024]);
}

#[test]
fn whiteouts_and_opaque_directories_survive() {
    let scratch = Scratch::new();
    let tree = scratch.empty("tree");
    fs::create_dir_all(tree.join("etc")).unwrap();
    let gone = tree.join("etc/gone");
    if rustix::fs::mknodat(rustix::fs::CWD, gone, FileType::CharacterDevice, Mode::empty(), 0).is_err() {
        // Only root may make devices.
        return;
    }
    fs::create_dir(tree.join("new")).unwrap();
    fs::write(tree.join("new/f"), "").unwrap();
    let opaque = rustix::fs::XattrFlags::empty();
    if rustix::fs::setxattr(tree.join("new"), "trusted.overlay.opaque", b"y", opaque).is_err() {
        return;
    }
    let bytes = packed(&tree, &|_| true).unwrap();
    let out = unpacked(&scratch, &bytes);
    let (found, wanted) = (below(&out), below(&tree));
    let kind = |line: &String| line.split(" @").next().unwrap_or_default().to_owned();
    assert_eq!(kind(&found["etc/gone"]), kind(&wanted["etc/gone"]));
    assert_eq!(found["new"], wanted["new"]);
    let metacopy = rustix::fs::setxattr(
        tree.join("new/f"),
        "trusted.overlay.metacopy",
        b"",
        rustix::fs::XattrFlags::empty(),
    );
    if metacopy.is_ok() {
        assert!(matches!(packed(&tree, &|_| true), Err(PackError::Entry { .. })));
    }
}

#[test]
fn capabilities_lose_their_namespace() {
    let mut version_3 = vec![1, 0, 0, 3];
    version_3.extend([9; 16]);
    version_3.extend([0, 0, 1, 0]);
    let bare = unrooted(version_3);
    assert_eq!((bare.len(), bare[3]), (20, 2));
    let version_2 = vec![0, 0, 0, 2, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5];
    assert_eq!(unrooted(version_2.clone()), version_2);
}
