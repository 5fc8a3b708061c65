//! The launcher's own corner of its private mount namespace: where layers are attached for the moment overlay
//! needs to see them, and where a container's root lies before it becomes the root.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, mkdirat};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use super::failure::Step;
use crate::plan::Failure;

/// Mount point of the scratch tmpfs; an empty directory of the read-only root.
pub(crate) const DIR: &str = "/mnt";
/// A container's root before `pivot_root`, in the container's copy of the launcher's mount namespace.
pub(crate) const ROOT: &str = "/mnt/root";
/// An empty read-only directory, bound over directories that are hidden.
pub(crate) const EMPTY: &str = "/mnt/empty";
/// Where [`LAYERS`] is attached while overlay is mounted.
pub(crate) const STAND: &str = "/mnt/stand";
/// Holds the mount points `0` to `126`, `w` and `m`.
pub(crate) const LAYERS: &str = "/mnt/layers";
/// Most layers below a container. Docker's own limit is 125, and all names must fit overlay's 4096 bytes of options.
pub(crate) const LAYERS_MAX: usize = 127;

/// Mounts and fills the scratch directory; once, in a private mount namespace.
pub(crate) fn prepare() -> Result<(), Failure> {
    rustix::mount::mount("tmpfs", DIR, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=755"))
        .step("scratch", DIR)?;
    let dir = open(DIR)?;
    for name in ["root", "empty", "stand", "layers"] {
        mkdirat(&dir, name, Mode::from_raw_mode(0o755)).step("scratch", name)?;
    }
    let layers = open(LAYERS)?;
    let names = (0..LAYERS_MAX).map(|index| index.to_string());
    for name in names.chain(["w".to_owned(), "m".to_owned()]) {
        mkdirat(&layers, name.as_str(), Mode::from_raw_mode(0o755)).step("scratch", &name)?;
    }
    rustix::mount::mount_bind(EMPTY, EMPTY).step("scratch", EMPTY)?;
    let flags = MountFlags::RDONLY | MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount_remount(EMPTY, flags, "").step("scratch", EMPTY)?;
    Ok(())
}

/// The same in a mount namespace that was joined: nothing of the set-up shall reach the namespaces it is a peer of.
pub(crate) fn prepare_joined() -> Result<(), Failure> {
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", slave).step("scratch", "propagation")?;
    prepare()
}

/// Leaves the mounts a container's set-up needs (`/`, `/proc`, `/sys`, `/dev`) and drops the others from this
/// mount namespace: each mount here is copied at each start, and would keep its file system busy at shutdown.
pub(crate) fn make_private() -> Result<(), Failure> {
    let all = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", all).step("scratch", "private mounts")?;
    let table = std::fs::read_to_string("/proc/self/mountinfo").step("scratch", "mountinfo")?;
    for point in table.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
        let kept = ["/proc", "/sys", "/dev"];
        let keep = point == "/" || kept.iter().any(|dir| is_at_or_below(point, dir));
        if !keep {
            // Some are gone already with the mount they lay on; one that stays costs time, nothing else.
            let _ = rustix::mount::unmount(point, UnmountFlags::DETACH);
        }
    }
    Ok(())
}

fn is_at_or_below(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Opens a directory of the launcher's own.
pub(crate) fn open(path: &str) -> Result<OwnedFd, Failure> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(rustix::fs::CWD.as_fd(), path, flags, Mode::empty()).step("scratch", path)
}
