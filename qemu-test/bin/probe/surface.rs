//! What of the kernel can be reached from inside: one line for every door, with the error it gave or `open`.

use crate::work::print;
use rustix::fs::{CWD, Dev, FileType, Mode, OFlags, makedev, mknodat, open};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, socket_with};
use std::io;

/// Families of `socket(2)` up to the newest of Linux, `AF_MCTP`.
const FAMILIES: u16 = 46;

/// Protocols of the internet families that need code of their own.
const INTERNET: &[(&str, SocketType, u32)] = &[
    ("sctp", SocketType::STREAM, 132),
    ("sctp-seqpacket", SocketType::SEQPACKET, 132),
    ("dccp", SocketType::from_raw(6), 33),
    ("mptcp", SocketType::STREAM, 262),
    ("udplite", SocketType::DGRAM, 136),
    ("l2tp", SocketType::DGRAM, 115),
    ("smc", SocketType::STREAM, 256),
];

/// `AF_NETLINK` has a protocol for each part of the kernel that listens.
const NETLINK: u16 = 16;
const NETLINK_PROTOCOLS: u32 = 23;

/// Device nodes that open something, with their numbers.
const DEVICES: &[(&str, FileType, u32, u32)] = &[
    ("mem", FileType::CharacterDevice, 1, 1),
    ("kmem", FileType::CharacterDevice, 1, 2),
    ("port", FileType::CharacterDevice, 1, 4),
    ("kmsg", FileType::CharacterDevice, 1, 11),
    ("ttyS0", FileType::CharacterDevice, 4, 64),
    ("console", FileType::CharacterDevice, 5, 1),
    ("watchdog", FileType::CharacterDevice, 10, 130),
    ("nvram", FileType::CharacterDevice, 10, 144),
    ("tun", FileType::CharacterDevice, 10, 200),
    ("uinput", FileType::CharacterDevice, 10, 223),
    ("fuse", FileType::CharacterDevice, 10, 229),
    ("kvm", FileType::CharacterDevice, 10, 232),
    ("btrfs-control", FileType::CharacterDevice, 10, 234),
    ("autofs", FileType::CharacterDevice, 10, 235),
    ("mapper-control", FileType::CharacterDevice, 10, 236),
    ("loop-control", FileType::CharacterDevice, 10, 237),
    ("vhost-net", FileType::CharacterDevice, 10, 238),
    ("uhid", FileType::CharacterDevice, 10, 239),
    ("vhost-vsock", FileType::CharacterDevice, 10, 241),
    ("hpet", FileType::CharacterDevice, 10, 228),
    ("snapshot", FileType::CharacterDevice, 10, 231),
    ("input-event0", FileType::CharacterDevice, 13, 64),
    ("fb0", FileType::CharacterDevice, 29, 0),
    ("cpu-msr", FileType::CharacterDevice, 202, 0),
    ("cpu-cpuid", FileType::CharacterDevice, 203, 0),
    ("loop0", FileType::BlockDevice, 7, 0),
    ("sda", FileType::BlockDevice, 8, 0),
    ("vda", FileType::BlockDevice, 254, 0),
];

/// Files below `/proc` and `/sys` that show or change the kernel.
const FILES: &[(&str, OFlags)] = &[
    ("/proc/kcore", OFlags::RDONLY),
    ("/proc/vmcore", OFlags::RDONLY),
    ("/proc/config.gz", OFlags::RDONLY),
    ("/proc/sysrq-trigger", OFlags::WRONLY),
    ("/proc/timer_list", OFlags::RDONLY),
    ("/proc/sys/kernel/core_pattern", OFlags::WRONLY),
    ("/proc/sys/kernel/modprobe", OFlags::WRONLY),
    ("/proc/sys/kernel/modules_disabled", OFlags::WRONLY),
    ("/proc/sys/fs/binfmt_misc/register", OFlags::WRONLY),
    ("/sys/kernel/debug/x86", OFlags::RDONLY),
    ("/sys/kernel/tracing/trace", OFlags::RDONLY),
    ("/sys/kernel/uevent_helper", OFlags::WRONLY),
    ("/sys/kernel/security/lockdown", OFlags::WRONLY),
    ("/sys/firmware/acpi/tables/DSDT", OFlags::RDONLY),
    ("/sys/power/state", OFlags::WRONLY),
];

/// Every door in turn.
pub(crate) fn report() -> Result<u8, String> {
    let mut lines = Vec::new();
    for number in 0..=FAMILIES {
        let family = AddressFamily::from_raw(number);
        let kinds = [SocketType::STREAM, SocketType::DGRAM, SocketType::SEQPACKET, SocketType::RAW];
        let mut results = kinds.iter().map(|kind| socket(family, *kind, 0));
        // Open when any kind is; else what the first said.
        let first = results.next().unwrap_or(Err(Errno::INVAL));
        let result =
            first.or_else(|error| if results.any(|result| result.is_ok()) { Ok(()) } else { Err(error) });
        lines.push(line("family", &number.to_string(), result));
    }
    for (name, kind, protocol) in INTERNET {
        lines.push(line("protocol", name, socket(AddressFamily::INET, *kind, *protocol)));
    }
    for protocol in 0..NETLINK_PROTOCOLS {
        let result = socket(AddressFamily::from_raw(NETLINK), SocketType::RAW, protocol);
        lines.push(line("netlink", &protocol.to_string(), result));
    }
    for (name, kind, major, minor) in DEVICES {
        lines.push(line("device", name, device(*kind, makedev(*major, *minor))));
    }
    for (path, flags) in FILES {
        lines.push(line("file", path, open(*path, *flags, Mode::empty()).map(drop)));
    }
    for (name, result) in berth_sys::doors::try_all() {
        let result = result.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO));
        lines.push(line("call", name, result));
    }
    print(&lines.join("\n"))
}

fn socket(family: AddressFamily, kind: SocketType, protocol: u32) -> Result<(), Errno> {
    let protocol = rustix::net::RawProtocol::new(protocol).map(Protocol::from_raw);
    socket_with(family, kind, SocketFlags::CLOEXEC, protocol).map(drop)
}

/// Makes a node of its own, so that an empty `/dev` proves nothing, and opens it.
fn device(kind: FileType, numbers: Dev) -> Result<(), Errno> {
    const NODE: &str = "/tmp-node";
    let _ = std::fs::remove_file(NODE);
    mknodat(CWD, NODE, kind, Mode::from_raw_mode(0o600), numbers)?;
    open(NODE, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).map(drop)
}

fn line(group: &str, name: &str, result: Result<(), Errno>) -> String {
    let said = match result {
        Ok(()) => "open".to_owned(),
        Err(error) => {
            let text = io::Error::from(error).to_string();
            text.split(" (os").next().unwrap_or_default().to_owned()
        }
    };
    format!("{group} {name}: {said}")
}
