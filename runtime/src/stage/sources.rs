//! Turning the descriptors of a plan into detached mounts with the right flags and owners; the launcher's part.
//!
//! Descriptors come from the agent's mount namespace, and only from inside a mount namespace can its mounts be
//! cloned. So the launcher steps back into the host's for the clones and returns.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_sys::mount::{self as attributes, Change, Propagation};
use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::failure::{Step, failure};
use super::nodes;
use crate::plan::{self, Failure, Fd, Mount, MountSource, Namespace, Plan, Stdio, UserNamespace};

/// Descriptors that came beside a plan.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fds<'a>(pub(crate) &'a [OwnedFd]);

impl<'a> Fds<'a> {
    /// The descriptor of an index.
    pub(crate) fn get(self, fd: Fd) -> Result<BorrowedFd<'a>, Failure> {
        let found = self.0.get(usize::from(fd.0));
        found.map(AsFd::as_fd).ok_or_else(|| failure("plan", &format!("descriptor {}", fd.0), Errno::BADF))
    }
}

/// The mount namespaces the launcher works in.
#[derive(Debug)]
pub(crate) struct MountNamespaces {
    /// The host's, where the agent opened its descriptors.
    pub(crate) host: OwnedFd,
    /// The launcher's private one.
    pub(crate) own: OwnedFd,
}

impl MountNamespaces {
    /// Runs `work` in the host's mount namespace. If there is no way back the process ends: it must not serve
    /// another request in the wrong namespace, and init starts it anew.
    fn in_host<T>(&self, work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        enter(&self.host).step("mount namespace", "host")?;
        let result = work();
        if enter(&self.own).is_err() {
            berth_sys::process::exit_now(1);
        }
        result
    }
}

fn enter(namespace: &OwnedFd) -> rustix::io::Result<()> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))
}

/// Everything of a plan that is a descriptor, ready to be attached inside the container.
#[derive(Debug)]
pub(crate) struct Sources {
    /// Layers, lowest first, owners shifted.
    pub(crate) layers: Vec<OwnedFd>,
    /// Directory with `fs` and `work`, owners shifted.
    pub(crate) writable: Option<OwnedFd>,
    /// For each mount of the plan: the detached tree of a bind.
    pub(crate) binds: Vec<Option<OwnedFd>>,
    /// For each device of the plan: its node, detached.
    pub(crate) devices: Vec<OwnedFd>,
    /// For each node of the plan that is made: the same.
    pub(crate) nodes: Vec<OwnedFd>,
    /// The host's `/sys`, detached, for containers that may not mount their own (network namespace of another).
    pub(crate) host_sys: Option<OwnedFd>,
}

/// Whose ids the files of the root have on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owners {
    /// The container's own (0 is its root): they are shifted into its range.
    Shifted,
    /// The host's, of the container's range already (the OCI bundle's way).
    Unchanged,
}

/// Clones what the plan names and sets flags and owners.
pub(crate) fn detach(
    plan: &Plan,
    fds: Fds<'_>,
    namespaces: &MountNamespaces,
    owners: Owners,
) -> Result<Sources, Failure> {
    let user = user_namespace(plan, fds)?;
    let mut sources = namespaces.in_host(|| clone_all(plan, fds))?;
    sources.nodes = nodes::make(&plan.special.nodes)?;
    let shift = user.filter(|_| owners == Owners::Shifted);
    let idmap = Change { idmap: shift, propagation: Propagation::Private, ..Change::NONE };
    for (index, layer) in sources.layers.iter().chain(&sources.writable).enumerate() {
        attributes::set_attributes(layer.as_fd(), &idmap).step("layer", format!("layer {index}"))?;
    }
    for (mount, tree) in plan.mounts.iter().zip(&sources.binds) {
        if let Some(tree) = tree {
            let own = mount.special.idmap.map(|fd| fds.get(fd)).transpose()?;
            set_bind_attributes(mount, tree.as_fd(), own.or(user))?;
        }
    }
    for (device, node) in plan.devices.iter().zip(&sources.devices) {
        let flags = attributes::NOSUID | attributes::NOEXEC;
        let change = Change { set: flags, propagation: Propagation::Private, ..Change::NONE };
        attributes::set_attributes(node.as_fd(), &change).step("device", &device.target)?;
    }
    Ok(sources)
}

/// The container's user namespace; none for the host's.
pub(crate) fn user_namespace<'a>(plan: &Plan, fds: Fds<'a>) -> Result<Option<BorrowedFd<'a>>, Failure> {
    match plan.namespaces.user {
        UserNamespace::Own { fd, .. } => fds.get(fd).map(Some),
        UserNamespace::Host => Ok(None),
    }
}

fn clone_all(plan: &Plan, fds: Fds<'_>) -> Result<Sources, Failure> {
    let layer = |fd: &Fd| clone_tree(fds.get(*fd)?, false).step("layer", "clone");
    let layers = plan.root.layers.iter().map(layer).collect::<Result<_, _>>()?;
    let writable = plan.root.writable.as_ref().map(layer).transpose()?;
    let binds = plan.mounts.iter().map(|mount| clone_bind(mount, fds)).collect::<Result<_, _>>()?;
    let node = |device: &crate::plan::Device| {
        let fd = fds.get(device.fd)?;
        is_device(fd).and_then(|()| clone_tree(fd, false)).step("device", &device.target)
    };
    let devices = plan.devices.iter().map(node).collect::<Result<_, _>>()?;
    let host_sys = if needs_host_sys(plan, fds)? { Some(clone_sys()?) } else { None };
    Ok(Sources { layers, writable, binds, devices, nodes: Vec::new(), host_sys })
}

