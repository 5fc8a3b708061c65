//! Directories an archive left out: they exist in a lower layer, and their owner, mode, time and attributes are
//! those of the nearest layer below that has them.
//!
//! Overlayfs shows the attributes of the topmost directory, so without this a layer with only `etc/app/conf` would
//! turn `/etc` into a directory of root with mode 0755, whatever it was before.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, Mode, OFlags, ResolveFlags, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::error::UnpackError;
use super::tree::{failed, is_opaque};

/// Bytes of the list of attribute names, the kernel's limit.
const LIST_MAX: usize = 64 << 10;

const INSIDE: ResolveFlags =
    ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_SYMLINKS);
const DIRECTORY: OFlags =
    OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::RDONLY).union(OFlags::CLOEXEC);

/// Gives each of the `implied` directories of the layer at `root` the attributes it has in the `lower` layers,
/// nearest first. Directories no lower layer has keep root's ownership and mode 0755.
pub fn adopt(root: BorrowedFd<'_>, implied: &[Vec<u8>], lower: &[OwnedFd]) -> Result<(), UnpackError> {
    // Parents before children; a child's attributes do not change its parent's time.
    for path in implied {
        let ours = match fs::openat2(root, &path[..], DIRECTORY, Mode::empty(), INSIDE) {
            Ok(fd) => fd,
            // Replaced by a later entry of the layer.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            Err(error) => return Err(failed("open", path)(error)),
        };
        if is_opaque(ours.as_fd()) {
            continue;
        }
        if let Some(theirs) = nearest(path, lower)? {
            copy(theirs.as_fd(), ours.as_fd(), path)?;
        }
    }
    Ok(())
}

/// The directory as the layers below show it, or nothing if one of them hides it.
fn nearest(path: &[u8], lower: &[OwnedFd]) -> Result<Option<OwnedFd>, UnpackError> {
    for layer in lower {
        match fs::openat2(layer, path, DIRECTORY, Mode::empty(), INSIDE) {
            Ok(fd) => return Ok(Some(fd)),
            Err(Errno::NOENT) => {
                if hides_prefix(layer, path) {
                    return Ok(None);
                }
            }
            // A file, a whiteout or a link is in its place.
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(error) => return Err(failed("open", path)(error)),
        }
    }
    Ok(None)
}

/// Whether a parent of `path` in this layer is opaque, so that nothing below the layer counts.
fn hides_prefix(layer: &OwnedFd, path: &[u8]) -> bool {
    path.iter().enumerate().filter(|(_, byte)| **byte == b'/').any(|(at, _)| {
        let prefix = path.get(..at).unwrap_or_default();
        fs::openat2(layer, prefix, DIRECTORY, Mode::empty(), INSIDE).is_ok_and(|fd| is_opaque(fd.as_fd()))
    })
}

fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>, path: &[u8]) -> Result<(), UnpackError> {
    let stat = fs::fstat(from).map_err(failed("look at", path))?;
    let owner = (rustix::process::Uid::from_raw(stat.st_uid), rustix::process::Gid::from_raw(stat.st_gid));
    fs::fchown(to, Some(owner.0), Some(owner.1)).map_err(failed("set owner of", path))?;
    copy_xattrs(from, to).map_err(failed("set attributes of", path))?;
    fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777)).map_err(failed("set mode of", path))?;
    let times = fs::statx(from, "", AtFlags::EMPTY_PATH, fs::StatxFlags::BASIC_STATS)
        .map_err(failed("look at", path))?;
    let mtime = fs::Timespec { tv_sec: times.stx_mtime.tv_sec, tv_nsec: times.stx_mtime.tv_nsec.into() };
    fs::futimens(to, &Timestamps { last_access: mtime, last_modification: mtime })
        .map_err(failed("set time of", path))
}

fn copy_xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut list = vec![0_u8; LIST_MAX];
    let length = match fs::flistxattr(from, &mut list[..]) {
        Err(Errno::NOTSUP) => return Ok(()),
        other => other?,
    };
    let mut value = vec![0_u8; LIST_MAX];
    for name in list.get(..length).unwrap_or_default().split(|byte| *byte == 0) {
        if name.is_empty() || name.starts_with(b"trusted.") {
            continue;
        }
        let length = fs::fgetxattr(from, name, &mut value[..])?;
        fs::fsetxattr(to, name, value.get(..length).unwrap_or_default(), XattrFlags::empty())?;
    }
    Ok(())
}
