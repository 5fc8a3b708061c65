//! Entries that try to reach outside the layer: by path, by symbolic link, by hard link, by attribute.

use super::*;
use crate::testing::Head;

#[test]
fn paths_that_climb_are_refused_and_absolute_ones_stay_inside() {
    for path in ["../x", "a/../../x", "/../x", "a/b/../../../x", ".."] {
        assert_refused(&try_forge(Forge::new().file(path, "x")), path);
    }
    for (path, inside) in [("/abs", "abs"), ("//x", "x"), ("./y", "y"), ("a/../z", "z")] {
        assert!(try_forge(Forge::new().file(path, "x")).exists(inside), "{path}");
    }
    let odd = try_forge(Forge::new().file(b"\xff\xfe\n", "x"));
    assert!(odd.result.is_ok(), "names need not be text");
    assert_refused(&try_forge(Forge::new().file("", "x")), "a file in place of the root");
}

#[test]
fn the_root_may_only_be_a_directory() {
    for kind in [b'0', b'2', b'3', b'6', b'1'] {
        for name in [".", "/", "./"] {
            let entry = Head::new(kind, name).link("/canary").device(1, 3);
            assert_refused(&try_forge(Forge::new().entry(entry, b"")), name);
        }
    }
    let root = try_forge(Forge::new().entry(Head::new(b'5', "./").mode(0o711).owner(5, 6), b""));
    assert_eq!(root.what("").unwrap(), "dir 711 5:6");
}

#[test]
fn links_to_the_outside_lead_back_into_the_layer() {
    for target in ["canary", "../canary", "../../../../../../canary"] {
        let tried = try_tar(|scratch| {
            let up = "../".repeat(scratch.path().components().count() + 4);
            let target = match target {
                "canary" => scratch.canary().display().to_string(),
                _ => format!("{up}{}", scratch.canary().display()),
            };
            Forge::new()
                .symlink("e", target)
                .file("e/pwn", "x")
                .dir("e/sub")
                .file("e/sub/secret", "y")
                .finish()
        });
        // Inside the tree the same path leads to, made of directories that were not there.
        let inside = tried.scratch.canary().display().to_string();
        let inside = inside.trim_start_matches('/');
        assert!(tried.exists(&format!("{inside}/pwn")), "{target}");
    }
}

#[test]
fn chains_loops_and_late_links_do_not_escape() {
    let chain = try_tar(|scratch| {
        let mut forge = Forge::new().symlink("l0", scratch.canary().display().to_string());
        for number in 1..50 {
            forge = forge.symlink(format!("l{number}"), format!("l{}", number - 1));
        }
        forge.file("l49/pwn", "x").finish()
    });
    assert_refused(&chain, "fifty links in a row");
    assert_refused(&try_forge(Forge::new().symlink("a", "b").symlink("b", "a").file("a/x", "x")), "a loop");
    assert_refused(&try_forge(Forge::new().symlink("a", "a/a").file("a/x", "x")), "a link through itself");

    // A directory that was written to becomes a link between two entries below it.
    let late = try_tar(|scratch| {
        let canary = scratch.canary().display().to_string();
        Forge::new().dir("d").file("d/one", "1").symlink("d", canary).file("d/two", "2").finish()
    });
    assert!(late.what("d").unwrap().starts_with("link "));
    assert!(!late.exists("d/one"));
}

#[test]
fn attributes_of_a_link_never_reach_what_it_points_to() {
    let tried = try_tar(|scratch| {
        let canary = scratch.canary().display().to_string();
        Forge::new()
            .symlink("d", &canary)
            .entry(Head::new(b'5', "d/").mode(0o777).owner(7, 7).mtime(1), b"")
            .entry(Head::new(b'2', "f").link(format!("{canary}/file")).mode(0o777).owner(7, 7).mtime(1), b"")
            .entry(Head::new(b'0', "f").mode(0o777).mtime(1), b"replaced")
            .finish()
    });
    assert_eq!(tried.what("d").unwrap(), "dir 777 7:7", "a directory replaces a link of its name");
    assert!(tried.what("f").unwrap().starts_with("file 8 "));
}

