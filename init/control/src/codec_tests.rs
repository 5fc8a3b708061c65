//! Round trips and hostile bytes.

use std::os::fd::OwnedFd;

use proptest::prelude::*;

use super::{DecodeError, EncodeError};
use crate::FDS_MAX;
use crate::message::{Exit, FromInit, Name, PowerAction, ServiceHealth, ToInit};

fn fds(count: usize) -> Vec<OwnedFd> {
    (0..count).map(|_| std::fs::File::open("/dev/null").unwrap().into()).collect()
}

fn fd() -> OwnedFd {
    std::fs::File::open("/dev/null").unwrap().into()
}

fn name() -> impl Strategy<Value = Name> {
    "[a-zA-Z0-9_.:/-]{1,128}".prop_map(|text| text.parse().unwrap())
}

fn power() -> impl Strategy<Value = PowerAction> {
    prop_oneof![Just(PowerAction::Off), Just(PowerAction::Reboot)]
}

fn to_init() -> impl Strategy<Value = ToInit> {
    prop_oneof![
        Just(()).prop_map(|()| ToInit::Hello),
        (name(), 1..i32::MAX).prop_map(|(name, pid)| ToInit::Register { name, pid, pidfd: fd() }),
        name().prop_map(|name| ToInit::Acknowledge { name }),
        (name(), 1..=FDS_MAX).prop_map(|(name, count)| ToInit::Store { name, fds: fds(count) }),
        name().prop_map(|name| ToInit::Remove { name }),
        any::<bool>().prop_map(|ready| ToInit::Alive { ready }),
        power().prop_map(ToInit::Power),
    ]
}

fn from_init() -> impl Strategy<Value = FromInit> {
    let exit = (name(), 1..i32::MAX, any::<i32>(), any::<i32>(), any::<i64>());
    prop_oneof![
        (name(), 1..=FDS_MAX).prop_map(|(name, count)| FromInit::Stored { name, fds: fds(count) }),
        (name(), 1..i32::MAX).prop_map(|(name, pid)| FromInit::Running { name, pid, pidfd: fd() }),
        exit.prop_map(|(name, pid, code, signal, at_unix_ns)| FromInit::Exited(Exit {
            name,
            pid,
            code,
            signal,
            at_unix_ns
        })),
        ("[a-z]{1,64}", any::<i32>(), any::<u32>())
            .prop_map(|(service, pid, starts)| FromInit::Service(ServiceHealth { service, pid, starts })),
        Just(()).prop_map(|()| FromInit::Ready),
        (power(), any::<u32>()).prop_map(|(action, deadline_s)| FromInit::Shutdown { action, deadline_s }),
    ]
}

/// The fields without descriptor numbers, which a decoded message cannot share.
fn shape(message: &impl std::fmt::Debug) -> String {
    let text = format!("{message:?}");
    let mut out = String::new();
    let mut parts = text.split("OwnedFd {");
    out.push_str(parts.next().unwrap());
    for part in parts {
        out.push_str("fd");
        out.push_str(part.split_once('}').unwrap().1);
    }
    out
}

