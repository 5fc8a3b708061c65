//! Hiding paths and making paths read-only.

use std::os::fd::{AsFd, BorrowedFd};

use berth_sys::mount::{self as attributes, Change};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use super::devices::clone_host_path;
use super::failure::Step;
use super::mounts::{self, move_to};
use super::resolve::{Kind, kind_of, open_in};
use super::scratch;
use crate::plan::{Failure, Plan};

/// Applies the plan's read-only and hidden paths. What does not exist needs neither.
pub(super) fn apply(plan: &Plan, root: BorrowedFd<'_>) -> Result<(), Failure> {
    for path in &plan.readonly_paths {
        ignoring_absent(bind_readonly(root, path)).step("readonly path", path)?;
    }
    for path in &plan.masked_paths {
        ignoring_absent(mask(root, path)).step("masked path", path)?;
    }
    Ok(())
}

fn ignoring_absent(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
        other => other,
    }
}

fn bind_readonly(root: BorrowedFd<'_>, path: &str) -> rustix::io::Result<()> {
    let target = open_in(root, path, OFlags::PATH)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = rustix::mount::open_tree(&target, "", flags)?;
    make_readonly(tree.as_fd(), true)?;
    move_to(tree.as_fd(), target.as_fd())
}

/// Files are hidden by `/dev/null`, directories by an empty read-only one; both come from the launcher's mounts,
/// which no image can influence.
fn mask(root: BorrowedFd<'_>, path: &str) -> rustix::io::Result<()> {
    let target = open_in(root, path, OFlags::PATH)?;
    let cover = match kind_of(target.as_fd())? {
        Kind::Directory => match clone_host_path(scratch::EMPTY) {
            // Not in our own mount namespace.
            Err(Errno::NOENT) => mounts::empty()?,
            result => result?,
        },
        Kind::File => clone_host_path("/dev/null")?,
    };
    move_to(cover.as_fd(), target.as_fd())
}

/// Makes the mount `tree` is the root of read-only.
pub(super) fn make_readonly(tree: BorrowedFd<'_>, recursive: bool) -> rustix::io::Result<()> {
    let change = Change { set: attributes::RDONLY, recursive, ..Change::NONE };
    attributes::set_attributes(tree, &change)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}