#[test]
fn hard_links_reach_only_files_of_the_layer() {
    for target in
        ["/etc/shadow", "../canary/file", "../../etc/shadow", "missing", "d", "/", "self", ".wh.x", ""]
    {
        let forge = Forge::new().dir("d").file("plain", "x").hard_link("self", target);
        assert_refused(&try_forge(forge), target);
    }
    let through = try_tar(|scratch| {
        let canary = scratch.canary().display().to_string();
        Forge::new().symlink("e", canary).hard_link("stolen", "e/file").finish()
    });
    assert_refused(&through, "through a link to the outside");
    let to_link = try_tar(|scratch| {
        let file = format!("{}/file", scratch.canary().display());
        Forge::new().symlink("l", file).hard_link("h", "l").finish()
    });
    assert!(to_link.what("h").unwrap().starts_with("link "), "the link itself is linked");
    let good = try_forge(Forge::new().file("a", "x").hard_link("b", "./a").hard_link("a", "b"));
    assert_eq!(good.what("a"), good.what("b"), "linking back to the first name is no error");
}

#[test]
fn writing_through_a_hard_link_to_a_link_stays_inside() {
    let tried = try_tar(|scratch| {
        let file = format!("{}/file", scratch.canary().display());
        Forge::new().symlink("l", file).hard_link("h", "l").file("h", "overwritten").finish()
    });
    assert!(tried.what("h").unwrap().starts_with("file 11 "));
}

#[test]
fn overlay_and_integrity_attributes_never_reach_the_disk() {
    let names = [
        "trusted.overlay.opaque",
        "trusted.overlay.redirect",
        "trusted.overlay.metacopy",
        "trusted.overlay.origin",
        "trusted.other",
        "user.overlay.opaque",
        "security.ima",
        "security.evm",
        "security.selinux",
        "security.unheard-of",
        "system.other",
        "nonsense",
    ];
    let keys: Vec<String> = names.iter().map(|name| format!("SCHILY.xattr.{name}")).collect();
    let records: Vec<(&str, &[u8])> = keys.iter().map(|key| (key.as_str(), &b"y"[..])).collect();
    let tried = try_forge(Forge::new().pax(&records).file("f", "x").pax(&records).dir("d"));
    for path in ["f", "d"] {
        assert!(crate::testing::scratch::xattrs(&tried.tree.join(path)).is_empty(), "{path}");
    }
}

#[test]
fn capabilities_survive_the_change_of_owner_and_set_id_bits_are_kept() {
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let tried = try_forge(
        Forge::new()
            .pax(&[("SCHILY.xattr.security.capability", capability)])
            .entry(Head::new(b'0', "ping").owner(5, 6).mode(0o755), b"x")
            .entry(Head::new(b'0', "su").owner(5, 6).mode(0o6755), b"x"),
    );
    let xattrs = crate::testing::scratch::xattrs(&tried.tree.join("ping"));
    assert_eq!(xattrs, [("security.capability".to_owned(), capability.to_vec())]);
    assert_eq!(tried.what("su").unwrap().rsplit_once("6755 5:6").unwrap().1, "");
}

#[test]
fn devices_are_made_but_never_the_one_that_means_a_whiteout() {
    let tried = try_forge(
        Forge::new()
            .entry(Head::new(b'3', "mem").device(1, 1).mode(0o600), b"")
            .entry(Head::new(b'4', "sda").device(8, 0).mode(0o660), b"")
            .entry(Head::new(b'6', "fifo").mode(0o640), b""),
    );
    assert_eq!(tried.what("mem").unwrap(), "char 1:1 600 0:0");
    assert_eq!(tried.what("sda").unwrap(), "block 8:0 660 0:0");
    assert_eq!(tried.what("fifo").unwrap(), "fifo 640 0:0");
    assert_refused(&try_forge(Forge::new().entry(Head::new(b'3', "zero").device(0, 0), b"")), "0:0");
}