proptest! {
    #[test]
    fn to_init_survives_the_round_trip(message in to_init()) {
        let packet = message.encode().unwrap();
        let back = ToInit::decode(&packet.bytes, fds(packet.fds.len())).unwrap();
        prop_assert_eq!(shape(&message), shape(&back));
        prop_assert_eq!(packet.bytes.clone(), back.encode().unwrap().bytes);
    }

    #[test]
    fn from_init_survives_the_round_trip(message in from_init()) {
        let packet = message.encode().unwrap();
        let back = FromInit::decode(&packet.bytes, fds(packet.fds.len())).unwrap();
        prop_assert_eq!(shape(&message), shape(&back));
        prop_assert_eq!(packet.bytes.clone(), back.encode().unwrap().bytes);
    }

    #[test]
    fn what_decodes_encodes_to_the_same_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300), count in 0..3usize) {
        if let Ok(message) = ToInit::decode(&bytes, fds(count)) {
            prop_assert_eq!(message.encode().unwrap().bytes, bytes.clone());
        }
        if let Ok(message) = FromInit::decode(&bytes, fds(count)) {
            prop_assert_eq!(message.encode().unwrap().bytes, bytes);
        }
    }

    #[test]
    fn a_cut_or_longer_message_is_refused(message in to_init(), cut in any::<prop::sample::Index>()) {
        let packet = message.encode().unwrap();
        let count = packet.fds.len();
        let short = &packet.bytes[..cut.index(packet.bytes.len())];
        prop_assert!(ToInit::decode(short, fds(count)).is_err());
        let mut long = packet.bytes.clone();
        long.push(0);
        prop_assert!(ToInit::decode(&long, fds(count)).is_err());
    }
}

#[test]
fn descriptors_must_match_the_message() {
    let register = ToInit::Register { name: "c/1".parse().unwrap(), pid: 2, pidfd: fd() };
    let bytes = register.encode().unwrap().bytes;
    assert!(ToInit::decode(&bytes, fds(1)).is_ok());
    for count in [0, 2, FDS_MAX] {
        assert_eq!(
            ToInit::decode(&bytes, fds(count)).unwrap_err(),
            DecodeError("not exactly one descriptor")
        );
    }
    let hello = ToInit::Hello.encode().unwrap().bytes;
    assert!(ToInit::decode(&hello, fds(1)).is_err());
    let store = ToInit::Store { name: "c/1".parse().unwrap(), fds: fds(1) };
    let bytes = store.encode().unwrap().bytes;
    assert!(ToInit::decode(&bytes, fds(0)).is_err());
    assert!(ToInit::decode(&bytes, fds(FDS_MAX + 1)).is_err());
}

#[test]
fn what_breaks_a_limit_is_not_sent() {
    let name: Name = "log".parse().unwrap();
    assert!(matches!(ToInit::Store { name: name.clone(), fds: vec![] }.encode(), Err(EncodeError(_))));
    assert!(matches!(ToInit::Store { name, fds: fds(FDS_MAX + 1) }.encode(), Err(EncodeError(_))));
    let service = |length| {
        FromInit::Service(ServiceHealth { service: "s".repeat(length), pid: 1, starts: 1 }).encode().is_ok()
    };
    assert!(service(64));
    assert!(!service(65));
}

#[test]
fn a_pid_that_means_a_group_is_refused() {
    for pid in [0, -1, i32::MIN] {
        let register = ToInit::Register { name: "c/1".parse().unwrap(), pid, pidfd: fd() };
        let bytes = register.encode().unwrap().bytes;
        assert_eq!(ToInit::decode(&bytes, fds(1)).unwrap_err(), DecodeError("pid is not positive"));
    }
}

#[test]
fn the_bytes_on_the_wire_are_fixed() {
    let exit = Exit { name: "c/a".parse().unwrap(), pid: 7, code: 137, signal: 9, at_unix_ns: -2 };
    let bytes = FromInit::Exited(exit).encode().unwrap().bytes;
    let expected = [
        67, 3, b'c', b'/', b'a', 7, 0, 0, 0, 137, 0, 0, 0, 9, 0, 0, 0, 254, 255, 255, 255, 255, 255, 255, 255,
    ];
    assert_eq!(bytes, expected);
}

#[test]
fn names_have_their_alphabet_and_length() {
    for (text, legal) in [
        ("a", true),
        ("c/0f:1_2.3-4", true),
        ("", false),
        ("ä", false),
        ("a b", false),
        ("a\0", false),
        (&"x".repeat(128), true),
        (&"x".repeat(129), false),
    ] {
        assert_eq!(text.parse::<Name>().is_ok(), legal, "{text:?}");
    }
}