fn clone_bind(mount: &Mount, fds: Fds<'_>) -> Result<Option<OwnedFd>, Failure> {
    match mount.source {
        MountSource::Bind { fd, recursive, .. } => {
            let tree = clone_tree(fds.get(fd)?, recursive).step("mount", &mount.target)?;
            Ok(Some(tree))
        }
        MountSource::Fs { .. } => Ok(None),
    }
}

fn is_device(fd: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let kind = FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode);
    if matches!(kind, FileType::CharacterDevice | FileType::BlockDevice) { Ok(()) } else { Err(Errno::NODEV) }
}

fn clone_tree(fd: BorrowedFd<'_>, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(fd, "", flags)
}

/// A container in the host's or another container's network namespace may not mount sysfs, which shows it.
fn needs_host_sys(plan: &Plan, fds: Fds<'_>) -> Result<bool, Failure> {
    let UserNamespace::Own { fd: user, .. } = plan.namespaces.user else { return Ok(false) };
    let mounts_sys = plan.mounts.iter().any(|mount| match &mount.source {
        MountSource::Fs { kind, .. } => kind == "sysfs",
        MountSource::Bind { .. } => false,
    });
    match plan.namespaces.net {
        _ if !mounts_sys => Ok(false),
        Namespace::New => Ok(false),
        Namespace::Host => Ok(true),
        Namespace::Join(net) => {
            let owner = berth_sys::namespace::owner(fds.get(net)?).step("network", "owner")?;
            let same = same_file(owner.as_fd(), fds.get(user)?).step("network", "owner")?;
            Ok(!same)
        }
    }
}

fn same_file(left: BorrowedFd<'_>, right: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    let (left, right) = (rustix::fs::fstat(left)?, rustix::fs::fstat(right)?);
    Ok((left.st_dev, left.st_ino) == (right.st_dev, right.st_ino))
}

fn clone_sys() -> Result<OwnedFd, Failure> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(rustix::fs::CWD, "/sys", flags).step("mount", "/sys")?;
    let set = attributes::RDONLY | attributes::NOSUID | attributes::NODEV | attributes::NOEXEC;
    let change = Change { set, propagation: Propagation::Private, ..Change::NONE };
    attributes::set_attributes(tree.as_fd(), &change).step("mount", "/sys")?;
    Ok(tree)
}

fn set_bind_attributes(
    mount: &Mount,
    tree: BorrowedFd<'_>,
    user: Option<BorrowedFd<'_>>,
) -> Result<(), Failure> {
    let MountSource::Bind { idmap, recursive, slave, .. } = mount.source else { return Ok(()) };
    let special = &mount.special;
    let change = Change {
        set: flags_of(mount),
        clear: special.clear,
        propagation: match special.propagation {
            // The clone stays a peer of its source, or becomes its follower when all is attached.
            Some((plan::Propagation::Shared | plan::Propagation::Slave, _)) => Propagation::Unchanged,
            _ if slave => Propagation::Slave,
            _ => Propagation::Private,
        },
        idmap: if idmap { user } else { None },
        recursive: recursive && special.propagation.is_none() && special.clear == 0,
    };
    let unshifted = Change { idmap: None, ..change };
    match attributes::set_attributes(tree, &change) {
        // The file system cannot shift owners (tmpfs before Linux 6.3, procfs, network file systems). Shown as it is,
        // its files belong to nobody inside, and the container has what everybody has.
        Err(error)
            if change.idmap.is_some()
                && special.idmap.is_none()
                && error.raw_os_error() == Some(libc::EINVAL) =>
        {
            attributes::set_attributes(tree, &unshifted)
        }
        result => result,
    }
    .step("mount", &mount.target)?;
    if special.recursive_set | special.recursive_clear != 0 {
        let (set, clear) = (special.recursive_set, special.recursive_clear);
        let below = Change { set, clear, recursive: true, ..Change::NONE };
        attributes::set_attributes(tree, &below).step("mount", &mount.target)?;
    }
    Ok(())
}

/// The plan's word for what the kernel calls it.
pub(crate) fn kernel_propagation(wanted: plan::Propagation) -> Propagation {
    match wanted {
        plan::Propagation::Private => Propagation::Private,
        plan::Propagation::Slave => Propagation::Slave,
        plan::Propagation::Shared => Propagation::Shared,
        plan::Propagation::Unbindable => Propagation::Unbindable,
    }
}

/// The `MOUNT_ATTR_*` bits of a mount.
pub(crate) fn flags_of(mount: &Mount) -> u64 {
    let choices = [
        (mount.readonly, attributes::RDONLY),
        (mount.nosuid, attributes::NOSUID),
        (mount.nodev, attributes::NODEV),
        (mount.noexec, attributes::NOEXEC),
    ];
    choices.iter().filter(|(chosen, _)| *chosen).fold(mount.special.set, |set, (_, bit)| set | bit)
}

/// The three standard streams of a plan, or none for a terminal.
pub(crate) fn streams(stdio: Stdio, fds: Fds<'_>) -> Result<Option<[BorrowedFd<'_>; 3]>, Failure> {
    match stdio {
        Stdio::Fds([input, output, error]) => Ok(Some([fds.get(input)?, fds.get(output)?, fds.get(error)?])),
        Stdio::Terminal { .. } => Ok(None),
    }
}
