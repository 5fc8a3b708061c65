//! What is mounted where, as two lists in order: before the root image and after it.

use std::ffi::CStr;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::Mode;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use crate::kmsg::warn;

/// A kernel file system at its place.
struct Mount {
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    options: &'static CStr,
    /// Mounted only when this exists: not every machine has EFI.
    needs: Option<&'static str>,
}

const SUID_DEV: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const SAFE: MountFlags = SUID_DEV.union(MountFlags::NOEXEC);

const fn at(kind: &'static str, target: &'static str, flags: MountFlags, options: &'static CStr) -> Mount {
    Mount { kind, target, flags, options, needs: None }
}

/// Moved to the new root by stage 1.
const BEFORE_ROOT: &[Mount] = &[
    at("proc", "/proc", SAFE, c""),
    at("sysfs", "/sys", SAFE, c""),
    at("devtmpfs", "/dev", MountFlags::NOSUID, c"mode=0755"),
    at("tmpfs", "/run", SUID_DEV, c"mode=0755,size=20%"),
];

/// The options of cgroup2 hold for every mount of it: whoever mounts it again must give the same.
const AFTER_ROOT: &[Mount] = &[
    at("devpts", "/dev/pts", MountFlags::NOSUID.union(MountFlags::NOEXEC), c"gid=5,mode=0620,ptmxmode=0666"),
    at("tmpfs", "/dev/shm", SUID_DEV, c"mode=1777,size=25%"),
    at("mqueue", "/dev/mqueue", SAFE, c""),
    at("tmpfs", "/tmp", SUID_DEV, c"mode=1777,size=10%"),
    at("cgroup2", "/sys/fs/cgroup", SAFE, c"nsdelegate,memory_recursiveprot"),
    Mount { needs: Some("/sys/kernel/security"), ..at("securityfs", "/sys/kernel/security", SAFE, c"") },
    Mount { needs: Some("/sys/fs/pstore"), ..at("pstore", "/sys/fs/pstore", SAFE, c"") },
    Mount { needs: Some("/sys/fs/bpf"), ..at("bpf", "/sys/fs/bpf", SAFE, c"mode=0700") },
    Mount {
        needs: Some("/sys/firmware/efi/efivars"),
        ..at("efivarfs", "/sys/firmware/efi/efivars", SAFE, c"")
    },
];

/// Links that programs expect and devtmpfs does not make.
const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Mounts what stage 1 needs. Errors cannot be logged yet: they are given back.
pub(crate) fn before_root() -> Vec<(&'static str, io::Error)> {
    BEFORE_ROOT.iter().filter_map(|entry| entry.make().err().map(|error| (entry.target, error))).collect()
}

/// Mounts the rest; a failure is logged and the boot goes on.
pub(crate) fn after_root() {
    // Containers get slaves of it; the agent's mounts show in PID 1's namespace, which is the same.
    if let Err(error) = mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC) {
        warn!("/ does not become shared: {error}, continuing");
    }
    for entry in AFTER_ROOT {
        if entry.needs.is_some_and(|path| !Path::new(path).exists()) {
            continue;
        }
        if let Err(error) = entry.make() {
            warn!("{} does not mount on {}: {error}, continuing", entry.kind, entry.target);
        }
    }
    for (target, link) in LINKS {
        if let Err(error) = symlink(target, link)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            warn!("no link {link}: {error}, continuing");
        }
    }
}

impl Mount {
    fn make(&self) -> io::Result<()> {
        make_folder(self.target, 0o755)?;
        match mount(self.kind, self.target, self.kind, self.flags, self.options) {
            // Already there: the kernel mounts devtmpfs itself when told so on its command line.
            Ok(()) | Err(rustix::io::Errno::BUSY) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Makes one folder; one that exists is fine.
pub(crate) fn make_folder(path: &str, mode: u32) -> io::Result<()> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(mode)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        // A read-only root has the mount points already.
        Err(rustix::io::Errno::ROFS) if Path::new(path).is_dir() => Ok(()),
        Err(error) => Err(error.into()),
    }
}
