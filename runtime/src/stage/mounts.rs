//! The mounts of a plan, made or attached inside the container's root.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_sys::mount::{Change, set_attributes};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use super::container::Ready;
use super::failure::{Step, failure};
use super::resolve::{Kind, kind_of, open_in, open_or_make};
use super::sources::{flags_of, kernel_propagation};
use super::{copy_up, devices};
use crate::plan::{Failure, Mount, MountSource, Plan};

/// File systems a plan may name. Others have no business in a container's set-up.
const KINDS: [&str; 6] = ["proc", "sysfs", "cgroup", "tmpfs", "devpts", "mqueue"];

/// Makes all mounts in order. Gives the root of the container's procfs for [`super::sysctl`], taken at its birth:
/// whatever is mounted over parts of it later does not redirect a write.
pub(super) fn attach_all(
    plan: &Plan,
    ready: &Ready,
    root: BorrowedFd<'_>,
) -> Result<Option<OwnedFd>, Failure> {
    let mut procfs = None;
    for (mount, bind) in plan.mounts.iter().zip(&ready.sources.binds) {
        match (&mount.source, bind) {
            (MountSource::Bind { copy_up, .. }, Some(tree)) => {
                attach_bind(mount, tree.as_fd(), root, *copy_up)?;
                set_propagation(mount, tree.as_fd())?;
            }
            (MountSource::Fs { kind, options }, _) => {
                let made = attach_fs(mount, kind, options, ready, root)?;
                set_propagation(mount, made.as_fd())?;
                if kind == "proc" {
                    procfs = Some(made);
                }
            }
            (MountSource::Bind { .. }, None) => {
                return Err(failure("mount", &mount.target, Errno::BADF));
            }
        }
    }
    Ok(procfs)
}

/// Last of all, for a shared mount would spread what is attached to it.
fn set_propagation(mount: &Mount, tree: BorrowedFd<'_>) -> Result<(), Failure> {
    let Some((propagation, recursive)) = mount.special.propagation else { return Ok(()) };
    let change = Change { propagation: kernel_propagation(propagation), recursive, ..Change::NONE };
    set_attributes(tree, &change).step("mount", &mount.target)
}

fn attach_bind(
    mount: &Mount,
    tree: BorrowedFd<'_>,
    root: BorrowedFd<'_>,
    copy_image_content: bool,
) -> Result<(), Failure> {
    let kind = kind_of(tree).step("mount", &mount.target)?;
    if copy_image_content && kind == Kind::Directory {
        match open_in(root, &mount.target, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(image) => copy_up::fill(image.as_fd(), tree).step("volume", &mount.target)?,
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(error) => return Err(error).step("volume", &mount.target),
        }
    }
    let target = open_or_make(root, &mount.target, kind).step("mount", &mount.target)?;
    move_to(tree, target.as_fd()).step("mount", &mount.target)
}

fn attach_fs(
    mount: &Mount,
    kind: &str,
    options: &[String],
    ready: &Ready,
    root: BorrowedFd<'_>,
) -> Result<OwnedFd, Failure> {
    if !KINDS.contains(&kind) {
        return Err(failure("mount", &format!("{}: file system {kind}", mount.target), Errno::NODEV));
    }
    let attributes = MountAttrFlags::from_bits_retain(u32::try_from(flags_of(mount)).unwrap_or(0));
    let target = open_or_make(root, &mount.target, Kind::Directory).step("mount", &mount.target)?;
    let source = mount.special.source.as_str();
    let made = match (make(kind, source, options, attributes), &ready.sources.host_sys) {
        (Err(Errno::PERM), Some(host_sys)) if kind == "sysfs" => {
            host_sys.try_clone().step("mount", &mount.target)?
        }
        (made, _) => made.step("mount", &mount.target)?,
    };
    if mount.special.copy_up && kind == "tmpfs" {
        copy_up::fill(target.as_fd(), made.as_fd()).step("mount", &mount.target)?;
    }
    if kind == "tmpfs" && mount.target.trim_end_matches('/') == "/dev" {
        devices::fill(made.as_fd())?;
    }
    move_to(made.as_fd(), target.as_fd()).step("mount", &mount.target)?;
    Ok(made)
}

fn make(
    kind: &str,
    source: &str,
    options: &[String],
    attributes: MountAttrFlags,
) -> rustix::io::Result<OwnedFd> {
    let kernel_name = if kind == "cgroup" { "cgroup2" } else { kind };
    let context = fsopen(kernel_name, FsOpenFlags::FSOPEN_CLOEXEC)?;
    if !source.is_empty() {
        fsconfig_set_string(context.as_fd(), "source", source)?;
    }
    for option in options {
        match option.split_once('=') {
            Some((key, value)) => fsconfig_set_string(context.as_fd(), key, value)?,
            None => fsconfig_set_flag(context.as_fd(), option.as_str())?,
        }
    }
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// An empty directory that cannot be written to, detached.
pub(super) fn empty() -> rustix::io::Result<OwnedFd> {
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID;
    make("tmpfs", "tmpfs", &["mode=755".to_owned()], attributes)
}

/// Attaches a detached mount at what `target` is open on.
pub(super) fn move_to(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, "", target, "", flags)
}
