//! How the copying process gets to a container's tree, and what it gives up on the way.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_sys::mount::{Change, NODEV, NOEXEC, NOSUID, Propagation, set_attributes};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, move_mount, open_tree,
};
use rustix::process::{Gid, Pid, PidfdFlags, Uid, pidfd_open};
use rustix::thread::{
    CapabilitySet, CapabilitySets, LinkNameSpaceType, move_into_link_name_space, set_capabilities,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::hold;
use super::job::{Bind, Place};
use super::tree::{FOLDER, Tree};
use crate::binds::HostPath;

/// Where control groups of containers are.
const CGROUPS: &str = "/sys/fs/cgroup/docker";
/// An empty directory of the root image, where a stopped container's tree is put together.
const STAND: &str = "/mnt";
/// How long to wait for another that copies files of the same stopped container.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most layers: their names must fit overlay's page of options.
const LAYERS_MAX: usize = 127;

/// The rights over files, all that is kept for a stopped container's tree.
const OVER_FILES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETFCAP);

/// Why there is no tree.
#[derive(Debug, thiserror::Error)]
pub(super) enum EnterError {
    /// The container started or ended since it was looked at.
    #[error("the container started or ended meanwhile")]
    Moved,
    /// The kernel refused.
    #[error("{step}")]
    Io {
        /// What was tried.
        step: String,
        /// Its reason.
        #[source]
        source: io::Error,
    },
}

fn at<E: Into<io::Error>>(step: impl Into<String>) -> impl FnOnce(E) -> EnterError {
    let step = step.into();
    move |error| EnterError::Io { step, source: error.into() }
}

/// A tree, and what keeps it.
#[derive(Debug)]
pub(super) struct Entered {
    pub(super) tree: Tree,
    /// The writable layer of a stopped container is ours.
    _hold: Option<OwnedFd>,
}

/// Goes to the tree. With `bare` the root file system alone is seen, without what is mounted in it.
pub(super) fn enter(place: &Place, bare: bool) -> Result<Entered, EnterError> {
    match place {
        Place::Running { pid, id, own_users } => {
            let root = running(*pid, id, *own_users, bare)?;
            Ok(Entered { tree: Tree::new(root).map_err(at("root"))?, _hold: None })
        }
        Place::Stopped { id, layers, writable, mounts } => {
            let held = match hold::take(writable, PATIENCE) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(EnterError::Moved),
                other => other.map_err(at("writable layer"))?,
            };
            if populated(id) {
                return Err(EnterError::Moved);
            }
            let mounts = if bare { &[][..] } else { mounts };
            let tree = stopped(layers, writable, mounts)?;
            let rights = CapabilitySets {
                effective: OVER_FILES,
                permitted: OVER_FILES,
                inheritable: CapabilitySet::empty(),
            };
            set_capabilities(None, rights).map_err(at("capabilities"))?;
            Ok(Entered { tree, _hold: Some(held) })
        }
    }
}

/// Whether anything runs in a container's control group.
fn populated(id: &str) -> bool {
    let events = std::fs::read_to_string(Path::new(CGROUPS).join(id).join("cgroup.events"));
    events.is_ok_and(|text| text.lines().any(|line| line == "populated 1"))
}

/// The root of a running container, as a member of its user namespace.
fn running(pid: i32, id: &str, own_users: bool, bare: bool) -> Result<OwnedFd, EnterError> {
    let pidfd = Pid::from_raw(pid).ok_or(EnterError::Moved)?;
    let pidfd = pidfd_open(pidfd, PidfdFlags::empty()).map_err(|_| EnterError::Moved)?;
    let read = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(|_| EnterError::Moved)
    };
    let root = open(format!("/proc/{pid}/root"), FOLDER, Mode::empty()).map_err(|_| EnterError::Moved)?;
    let (users, mounts) = (read("ns/user")?, read("ns/mnt")?);
    // The number may be another's by now: that one is in another group, or this one has ended.
    let group = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).map_err(|_| EnterError::Moved)?;
    let mine = group.lines().any(|line| line.split('/').any(|part| part == id));
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&now)).map_err(at("poll"))? > 0;
    if !mine || ended {
        return Err(EnterError::Moved);
    }
    let root = if bare { bare_root(&mounts)? } else { root };
    if own_users {
        move_into_link_name_space(users.as_fd(), Some(LinkNameSpaceType::User))
            .map_err(at("user namespace"))?;
        let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
        set_thread_groups(&[]).map_err(at("groups"))?;
        set_thread_res_gid(gid, gid, gid).map_err(at("group"))?;
        set_thread_res_uid(uid, uid, uid).map_err(at("user"))?;
    }
    Ok(root)
}

