//! Headers that programs read differently: each is read as Go reads it, or refused.

use super::*;
use crate::testing::Head;
use crate::testing::forge::{GNU, pax_record, put, seal};

#[test]
fn names_come_from_where_go_takes_them() {
    let long = "n".repeat(200);
    let gnu = |kind, data: &[u8]| {
        let mut head = Head::new(kind, "././@LongLink");
        head.magic = GNU;
        Forge::new().entry(head, data).bytes
    };
    let both = Forge::new()
        .pax(&[("path", b"from-pax")])
        .raw(&gnu(b'L', format!("{long}\0").as_bytes()))
        .file("plain", "x");
    assert!(try_forge(both).exists(&long), "the GNU name wins");
    let pax = try_forge(Forge::new().pax(&[("path", b"d/from-pax")]).dir("d").file("after", "x"));
    assert!(pax.what("d/from-pax").unwrap().starts_with("dir"), "records belong to the next entry only");
    assert!(pax.exists("after"));
    let link = Forge::new().raw(&gnu(b'K', format!("{long}\0").as_bytes())).symlink("l", "short");
    assert!(try_forge(link).what("l").unwrap().starts_with(&format!("link {long}")));
    let mut block = Head::new(b'0', "name").block();
    put(&mut block, 345, 155, b"some/prefix");
    seal(&mut block);
    assert!(try_forge(Forge::new().dir("some").dir("some/prefix").raw(&block)).exists("some/prefix/name"));
}

#[test]
fn sizes_in_records_are_the_sizes_of_the_data() {
    // The header says 0, the record 3.
    let mut small = Head::new(b'0', "f");
    small.size = 0;
    let data = [&b"abc"[..], &[0; 509]].concat();
    let tried = try_forge(Forge::new().pax(&[("size", b"3")]).raw(&small.block()).raw(&data).file("g", "x"));
    assert!(tried.what("f").unwrap().starts_with("file 3 ") && tried.exists("g"));
    // The header says 1024, the record 0: what follows is the next header, not data.
    let mut large = Head::new(b'0', "f");
    large.size = 1024;
    let tried = try_forge(Forge::new().pax(&[("size", b"0")]).raw(&large.block()).file("g", "x"));
    assert!(tried.what("f").unwrap().starts_with("file 0 ") && tried.exists("g"));
}

#[test]
fn kinds_without_data_have_none_whatever_their_size_says() {
    for kind in [b'1', b'2', b'3', b'4', b'5', b'6'] {
        let mut head = Head::new(kind, "e").link("first").device(1, 3);
        head.size = 512;
        let tried = try_forge(Forge::new().file("first", "x").raw(&head.block()).file("after", "y"));
        assert!(tried.exists("after"), "{}", char::from(kind));
        let records =
            Forge::new().file("first", "x").pax(&[("size", b"512")]).raw(&head.block()).file("after", "y");
        assert!(try_forge(records).exists("after"), "{}", char::from(kind));
    }
}

#[test]
fn an_archive_within_a_file_stays_a_file() {
    let inner = Forge::new().file("inner", "x").finish();
    let tried = try_forge(Forge::new().file("outer.tar", &inner).file("after", "y"));
    assert_eq!(tried.listing().len(), 3);
}

#[test]
fn special_headers_may_follow_each_other_and_the_last_counts() {
    let tried = try_forge(Forge::new().pax(&[("path", b"one")]).pax(&[("path", b"two")]).file("three", "x"));
    assert!(tried.exists("two") && !tried.exists("one"));
    let global = |record: &[u8]| Forge::new().entry(Head::new(b'g', "g"), record).bytes;
    let comment = Forge::new().raw(&global(&pax_record("comment", b"0123"))).file("f", "x");
    assert!(try_forge(comment).exists("f"));
    for record in [pax_record("path", b"evil"), pax_record("size", b"4"), pax_record("linkpath", b"x")] {
        assert_refused(
            &try_forge(Forge::new().raw(&global(&record)).file("f", "x")),
            "a structural global header",
        );
    }
}

