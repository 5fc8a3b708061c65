//! The floor: bare system calls that make the same namespaces, mounts and control group, with every path and flag
//! known beforehand. No protocol, no plan, no names of steps, no look-ups in the container's tree, no filter.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use berth_runtime::cgroup::Group;
use berth_runtime::defaults;
use berth_sys::clone::{Options, SingleThreaded, spawn};
use berth_sys::mount::{self as attributes, Change, Propagation};
use berth_sys::process::{close_on_exec_from, exit_now};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Result;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{BASE, COUNT, Contender, GROUPS, Took, open_dir, since};

/// Where the root is put together.
const STAND: &str = "/mnt";

pub(crate) struct Floor {
    single: SingleThreaded,
    dir: PathBuf,
    layers: [PathBuf; 2],
    ready: Option<[OwnedFd; 2]>,
}

impl Floor {
    pub(crate) fn new(single: SingleThreaded, dir: &Path, layers: &[PathBuf; 2]) -> Self {
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).unwrap();
        rustix::mount::mount("tmpfs", STAND, "tmpfs", MountFlags::empty(), Some(c"mode=755")).unwrap();
        for name in ["0", "1", "w", "m", "root", "empty"] {
            std::fs::create_dir(Path::new(STAND).join(name)).unwrap();
        }
        Self { single, dir: dir.to_owned(), layers: layers.clone(), ready: None }
    }
}

/// A user namespace with its ids, and a network namespace that it owns.
fn namespaces(single: SingleThreaded) -> [OwnedFd; 2] {
    let (wait, go) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let flags = u64::from((libc::CLONE_NEWUSER | libc::CLONE_NEWNET).unsigned_abs());
    let mut go = Some(go);
    let child = spawn(single, Options { namespaces: flags, ..Options::default() }, || {
        drop(go.take());
        let _ = rustix::io::read(&wait, &mut [0; 1]);
        0
    })
    .unwrap();
    for file in ["uid_map", "gid_map"] {
        std::fs::write(format!("/proc/{}/{file}", child.pid), format!("0 {BASE} {COUNT}\n")).unwrap();
    }
    let open = |name: &str| {
        let path = format!("/proc/{}/ns/{name}", child.pid);
        rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap()
    };
    let made = [open("user"), open("net")];
    drop(go.take());
    waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED).unwrap();
    made
}

fn tree(path: &Path) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, path, flags)
}

fn attach(tree: BorrowedFd<'_>, path: &str) -> Result<()> {
    rustix::mount::move_mount(tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Overlay of two layers with shifted owners, detached.
fn root(layers: &[PathBuf; 2], writable: &Path, user: BorrowedFd<'_>) -> OwnedFd {
    let shift = Change { idmap: Some(user), propagation: Propagation::Private, ..Change::NONE };
    for (path, name) in layers.iter().map(PathBuf::as_path).chain([writable]).zip(["0", "1", "w"]) {
        let layer = tree(path).unwrap();
        attributes::set_attributes(layer.as_fd(), &shift).unwrap();
        attach(layer.as_fd(), &format!("{STAND}/{name}")).unwrap();
    }
    rustix::process::chdir(STAND).unwrap();
    let before = rustix::thread::capabilities(None).unwrap();
    nix::unistd::setfsgid(BASE.into());
    nix::unistd::setfsuid(BASE.into());
    rustix::thread::set_capabilities(None, before).unwrap();
    let options = c"lowerdir=1:0,upperdir=w/fs,workdir=w/work";
    rustix::mount::mount("overlay", "m", "overlay", MountFlags::NODEV, Some(options)).unwrap();
    nix::unistd::setfsuid(0.into());
    nix::unistd::setfsgid(0.into());
    rustix::thread::set_capabilities(None, before).unwrap();
    let root = tree(Path::new("m")).unwrap();
    for name in ["m", "w", "1", "0"] {
        rustix::mount::unmount(name, UnmountFlags::DETACH).unwrap();
    }
    rustix::process::chdir("/").unwrap();
    root
}

fn new(kind: &str, options: &[(&str, &str)], flags: MountAttrFlags) -> Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)
}

