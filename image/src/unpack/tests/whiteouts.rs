//! Whiteouts in every order and form. They hide what lower layers have, never what their own layer brings.

use super::*;
use crate::testing::Head;

#[test]
fn a_whiteout_is_the_device_overlayfs_knows() {
    let tried = try_forge(Forge::new().dir("d").file("d/.wh.gone", "").dir("e").file("e/.wh..wh..opq", ""));
    assert!(tried.what("d/gone").unwrap().starts_with("char 0:0"));
    assert!(tried.is_opaque("e"));
    assert!(tried.outcome().whiteouts);
    assert!(!tried.exists("e/.wh..wh..opq") && !tried.exists("d/.wh.gone"));
}

#[test]
fn what_the_layer_brings_is_there_in_either_order() {
    for order in [[0, 1], [1, 0]] {
        let mut parts = [Forge::new().file("f", "new"), Forge::new().file(".wh.f", "")];
        parts.swap(0, order[0]);
        let bytes = parts.iter().map(|part| part.bytes.clone()).collect::<Vec<_>>().concat();
        let tried = try_forge(Forge::new().raw(&bytes));
        assert!(tried.what("f").unwrap().starts_with("file 3 "), "{order:?}");
    }
    let before = try_forge(Forge::new().file(".wh.d", "").dir("d").file("d/x", "x"));
    let after = try_forge(Forge::new().dir("d").file("d/x", "x").file(".wh.d", ""));
    for tried in [before, after] {
        assert!(tried.is_opaque("d"), "a directory would be merged with the one that is hidden");
        assert!(tried.exists("d/x"));
    }
}

#[test]
fn a_file_below_a_whiteout_makes_an_opaque_directory() {
    let tried = try_forge(Forge::new().file(".wh.d", "").file("d/x", "x"));
    assert!(tried.is_opaque("d") && tried.exists("d/x"));
    let replaced = try_forge(Forge::new().file("d", "a file").file("d/x", "x"));
    assert!(replaced.is_opaque("d") && replaced.exists("d/x"));
}

#[test]
fn whiteouts_below_opaque_directories_vanish() {
    let forge = Forge::new()
        .dir("d")
        .file("d/.wh.early", "")
        .dir("d/s")
        .file("d/s/.wh.deep", "")
        .file("d/.wh..wh..opq", "")
        .file("d/.wh.late", "")
        .dir("other")
        .file("other/.wh.kept", "");
    let tried = try_forge(forge);
    for path in ["d/early", "d/late", "d/s/deep"] {
        assert!(!tried.exists(path), "{path} would be listed by overlayfs");
    }
    assert!(tried.exists("other/kept"));
}

#[test]
fn the_lowest_layer_has_nothing_to_hide() {
    let forge =
        Forge::new().dir("d").file("d/.wh.x", "").dir("e").file("e/.wh..wh..opq", "").file(".wh.y", "");
    let tried = try_at(|_| forge.finish(), true);
    assert_eq!(tried.listing().len(), 3);
    assert!(!tried.listing()["e"].contains("opaque"));
    assert!(tried.outcome().whiteouts, "the layer must not be shared with a place where they count");
}

#[test]
fn an_opaque_root_is_reported_because_overlayfs_cannot_mark_it() {
    let tried = try_forge(Forge::new().file(".wh..wh..opq", "").file(".wh.x", "").file("a", "a"));
    assert!(tried.outcome().opaque_root);
    assert_eq!(tried.listing().len(), 2, "whiteouts have nothing left to hide");
}

#[test]
fn malformed_whiteouts_are_refused() {
    for path in [".wh.", "d/.wh.", ".wh..", ".wh...", ".wh..wh..opqX", ".wh.d/x", "d/.wh..wh.x"] {
        assert_refused(&try_forge(Forge::new().dir("d").file(path, "")), path);
    }
}

#[test]
fn whiteouts_may_have_content_and_odd_types() {
    let tried = try_forge(
        Forge::new()
            .file(".wh.a", "content that means nothing")
            .entry(Head::new(b'2', ".wh.b").link("/canary"), b"")
            .dir(".wh.c")
            .file("after", "x"),
    );
    for path in ["a", "b", "c"] {
        assert!(tried.what(path).unwrap().starts_with("char 0:0"), "{path}");
    }
    assert!(tried.exists("after"));
}

#[test]
fn a_whiteout_through_a_link_stays_inside_the_layer() {
    let tried = try_tar(|scratch| {
        let canary = scratch.canary().display().to_string();
        Forge::new().symlink("e", &canary).file("e/.wh.file", "").file("e/.wh..wh..opq", "").finish()
    });
    assert!(tried.result.is_ok());
}

#[test]
fn directories_left_out_are_made_and_told() {
    let tried =
        try_forge(Forge::new().file("a/b/c", "x").dir("a/d").entry(Head::new(b'5', "a/b").mode(0o700), b""));
    assert_eq!(tried.outcome().implied, [b"a".to_vec()], "b came after all");
    assert_eq!(tried.what("a").unwrap(), "dir 755 0:0");
    assert_eq!(tried.what("a/b").unwrap(), "dir 700 0:0");
}

#[test]
fn directories_left_out_take_the_attributes_of_the_nearest_layer() {
    let lowest = try_forge(
        Forge::new()
            .entry(Head::new(b'5', "a").mode(0o711).owner(1, 2).mtime(77), b"")
            .entry(Head::new(b'5', "a/b").mode(0o750).owner(3, 4), b"")
            .entry(Head::new(b'5', "x").mode(0o700), b""),
    );
    let middle = try_forge(
        Forge::new().entry(Head::new(b'5', "a").mode(0o1777).owner(5, 6).mtime(88), b"").file(".wh.x", ""),
    );
    let upper = try_forge(Forge::new().file("a/b/new", "").file("x/new", "").file("n/new", ""));
    let open = |tried: &Tried| std::os::fd::OwnedFd::from(File::open(&tried.tree).unwrap());
    let lower = [open(&middle), open(&lowest)];
    let implied = &upper.outcome().implied;
    adopt(std::os::fd::AsFd::as_fd(&open(&upper)), implied, &lower).unwrap();
    assert!(upper.listing()["a"].starts_with("dir 1777 5:6 @88."), "the nearest layer counts");
    assert_eq!(upper.what("a/b").unwrap(), "dir 750 3:4");
    assert_eq!(upper.what("x").unwrap(), "dir 755 0:0", "hidden by the layer between");
    assert_eq!(upper.what("n").unwrap(), "dir 755 0:0");
}