/// A container's root mount without those on it: cloned from within its mount namespace, which alone may.
fn bare_root(mounts: &OwnedFd) -> Result<OwnedFd, EnterError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let own = open("/proc/self/ns/mnt", flags, Mode::empty()).map_err(at("mount namespace"))?;
    let mount = Some(LinkNameSpaceType::Mount);
    move_into_link_name_space(mounts.as_fd(), mount).map_err(at("mount namespace"))?;
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let root = open_tree(rustix::fs::CWD, "/", clone);
    move_into_link_name_space(own.as_fd(), mount).map_err(at("mount namespace"))?;
    root.map_err(at("root"))
}

/// Mounts a stopped container's tree in a mount namespace of its own. Ids on disk are the container's, so nothing is
/// shifted.
fn stopped(layers: &[PathBuf], writable: &Path, mounts: &[Bind]) -> Result<Tree, EnterError> {
    if layers.is_empty() || layers.len() > LAYERS_MAX {
        return Err(at(format!("{} layers", layers.len()))(io::Error::from(io::ErrorKind::InvalidInput)));
    }
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).map_err(at("mount namespace"))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(at("private mounts"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("tmpfs", STAND, "tmpfs", flags, Some(c"mode=700")).map_err(at(STAND))?;
    // Short names, since overlay takes one page of options.
    rustix::process::chdir(STAND).map_err(at(STAND))?;
    for (number, layer) in layers.iter().enumerate() {
        bind(layer, &number.to_string())?;
    }
    bind(writable, "w")?;
    std::fs::create_dir("root").map_err(at("root"))?;
    let lower: Vec<String> = (0..layers.len()).rev().map(|number| number.to_string()).collect();
    let options = format!("lowerdir={},upperdir=w/fs,workdir=w/work", lower.join(":"));
    let options = std::ffi::CString::new(options).map_err(at("overlay"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("overlay", "root", "overlay", flags, Some(options.as_c_str()))
        .map_err(at("overlay"))?;
    let root = open("root", FOLDER, Mode::empty()).map_err(at("root"))?;
    rustix::process::chdir("/").map_err(at("/"))?;
    let tree = Tree::new(root).map_err(at("root"))?;
    for mount in mounts {
        show(&tree, mount)?;
    }
    Ok(tree)
}

fn bind(source: &Path, name: &str) -> Result<(), EnterError> {
    std::fs::create_dir(name).map_err(at(name))?;
    rustix::mount::mount_bind(source, name).map_err(at(source.display().to_string()))
}

/// Mounts a volume or a bind where the container would see it, making the place when it is missing.
fn show(tree: &Tree, mount: &Bind) -> Result<(), EnterError> {
    let named = || mount.target.clone();
    let clone = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let source = HostPath { folder: mount.source.clone(), below: mount.below.clone() };
    // A bind's source may be missing: it is made, or refused, at the start.
    let Ok(source) = source.open(false) else { return Ok(()) };
    let source = open_tree(&source, "", clone).map_err(at(named()))?;
    let folder = FileType::from_raw_mode(fstat(&source).map_err(at(named()))?.st_mode) == FileType::Directory;
    let target = mount.target.as_bytes();
    let place = if folder {
        tree.make_folders(target).map_err(at(named()))?
    } else {
        match tree.open(target, OFlags::PATH) {
            // What is not there yet is seen once the container has started.
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            other => other.map_err(at(named()))?,
        }
    };
    let change = Change {
        set: NOSUID | NODEV | NOEXEC,
        propagation: Propagation::Private,
        recursive: true,
        ..Change::NONE
    };
    set_attributes(source.as_fd(), &change).map_err(at(named()))?;
    let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&source, "", &place, "", empty).map_err(at(named()))
}