/// The same seven mounts, nodes and hidden paths as `defaults`.
fn mounts() -> Result<()> {
    let all = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let readonly = all | MountAttrFlags::MOUNT_ATTR_RDONLY;
    let dev = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    attach(new("proc", &[], all)?.as_fd(), "proc")?;
    attach(new("tmpfs", &[("mode", "755"), ("size", "65536k")], dev)?.as_fd(), "dev")?;
    for name in ["pts", "shm", "mqueue"] {
        rustix::fs::mkdir(format!("dev/{name}"), Mode::from_raw_mode(0o755))?;
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "fd/0"),
        ("stdout", "fd/1"),
        ("stderr", "fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        rustix::fs::symlink(target, format!("dev/{name}"))?;
    }
    for name in ["null", "zero", "full", "random", "urandom", "tty"] {
        let place = format!("dev/{name}");
        rustix::fs::mknodat(CWD, &place, FileType::RegularFile, Mode::from_raw_mode(0o666), 0)?;
        attach(tree(&Path::new("/").join(&place))?.as_fd(), &place)?;
    }
    attach(new("devpts", &[("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")], dev)?.as_fd(), "dev/pts")?;
    attach(new("tmpfs", &[("mode", "1777"), ("size", "67108864")], all)?.as_fd(), "dev/shm")?;
    attach(new("mqueue", &[], all)?.as_fd(), "dev/mqueue")?;
    attach(new("sysfs", &[], readonly)?.as_fd(), "sys")?;
    attach(new("cgroup2", &[], readonly)?.as_fd(), "sys/fs/cgroup")?;
    for path in defaults::READONLY_PATHS {
        let path = &path[1..];
        let Ok(clone) = tree(Path::new(path)) else { continue };
        let change = Change { set: attributes::RDONLY, ..Change::NONE };
        attributes::set_attributes(clone.as_fd(), &change).map_err(|_| rustix::io::Errno::IO)?;
        attach(clone.as_fd(), path)?;
    }
    for path in defaults::MASKED_PATHS {
        let path = &path[1..];
        let Ok(stat) = rustix::fs::stat(path) else { continue };
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let cover = tree(Path::new(if is_dir { "/mnt/empty" } else { "/dev/null" }))?;
        attach(cover.as_fd(), path)?;
    }
    Ok(())
}

/// The container's first process.
fn child(root: BorrowedFd<'_>) -> Result<()> {
    use rustix::thread::{CapabilitySet, Gid, Uid};
    rustix::process::setsid()?;
    rustix::thread::set_thread_groups(&[])?;
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP).map_err(|_| rustix::io::Errno::IO)?;
    attach(root, "/mnt/root")?;
    rustix::process::chdir("/mnt/root")?;
    mounts()?;
    rustix::system::sethostname(b"bench")?;
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    for bit in (0..41).filter(|bit| berth_runtime::capability::DEFAULT >> bit & 1 == 0) {
        rustix::thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit))?;
    }
    rustix::thread::set_no_new_privs(true)?;
    close_on_exec_from(3).map_err(|_| rustix::io::Errno::IO)?;
    let program = CString::new("/bin/true").unwrap_or_default();
    let _ = nix::unistd::execve(&program, &[&program], &[c"PATH=/bin"]);
    Err(rustix::io::Errno::NOENT)
}

impl Contender for Floor {
    fn name(&self) -> String {
        "floor".to_owned()
    }

    fn prepare(&mut self, _round: u32) {
        self.ready = Some(namespaces(self.single));
    }

    fn start(&mut self, round: u32) -> Took {
        let [user, net] = self.ready.take().unwrap();
        let begun = Instant::now();
        let writable = self.dir.join(format!("floor-{round}"));
        for sub in ["fs", "work"] {
            std::fs::create_dir_all(writable.join(sub)).unwrap();
        }
        let group = Group::create(open_dir(Path::new(GROUPS)).as_fd(), &format!("floor-{round}")).unwrap();
        let root = root(&self.layers, &writable, user.as_fd());
        let (seen, kept) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let (single, mut seen) = (self.single, Some(seen));
        // As with the launcher: a process that enters the user namespace makes the one that lives in it.
        let helper = spawn(single, Options::default(), || {
            drop(seen.take());
            move_into_link_name_space(net.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User)).unwrap();
            let flags = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
            let namespaces = u64::from(flags.unsigned_abs());
            let options = Options { namespaces, sibling: true, cgroup: Some(group.dir()) };
            let made = spawn(single, options, || {
                let error = child(root.as_fd());
                eprintln!("floor: {error:?}");
                exit_now(1)
            });
            i32::from(made.is_err())
        })
        .unwrap();
        drop(kept);
        // The end of the pipe is execve's doing.
        let _ = rustix::io::read(seen.as_ref().unwrap(), &mut [0; 1]);
        let took = since(begun);
        waitid(WaitId::PidFd(helper.pidfd.as_fd()), WaitIdOptions::EXITED).unwrap();
        waitid(WaitId::All, WaitIdOptions::EXITED).unwrap();
        drop(root);
        group.remove().unwrap();
        Took { started: took, gone: since(begun) }
    }
}
