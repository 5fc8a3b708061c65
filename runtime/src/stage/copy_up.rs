//! Filling an empty volume with what the image has at its place, as Docker does for named volumes.
//!
//! Runs with the container's own privileges. Both trees are walked by descriptor and no link is followed.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod,
    fchown, fgetxattr, flistxattr, fsetxattr, fstat, futimens, mkdirat, openat, readlinkat, statat,
    symlinkat, utimensat,
};
use rustix::io::Errno;

/// How deep directories are followed; a descriptor is open for each level of both trees.
const DEPTH_MAX: usize = 128;
/// Bytes copied at once when the file systems cannot do it themselves.
const CHUNK: usize = 1 << 20;
/// Longest list of names and longest value of extended attributes, in bytes.
const XATTR_MAX: usize = 64 * 1024;

/// Copies the content of `image` into `volume` if that is empty; owner and mode of the directory included.
pub(super) fn fill(image: BorrowedFd<'_>, volume: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let volume = openat(volume, ".", DIRECTORY, Mode::empty())?;
    if !is_empty(volume.as_fd())? {
        return Ok(());
    }
    copy_dir(image, volume.as_fd(), DEPTH_MAX)
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn is_empty(dir: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        // A volume that is the root of an ext4 file system of its own is as good as empty.
        if name != c"." && name != c".." && name != c"lost+found" {
            return Ok(false);
        }
    }
    Ok(true)
}

fn copy_dir(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: usize) -> rustix::io::Result<()> {
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            copy_entry(from, to, name, depth)?;
        }
    }
    copy_metadata(from, to, &fstat(from)?)
}

fn copy_entry(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, depth: usize) -> rustix::io::Result<()> {
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory if depth == 0 => Err(Errno::LOOP),
        FileType::Directory => {
            mkdirat(to, name, Mode::from_raw_mode(0o700))?;
            let source = openat(from, name, DIRECTORY, Mode::empty())?;
            let target = openat(to, name, DIRECTORY, Mode::empty())?;
            copy_dir(source.as_fd(), target.as_fd(), depth - 1)
        }
        FileType::RegularFile => copy_file(from, to, name, &stat),
        FileType::Symlink => {
            symlinkat(readlinkat(from, name, Vec::new())?.as_c_str(), to, name)?;
            let (uid, gid) = owner(&stat);
            chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            utimensat(to, name, &times(&stat), AtFlags::SYMLINK_NOFOLLOW)
        }
        // Sockets, pipes and devices of an image mean nothing in a volume.
        _ => Ok(()),
    }
}

fn copy_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> rustix::io::Result<()> {
    let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let source = openat(from, name, read, Mode::empty())?;
    let target = openat(to, name, write, Mode::from_raw_mode(0o600))?;
    copy_bytes(&source, &target)?;
    copy_metadata(source.as_fd(), target.as_fd(), stat)
}

fn copy_bytes(source: &OwnedFd, target: &OwnedFd) -> rustix::io::Result<()> {
    loop {
        match rustix::fs::copy_file_range(source, None, target, None, CHUNK) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => break,
            Err(error) => return Err(error),
        }
    }
    // What is left when the kernel could not copy (nothing, if it could): the offsets stand where it stopped.
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = rustix::io::retry_on_intr(|| rustix::io::read(source, &mut chunk))?;
        let Some(mut left) = chunk.get(..length).filter(|read| !read.is_empty()) else { return Ok(()) };
        while !left.is_empty() {
            let written = rustix::io::retry_on_intr(|| rustix::io::write(target, left))?;
            left = left.get(written..).unwrap_or_default();
        }
    }
}

/// Owner before mode, for a change of owner clears set-user-id; times last.
fn copy_metadata(from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat) -> rustix::io::Result<()> {
    let (uid, gid) = owner(stat);
    fchown(to, Some(uid), Some(gid))?;
    fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
    copy_attributes(from, to)?;
    futimens(to, &times(stat))
}

fn copy_attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let mut names = vec![0u8; XATTR_MAX];
    let length = match flistxattr(from, &mut names) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut value = vec![0u8; XATTR_MAX];
    for name in names.get(..length).unwrap_or_default().split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        let size = fgetxattr(from, name, &mut value)?;
        let bytes = value.get(..size).unwrap_or_default();
        match fsetxattr(to, name, bytes, XattrFlags::empty()) {
            // Attributes that are not the container's to set (trusted, another security module) stay behind.
            Ok(()) | Err(Errno::PERM | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn owner(stat: &Stat) -> (Uid, Gid) {
    (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid))
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds: i64, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::{Path, PathBuf};

    struct Temporary(PathBuf);

    impl Temporary {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("berth-copy-{name}-{}", std::process::id()));
            std::fs::create_dir_all(path.join("image")).unwrap();
            std::fs::create_dir_all(path.join("volume")).unwrap();
            Self(path)
        }

        fn fill(&self) {
            let open = |path: &Path| rustix::fs::open(path, DIRECTORY, Mode::empty()).unwrap();
            let (image, volume) = (open(&self.0.join("image")), open(&self.0.join("volume")));
            fill(image.as_fd(), volume.as_fd()).unwrap();
        }
    }

    impl Drop for Temporary {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn an_empty_volume_gets_content_modes_links_and_times() {
        let tree = Temporary::new("fill");
        let (image, volume) = (tree.0.join("image"), tree.0.join("volume"));
        std::fs::create_dir(image.join("sub")).unwrap();
        std::fs::write(image.join("sub/file"), "content").unwrap();
        std::fs::set_permissions(image.join("sub/file"), PermissionsExt::from_mode(0o640)).unwrap();
        symlink("/etc/passwd", image.join("link")).unwrap();
        std::fs::set_permissions(&image, PermissionsExt::from_mode(0o711)).unwrap();
        tree.fill();
        assert_eq!(std::fs::read_to_string(volume.join("sub/file")).unwrap(), "content");
        assert_eq!(std::fs::metadata(volume.join("sub/file")).unwrap().mode() & 0o777, 0o640);
        assert_eq!(std::fs::read_link(volume.join("link")).unwrap(), Path::new("/etc/passwd"));
        let (from, to) = (std::fs::metadata(&image).unwrap(), std::fs::metadata(&volume).unwrap());
        assert_eq!((from.mtime_nsec(), from.mode()), (to.mtime_nsec(), to.mode()));
    }

    #[test]
    fn a_volume_with_content_is_left_alone() {
        let tree = Temporary::new("leave");
        std::fs::write(tree.0.join("image/new"), "").unwrap();
        std::fs::write(tree.0.join("volume/old"), "").unwrap();
        tree.fill();
        assert!(!tree.0.join("volume/new").exists());
    }
}
