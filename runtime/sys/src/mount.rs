//! `mount_setattr(2)`, which rustix 1.1 lacks.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Read-only.
pub const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
/// No set-user-id.
pub const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
/// No device nodes.
pub const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
/// No programs.
pub const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
/// The bits that say how access times are kept; to be cleared whenever one is set.
pub const ATIME: u64 = libc::MOUNT_ATTR__ATIME;
/// Access times are not kept.
pub const NOATIME: u64 = libc::MOUNT_ATTR_NOATIME;
/// Access times are always kept.
pub const STRICTATIME: u64 = libc::MOUNT_ATTR_STRICTATIME;
/// Access times of directories are not kept.
pub const NODIRATIME: u64 = libc::MOUNT_ATTR_NODIRATIME;
/// No symbolic link is followed.
pub const NOSYMFOLLOW: u64 = libc::MOUNT_ATTR_NOSYMFOLLOW;

/// Propagation of mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// Leave it.
    Unchanged,
    /// `MS_PRIVATE`.
    Private,
    /// `MS_SLAVE`.
    Slave,
    /// `MS_SHARED`.
    Shared,
    /// `MS_UNBINDABLE`.
    Unbindable,
}

/// What changes on a mount.
#[derive(Clone, Copy, Debug)]
pub struct Change<'fd> {
    /// `MOUNT_ATTR_*` bits to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` bits to clear.
    pub clear: u64,
    /// New propagation.
    pub propagation: Propagation,
    /// Shift owners by this user namespace (`MOUNT_ATTR_IDMAP`).
    pub idmap: Option<BorrowedFd<'fd>>,
    /// All mounts below too (`AT_RECURSIVE`).
    pub recursive: bool,
}

impl Change<'_> {
    /// No change; to be completed by struct update.
    pub const NONE: Self =
        Self { set: 0, clear: 0, propagation: Propagation::Unchanged, idmap: None, recursive: false };
}

/// `mount_setattr` on the mount that `mount` is the root of.
///
/// # Errors
/// `EINVAL` when the file system cannot shift owners, `EPERM` when a flag is locked; else what the kernel says.
pub fn set_attributes(mount: BorrowedFd<'_>, change: &Change<'_>) -> io::Result<()> {
    let mut attr = libc::mount_attr {
        attr_set: change.set,
        attr_clr: change.clear,
        propagation: match change.propagation {
            Propagation::Unchanged => 0,
            Propagation::Private => libc::MS_PRIVATE,
            Propagation::Slave => libc::MS_SLAVE,
            Propagation::Shared => libc::MS_SHARED,
            Propagation::Unbindable => libc::MS_UNBINDABLE,
        },
        userns_fd: 0,
    };
    if let Some(user) = change.idmap {
        attr.attr_set |= libc::MOUNT_ATTR_IDMAP;
        attr.userns_fd = u64::from(user.as_raw_fd().unsigned_abs());
    }
    let mut flags = libc::AT_EMPTY_PATH;
    if change.recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is a literal, `attr` lives through the call and its size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw mut attr,
            size_of::<libc::mount_attr>(),
        )
    };
    crate::checked(result).map(drop)
}