#[test]
fn damaged_headers_are_refused() {
    let mut wrong_sum = Head::new(b'0', "f").block();
    wrong_sum[0] ^= 1;
    let field = |at: usize, value: &[u8]| {
        let mut block = Head::new(b'0', "f").block();
        block[at..at + value.len()].copy_from_slice(value);
        seal(&mut block);
        block
    };
    let refused = [
        ("checksum", wrong_sum),
        ("negative size", field(124, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")),
        ("huge size", field(124, b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff")),
        ("size that is no number", field(124, b"12x4567890a\0")),
        ("negative owner", field(108, b"\xff\xff\xff\xff\xff\xff\xff\xff")),
        ("owner beyond 32 bits", field(108, b"\x80\0\0\x01\0\0\0\0")),
        ("owner that means unchanged", field(108, b"\x80\0\0\0\xff\xff\xff\xff")),
        ("mode that is no number", field(100, b"rwxr-xr\0")),
    ];
    for (case, block) in refused {
        assert_refused(&try_forge(Forge::new().raw(&block)), case);
    }
    for kind in [b'X', b'Z', b'V', b'M', b'N', b'8', b'z', 0xff] {
        assert_refused(&try_forge(Forge::new().entry(Head::new(kind, "f"), b"")), "an unknown type");
    }
    for body in
        [&b"9 path=\n"[..], b"999 path=a\n", b"path=a\n", b"08 path=a", b" 9 path=a\n", b"-9 path=a\n"]
    {
        let forge = Forge::new().entry(Head::new(b'x', "x"), body).file("f", "x");
        assert_refused(&try_forge(forge), "a malformed record");
    }
    let nul = Forge::new().pax(&[("path", b"a\0b")]).file("f", "x");
    assert_refused(&try_forge(nul), "a name with NUL");
}

#[test]
fn an_archive_may_lack_its_trailer_but_not_part_of_a_block() {
    let whole = Forge::new().file("f", "x").bytes;
    assert!(try_tar(|_| whole.clone()).exists("f"));
    assert!(try_tar(|_| [&whole[..], &[0; 512]].concat()).exists("f"));
    assert!(try_tar(|_| [&whole[..], &[0; 4096], b"rubbish after the end"].concat()).exists("f"));
    assert!(try_tar(|_| Vec::new()).result.is_ok(), "an empty layer is a layer");
    assert_refused(&try_tar(|_| whole[..700].to_vec()), "an entry cut short");
    assert_refused(&try_tar(|_| [&whole[..], &[1; 100]].concat()), "part of a header");
    let lone = Forge::new().raw(&whole).raw(&[0; 512]).raw(&whole).bytes;
    assert_refused(&try_tar(|_| lone), "an entry after a single zero block");
}

#[test]
fn sparse_files_of_all_formats_have_holes() {
    let old = {
        let mut head = Head::new(b'S', "old");
        head.magic = GNU;
        head.size = 1;
        let mut block = head.block();
        put(&mut block, 386, 12, b"00000100000\0");
        put(&mut block, 398, 12, b"00000000001\0");
        put(&mut block, 483, 12, b"00000200000\0");
        seal(&mut block);
        Forge::new().raw(&block).raw(&[b'x'; 1]).raw(&[0; 511]).bytes
    };
    let newer = Forge::new()
        .pax(&[
            ("GNU.sparse.size", b"65536"),
            ("GNU.sparse.numblocks", b"1"),
            ("GNU.sparse.offset", b"32768"),
            ("GNU.sparse.numbytes", b"1"),
        ])
        .file("v00", "x")
        .pax(&[("GNU.sparse.size", b"65536"), ("GNU.sparse.map", b"32768,1"), ("GNU.sparse.name", b"v01")])
        .file("mangled", "x");
    let map = [&b"1\n32768\n1\n"[..], &[0; 502], b"x"].concat();
    let newest = newer
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"v10"),
            ("GNU.sparse.realsize", b"65536"),
        ])
        .file("mangled", &map);
    let tried = try_forge(Forge::new().raw(&old).raw(&newest.bytes).file("after", "y"));
    let mut expected = vec![0; 65536];
    expected[32768] = b'x';
    for name in ["old", "v00", "v01", "v10"] {
        assert!(std::fs::read(tried.tree.join(name)).unwrap() == expected, "{name}");
    }
    assert!(tried.exists("after") && !tried.exists("mangled"));
    assert_eq!(tried.outcome().size, 5);
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    for map in ["0,2", "5,1,4,1", "65536,1", "0,1,1,9223372036854775807", "1", "", "0,0"] {
        let records: [(&str, &[u8]); 2] = [("GNU.sparse.size", b"65536"), ("GNU.sparse.map", map.as_bytes())];
        let tried = try_forge(Forge::new().pax(&records).file("f", "x"));
        if map.is_empty() {
            // Nothing said is nothing meant: an ordinary file.
            assert!(tried.exists("f"));
        } else {
            assert_refused(&tried, map);
        }
    }
    let huge: [(&str, &[u8]); 2] = [("GNU.sparse.size", b"9223372036854775807"), ("GNU.sparse.map", b"0,1")];
    assert_refused(&try_forge(Forge::new().pax(&huge).file("f", "x")), "eight exbibytes");
}

#[test]
fn times_owners_and_attributes_are_exact() {
    let tried = try_forge(
        Forge::new()
            .pax(&[
                ("mtime", b"-1.25"),
                ("uid", b"4000000000"),
                ("gid", b"3000000"),
                ("SCHILY.xattr.user.k", b"a=\nb\0c"),
            ])
            .file("f", "x")
            .pax(&[("LIBARCHIVE.xattr.user.%6b", b"dmFsdWU=")])
            .file("g", "x")
            .entry(Head::new(b'5', "d").mtime(5), b"")
            .file("d/later", "x"),
    );
    let list = tried.listing();
    assert!(list["f"].contains(" 4000000000:3000000 @-2.750000000"), "{}", list["f"]);
    assert!(list["f"].ends_with(r"user.k=a=\nb\x00c"), "{}", list["f"]);
    assert!(list["g"].ends_with("user.k=value"));
    assert!(list["d"].contains("@5.0"), "a directory's time is not that of its last entry");
}
