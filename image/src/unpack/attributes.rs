//! Owners, modes, times and extended attributes, in the one order in which none undoes another.
//!
//! Changing the owner clears set-id bits and file capabilities, so it comes first; the mode comes after access
//! lists, which would change it; the time comes last.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::fs::{self, AtFlags, Mode, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::error::UnpackError;
use super::tar::Entry;
use super::tree::failed;

/// Bytes of one attribute's value, the kernel's limit.
const XATTR_SIZE_MAX: usize = 64 << 10;
/// Bytes of one attribute's name, the kernel's limit.
const XATTR_NAME_MAX: usize = 255;

/// Inherited by what is made in a directory, so it is set when the directory is finished.
pub(super) const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

type Xattr = (Vec<u8>, Vec<u8>);

/// Attributes of an open file or directory, all but a directory's time.
pub(super) fn apply_open(fd: BorrowedFd<'_>, entry: &Entry) -> Result<(), UnpackError> {
    let path = &entry.path[..];
    fs::fchown(fd, Some(uid(entry)), Some(gid(entry))).map_err(failed("set owner of", path))?;
    for (name, value) in wanted(&entry.xattrs).filter(|(name, _)| name != DEFAULT_ACL) {
        let result = fs::fsetxattr(fd, &name[..], value, XattrFlags::empty());
        tolerate(name, result).map_err(failed("set attributes of", path))?;
    }
    fs::fchmod(fd, Mode::from_raw_mode(entry.mode)).map_err(failed("set mode of", path))
}

/// Attributes of a symbolic link, device or fifo, which cannot be opened.
pub(super) fn apply_named(
    parent: BorrowedFd<'_>,
    name: &[u8],
    entry: &Entry,
    is_link: bool,
) -> Result<(), UnpackError> {
    let path = &entry.path[..];
    fs::chownat(parent, name, Some(uid(entry)), Some(gid(entry)), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(failed("set owner of", path))?;
    for (attribute, value) in wanted(&entry.xattrs) {
        // The way through /proc leads to the open parent; the leaf itself is not followed.
        let mut at = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
        at.extend_from_slice(name);
        let result = fs::lsetxattr(&at[..], &attribute[..], value, XattrFlags::empty());
        tolerate(attribute, result).map_err(failed("set attributes of", path))?;
    }
    if !is_link {
        // The name was made a moment ago and is no link, so there is nothing to follow.
        fs::chmodat(parent, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())
            .map_err(failed("set mode of", path))?;
    }
    fs::utimensat(parent, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(failed("set time of", path))
}

/// The time of an open file.
pub(super) fn set_time(fd: BorrowedFd<'_>, mtime: (i64, u32), path: &[u8]) -> Result<(), UnpackError> {
    fs::futimens(fd, &times(mtime)).map_err(failed("set time of", path))
}

/// A directory's default access list, if the entry has one.
pub(super) fn default_acl(entry: &Entry) -> Option<Vec<u8>> {
    wanted(&entry.xattrs).find(|(name, _)| name == DEFAULT_ACL).map(|(_, value)| value.clone())
}

/// Refuses what no file system can hold, before anything is made.
pub(super) fn check(xattrs: &[Xattr]) -> Result<(), &'static str> {
    let fits = |(name, value): &Xattr| name.len() <= XATTR_NAME_MAX && value.len() <= XATTR_SIZE_MAX;
    if xattrs.iter().all(fits) { Ok(()) } else { Err("extended attribute is too large") }
}

/// The attributes a layer may set. Overlay's own would let it name other files; labels and signatures of integrity
/// systems belong to the machine, not to the image.
fn wanted(xattrs: &[Xattr]) -> impl Iterator<Item = &Xattr> {
    xattrs.iter().filter(|(name, _)| is_layer_xattr(name))
}

/// Whether an attribute of this name belongs to a layer.
pub(crate) fn is_layer_xattr(name: &[u8]) -> bool {
    (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
        || name == b"security.capability"
        || name == b"system.posix_acl_access"
        || name == DEFAULT_ACL
}

/// Some attributes mean nothing where they cannot be stored: on links and devices, or where the file system has no
/// such kind. A lost file capability would change what a program may do, so that is an error.
fn tolerate(name: &[u8], result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::NOTSUP | Errno::PERM) if name.starts_with(b"user.") || name.starts_with(b"system.") => {
            Ok(())
        }
        other => other,
    }
}

fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn uid(entry: &Entry) -> Uid {
    Uid::from_raw(entry.uid)
}

fn gid(entry: &Entry) -> Gid {
    Gid::from_raw(entry.gid)
}
