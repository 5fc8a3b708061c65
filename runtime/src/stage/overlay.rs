//! The root file system as one detached mount; the launcher's part.
//!
//! Overlay of kernel 6.1 takes paths in one page of text, and its layers must be attached in the caller's mount
//! namespace. So each layer is attached at a short name, overlay is mounted beside them, and one detaching unmount
//! drops all of it but the clone that is handed on: overlay keeps clones of its layers' mounts, owners shifted.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_sys::mount::{self as attributes, Change};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use rustix::thread::{capabilities, set_capabilities};

use super::failure::{Step, failure};
use super::scratch;
use super::sources::Sources;
use crate::plan::Failure;

/// Longest option text: one page with its terminating zero (`copy_mount_options`).
const OPTIONS_MAX: usize = 4095;

/// Assembles the root from `sources`, which are used up. `host_root` is the host's id of the container's root.
pub(crate) fn assemble(sources: &mut Sources, host_root: u32) -> Result<OwnedFd, Failure> {
    let layers = std::mem::take(&mut sources.layers);
    let writable = sources.writable.take();
    match (<[OwnedFd; 1]>::try_from(layers), writable) {
        (Ok([only]), None) => {
            let change = Change { set: attributes::NODEV, ..Change::NONE };
            attributes::set_attributes(only.as_fd(), &change).step("root", "bind")?;
            Ok(only)
        }
        (Ok([only]), writable) => mount(vec![only], writable, host_root),
        (Err(layers), writable) => mount(layers, writable, host_root),
    }
}

fn mount(layers: Vec<OwnedFd>, writable: Option<OwnedFd>, host_root: u32) -> Result<OwnedFd, Failure> {
    let options = options(layers.len(), writable.is_some())?;
    let stand = clone(scratch::LAYERS).step("root", scratch::LAYERS)?;
    attach(stand.as_fd(), rustix::fs::CWD, scratch::STAND).step("root", scratch::STAND)?;
    let result = mount_on_stand(&layers, writable.as_ref(), &options, host_root);
    let left = rustix::process::chdir("/")
        .and_then(|()| rustix::mount::unmount(scratch::STAND, UnmountFlags::DETACH));
    let root = result?;
    left.step("root", scratch::STAND)?;
    Ok(root)
}

fn mount_on_stand(
    layers: &[OwnedFd],
    writable: Option<&OwnedFd>,
    options: &CString,
    host_root: u32,
) -> Result<OwnedFd, Failure> {
    rustix::process::chdir(scratch::STAND).step("root", scratch::STAND)?;
    for (index, layer) in layers.iter().enumerate() {
        let name = index.to_string();
        attach(layer.as_fd(), rustix::fs::CWD, &name).step("root", format!("layer {name}"))?;
    }
    if let Some(dir) = writable {
        attach(dir.as_fd(), rustix::fs::CWD, "w").step("root", "writable layer")?;
    }
    as_container_root(host_root, || {
        rustix::mount::mount("overlay", "m", "overlay", MountFlags::NODEV, Some(options.as_c_str()))
    })
    .step("root", options.to_string_lossy())?;
    clone("m").step("root", "clone")
}

/// Overlay makes its own files (work directory, whiteouts) as whoever mounted it, and a writable layer with shifted
/// owners only takes files of ids that are in the container's range.
fn as_container_root(
    host_root: u32,
    work: impl FnOnce() -> rustix::io::Result<()>,
) -> rustix::io::Result<()> {
    if host_root == 0 {
        return work();
    }
    let before = capabilities(None)?;
    setfsgid(Gid::from_raw(host_root));
    setfsuid(Uid::from_raw(host_root));
    // Leaving file system id 0 dropped the file capabilities, which overlay needs in its credentials.
    let result = set_capabilities(None, before).and_then(|()| work());
    setfsuid(Uid::from_raw(0));
    setfsgid(Gid::from_raw(0));
    set_capabilities(None, before)?;
    result
}

fn clone(path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(rustix::fs::CWD, path, flags)
}

fn attach(tree: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &str) -> rustix::io::Result<()> {
    rustix::mount::move_mount(tree, "", dir, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Overlay's options for `count` layers at the names `0` (lowest) and up.
fn options(count: usize, writable: bool) -> Result<CString, Failure> {
    if count == 0 || count > scratch::LAYERS_MAX {
        return Err(failure("root", &format!("{count} layers"), Errno::INVAL));
    }
    let names: Vec<String> = (0..count).rev().map(|index| index.to_string()).collect();
    let mut options = format!("lowerdir={}", names.join(":"));
    if writable {
        options.push_str(",upperdir=w/fs,workdir=w/work");
    }
    if options.len() > OPTIONS_MAX {
        return Err(failure("root", "overlay options", Errno::NAMETOOLONG));
    }
    CString::new(options).map_err(|_| failure("root", "overlay options", Errno::INVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_layer_comes_first() {
        assert_eq!(options(3, true).unwrap().to_str(), Ok("lowerdir=2:1:0,upperdir=w/fs,workdir=w/work"));
        assert_eq!(options(2, false).unwrap().to_str(), Ok("lowerdir=1:0"));
    }

    #[test]
    fn as_many_layers_as_allowed_fit_one_page() {
        let text = options(scratch::LAYERS_MAX, true).unwrap();
        assert!(text.as_bytes().len() < OPTIONS_MAX);
        assert!(text.to_str().unwrap().starts_with("lowerdir=126:125:"));
        assert!(options(scratch::LAYERS_MAX + 1, true).is_err());
        assert!(options(0, true).is_err());
    }
}
