//! Layers made to exhaust: names, headers, entries, attributes, depth.

use super::*;
use crate::testing::Head;

#[test]
fn special_headers_beyond_their_limit_are_refused_before_they_are_read() {
    for kind in [b'x', b'g', b'L', b'K'] {
        let mut head = Head::new(kind, "h");
        head.size = 8 << 30;
        let tried = try_forge(Forge::new().raw(&head.block()));
        assert!(matches!(tried.result, Err(UnpackError::Limit { .. })), "{}", char::from(kind));
    }
}

#[test]
fn names_and_depths_have_limits() {
    let pax_path = |path: String| try_forge(Forge::new().pax(&[("path", path.as_bytes())]).file("f", "x"));
    assert!(pax_path("n".repeat(255)).result.is_ok());
    assert_refused(&pax_path("n".repeat(256)), "a component of 256 bytes");
    assert!(pax_path(format!("{}f", "d/".repeat(255))).result.is_ok());
    assert_refused(&pax_path(format!("{}f", "d/".repeat(256))), "a path of 257 components");
    assert_refused(&pax_path("n/".repeat(100_000)), "a path of 200 kB");
    let link = |length| {
        try_forge(Forge::new().pax(&[("linkpath", "t".repeat(length).as_bytes())]).symlink("l", "x"))
    };
    assert!(link(4095).result.is_ok());
    assert_refused(&link(4096), "a link target of 4096 bytes");
    assert_refused(&try_forge(Forge::new().entry(Head::new(b'2', "l"), b"")), "a link to nowhere");
}

#[test]
fn attributes_have_limits() {
    let with = |count: usize, length: usize| {
        let keys: Vec<String> = (0..count).map(|number| format!("SCHILY.xattr.trusted.x{number}")).collect();
        let value = vec![b'v'; length];
        let records: Vec<(&str, &[u8])> = keys.iter().map(|key| (key.as_str(), &value[..])).collect();
        try_forge(Forge::new().pax(&records).file("f", "x"))
    };
    assert!(with(1024, 1).result.is_ok());
    assert_refused(&with(1025, 1), "too many attributes");
    assert!(with(1, 64 << 10).result.is_ok());
    assert_refused(&with(1, (64 << 10) + 1), "a value above 64 KiB");
}

#[test]
fn the_same_name_again_and_again_is_one_file() {
    let forge = (0..2000).fold(Forge::new(), |forge, number| match number % 3 {
        0 => forge.file("f", "x"),
        1 => forge.dir("f").file("f/below", "y"),
        _ => forge.symlink("f", "/canary"),
    });
    let tried = try_forge(forge);
    assert_eq!(tried.listing().len(), 3);
}

#[test]
fn a_full_disk_is_told_as_such() {
    let scratch = Scratch::new();
    let small = scratch.empty("small");
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64k,mode=755", "tmpfs"])
        .arg(&small)
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        return;
    }
    let tar = Forge::new().file("big", vec![1; 1 << 20]).finish();
    let root = File::open(&small).unwrap().into();
    let any = Digest::of(b"");
    let expected =
        Expected { compression: Compression::None, size: tar.len() as u64, diff_id: &any, lowest: true };
    let result = unpack(&tar[..], root, None, &expected);
    assert!(std::process::Command::new("umount").arg(&small).status().unwrap().success());
    assert!(result.unwrap_err().into_no_space().is_ok());
}

#[test]
fn links_cannot_stack_directories_beyond_the_limit() {
    // Each round goes down 200 levels from where the last one ended.
    let forge = (0..20).fold(Forge::new(), |forge, round| {
        let below = "d/".repeat(200);
        let (from, link) = (format!("l{round}/{below}"), format!("l{}", round + 1));
        let start = if round == 0 { forge.dir("l0") } else { forge };
        start
            .pax(&[("path", format!("{from}f").as_bytes())])
            .file("f", "x")
            .pax(&[("linkpath", from.as_bytes())])
            .symlink(link, "x")
    });
    let tried = try_forge(forge);
    assert!(matches!(tried.result, Err(UnpackError::Limit { .. })), "{:?}", tried.result);
    // What was made until then can be replaced and deleted.
    std::fs::remove_dir_all(&tried.tree).unwrap();
}

#[test]
fn the_deepest_tree_that_is_allowed_can_be_replaced_within_the_layer() {
    let deep = format!("{}f", "d/".repeat(255));
    let tried =
        try_forge(Forge::new().pax(&[("path", deep.as_bytes())]).file("f", "x").file("d", "replaced"));
    assert!(tried.what("d").unwrap().starts_with("file 8 "));
}
