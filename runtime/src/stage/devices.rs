//! `/dev`: the six nodes of the OCI default set and the plan's, bound from the host's; links and directories.
//!
//! Nodes are bound, not made: a user namespace may not make any, and a tmpfs of one refuses to serve them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, mkdirat, symlinkat};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use super::container::Ready;
use super::failure::Step;
use super::mounts::move_to;
use super::resolve::{Kind, open_or_make};
use crate::plan::{Failure, Plan};

/// Device nodes of every container (runtime-spec, config-linux, Default Devices; `console` and `ptmx` are made by
/// terminal and devpts).
const NODES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Links of every container (runtime-spec, runtime-linux, Dev symbolic links).
const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
    ("core", "/proc/kcore"),
];
/// Mount points that nearly every plan uses.
const DIRECTORIES: [&str; 3] = ["pts", "shm", "mqueue"];

/// Fills a new `/dev` that is not attached yet; nobody else can reach it.
pub(super) fn fill(dev: BorrowedFd<'_>) -> Result<(), Failure> {
    for name in DIRECTORIES {
        mkdirat(dev, name, Mode::from_raw_mode(0o755)).step("device", name)?;
    }
    for (name, target) in LINKS {
        symlinkat(target, dev, name).step("device", name)?;
    }
    for name in NODES {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(dev, name, flags, Mode::from_raw_mode(0o666)).step("device", name)?;
    }
    Ok(())
}

/// Binds the default nodes onto their places in `/dev` and the plan's devices onto theirs.
pub(super) fn attach_all(plan: &Plan, ready: &Ready, root: BorrowedFd<'_>) -> Result<(), Failure> {
    let owns_dev = plan.mounts.iter().any(|mount| {
        let fresh = matches!(&mount.source, crate::plan::MountSource::Fs { kind, .. } if kind == "tmpfs");
        fresh && mount.target.trim_end_matches('/') == "/dev"
    });
    if owns_dev {
        for name in NODES {
            let place = format!("/dev/{name}");
            let node = clone_host_path(&place).step("device", &place)?;
            attach_node(node.as_fd(), root, &place)?;
        }
    }
    for (device, node) in plan.devices.iter().zip(&ready.sources.devices) {
        attach_node(node.as_fd(), root, &device.target)?;
    }
    for (node, made) in plan.special.nodes.iter().zip(&ready.sources.nodes) {
        attach_node(made.as_fd(), root, &node.target)?;
    }
    Ok(())
}

fn attach_node(node: BorrowedFd<'_>, root: BorrowedFd<'_>, place: &str) -> Result<(), Failure> {
    let target = open_or_make(root, place, Kind::File).step("device", place)?;
    move_to(node, target.as_fd()).step("device", place)
}

/// A detached clone of a path of the host, taken from this process's copy of the launcher's mounts before the root
/// changes.
pub(super) fn clone_host_path(path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    loop {
        match rustix::mount::open_tree(rustix::fs::CWD, path, flags) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}
