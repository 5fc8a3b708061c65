//! Device nodes and pipes that a bundle wants and the host's `/dev` does not have, or has otherwise.
//!
//! A user namespace may make no device nodes, and a tmpfs of one serves none. So they are made in a tmpfs of ours,
//! with the host's privilege and before anything of the container runs, and bound to their places by the container's
//! first process. Nobody reaches the tmpfs by a path afterwards.

use std::os::fd::{AsFd, OwnedFd};

use berth_sys::mount::{self as attributes, Change, Propagation};
use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid, makedev};
use rustix::io::Errno;
use rustix::mount::{MountFlags, OpenTreeFlags, UnmountFlags};

use super::failure::{Step, failure};
use super::scratch;
use crate::plan::{Failure, Node, NodeKind};

/// Most nodes of a container.
const NODES_MAX: usize = 1024;

/// Makes the nodes; each comes detached, in the order asked for.
pub(super) fn make(nodes: &[Node]) -> Result<Vec<OwnedFd>, Failure> {
    if nodes.is_empty() {
        return Ok(Vec::new());
    }
    if nodes.len() > NODES_MAX {
        return Err(failure("device", &format!("more than {NODES_MAX}"), Errno::TOOBIG));
    }
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    rustix::mount::mount("tmpfs", scratch::STAND, "tmpfs", flags, Some(c"mode=755"))
        .step("device", scratch::STAND)?;
    let made = scratch::open(scratch::STAND)
        .and_then(|dir| nodes.iter().enumerate().map(|(place, node)| one(&dir, place, node)).collect());
    let left = rustix::mount::unmount(scratch::STAND, UnmountFlags::DETACH);
    let made = made?;
    left.step("device", scratch::STAND)?;
    Ok(made)
}

fn one(dir: &OwnedFd, place: usize, node: &Node) -> Result<OwnedFd, Failure> {
    let name = place.to_string();
    let (kind, device) = match node.kind {
        NodeKind::Block => (FileType::BlockDevice, makedev(node.major, node.minor)),
        NodeKind::Character => (FileType::CharacterDevice, makedev(node.major, node.minor)),
        NodeKind::Pipe => (FileType::Fifo, 0),
    };
    let mode = Mode::from_raw_mode(node.mode & 0o7777);
    rustix::fs::mknodat(dir, &name, kind, mode, device).step("device", &node.target)?;
    let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
    rustix::fs::chownat(dir, &name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .step("device", &node.target)?;
    // Whatever the umask took away.
    rustix::fs::chmodat(dir, &name, mode, AtFlags::empty()).step("device", &node.target)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(dir, &name, flags).step("device", &node.target)?;
    let change = Change { propagation: Propagation::Private, ..Change::NONE };
    attributes::set_attributes(tree.as_fd(), &change).step("device", &node.target)?;
    Ok(tree)
}
