//! The encoder against bytes taken from the protocol's description, and against its own promises.

use std::fmt::Write as _;

use super::expression::{Field, Rule, behind, interface, joined};
use super::{Batch, ChainHook, Element, Family, Set};

/// Words of four bytes as hexadecimal, one line for each.
fn hex(bytes: &[u8]) -> String {
    bytes.chunks(4).fold(String::new(), |mut text, word| {
        let _ = word.iter().try_for_each(|byte| write!(text, "{byte:02x}"));
        text.push(' ');
        text
    })
}

fn check(rule: &Rule, golden: &str) {
    let golden: Vec<&str> = golden.split_whitespace().collect();
    assert_eq!(hex(rule.as_bytes()).trim_end(), golden.join(" "));
}

#[test]
fn an_accepted_interface_is_meta_cmp_immediate() {
    let rule = Rule::new().from_interface("br0").accept();
    check(
        &rule,
        // list element, name "meta", data { register 1, key iifname }
        "24000180 09000100 6d657461 00000000 14000280 08000100 00000001 08000200 00000006
         38000180 08000100 636d7000 2c000280 08000100 00000001 08000200 00000000
         18000380 14000100 62723000 00000000 00000000 00000000
         30000180 0e000100 696d6d65 64696174 65000000 1c000280 08000100 00000000
         10000280 0c000280 08000100 00000001",
    );
}

#[test]
fn a_port_map_loads_its_key_side_by_side_and_takes_the_value_behind_it() {
    let map = Set { name: "m", id: 3, key_type: 0, key_bytes: 8, value: Some((0, 8)), interval: false };
    let rule = Rule::new().redirect_by_map(&[Field::Protocol, Field::DestinationPort], &map, true);
    check(
        &rule,
        "24000180 09000100 6d657461 00000000 14000280 08000100 00000008 08000200 00000010
         34000180 0c000100 7061796c 6f616400 24000280 08000100 00000009 08000200 00000002
         08000300 00000002 08000400 00000002
         34000180 0b000100 6c6f6f6b 75700000 24000280 06000100 6d000000 08000200 00000008
         08000300 0000000a 08000400 00000003
         30000180 08000100 6e617400 24000280 08000100 00000001 08000200 00000002
         08000300 0000000a 08000500 0000000b",
    );
}

#[test]
fn a_transaction_is_framed_by_begin_and_end() {
    let mut batch = Batch::new(Family::Bridge, "t");
    batch.chain("c", Some(ChainHook { kind: "filter", hook: 0, priority: -300, accept: false }));
    let finished = batch.finish();
    let golden = "14000000 10000100 00000000 00000000 0000000a
        4c000000 030a0104 01000000 00000000 07000000
        06000100 74000000 06000300 63000000
        14000480 08000100 00000000 08000200 fffffed4 08000500 00000000 0b000700 66696c74 65720000
        14000000 11000100 02000000 00000000 0000000a";
    let golden: Vec<&str> = golden.split_whitespace().collect();
    assert_eq!(hex(finished.as_bytes()).trim_end(), golden.join(" "));
}

#[test]
fn many_elements_are_sent_in_parts_that_fit_an_attribute() {
    let set = Set { name: "s", id: 1, key_type: 0, key_bytes: 24, value: Some((0, 20)), interval: false };
    let element = Element { key: vec![1; 24], value: Some(vec![2; 20]), interval_end: false };
    let mut batch = Batch::new(Family::Inet, "t");
    batch.elements(&set, &vec![element; 5000]);
    let bytes = batch.finish().bytes;
    let mut rest = bytes.as_slice();
    let mut messages = 0;
    while !rest.is_empty() {
        let length = u32::from_ne_bytes(rest[..4].try_into().unwrap()) as usize;
        assert!(length < 65_536, "{length}");
        rest = &rest[length..];
        messages += 1;
    }
    assert_eq!(messages, 12, "begin, ten parts, end");
}

#[test]
fn keys_are_padded_and_ranges_end_behind_the_last_address() {
    assert_eq!(joined(&[&[6], &[0x1f, 0x90]]), [6, 0, 0, 0, 0x1f, 0x90, 0, 0]);
    assert_eq!(interface("eth0")[..5], *b"eth0\0");
    assert_eq!(interface("a-name-that-is-too-long").last(), Some(&0));
    assert_eq!(behind("10.0.0.0/24".parse().unwrap()), "10.0.1.0".parse().ok());
    assert_eq!(behind("0.0.0.0/0".parse().unwrap()), None);
    assert_eq!(behind("fd00::/64".parse().unwrap()), "fd00:0:0:1::".parse().ok());
}
