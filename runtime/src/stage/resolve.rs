//! Finding and making paths in a tree an image or another container can change at any moment: by descriptor, never
//! leaving the tree, never through the magic links of procfs.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::io::Errno;

/// How long a look-up is tried again while the tree is being renamed under it (`EAGAIN`).
const RENAME_PATIENCE: Duration = Duration::from_secs(2);
/// Longest path in bytes (`PATH_MAX`).
const PATH_MAX: usize = 4096;

/// Opens `path` inside `root`; a leading slash means `root` itself, links are followed inside it.
pub(super) fn open_in(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let deadline = Instant::now() + RENAME_PATIENCE;
    let path = if path.is_empty() { "/" } else { path };
    loop {
        match openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), how) {
            Err(Errno::AGAIN) if Instant::now() < deadline => {}
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// What a missing mount point is made as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A directory.
    Directory,
    /// An empty file.
    File,
}

/// The kind of what `fd` is open on, for the mount point it is to cover.
pub(super) fn kind_of(fd: BorrowedFd<'_>) -> rustix::io::Result<Kind> {
    let mode = rustix::fs::fstat(fd)?.st_mode;
    Ok(if FileType::from_raw_mode(mode) == FileType::Directory { Kind::Directory } else { Kind::File })
}

/// Opens `path` inside `root` for use as a mount point or directory, making what is missing: directories with mode
/// 0755 on the way, and `kind` at the end.
pub(super) fn open_or_make(root: BorrowedFd<'_>, path: &str, kind: Kind) -> rustix::io::Result<OwnedFd> {
    if path.len() >= PATH_MAX {
        return Err(Errno::NAMETOOLONG);
    }
    let last = match kind {
        Kind::Directory => OFlags::PATH | OFlags::DIRECTORY,
        Kind::File => OFlags::PATH,
    };
    match open_in(root, path, last) {
        Err(Errno::NOENT) => {}
        found => return found,
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    let Some((name, parents)) = parts.split_last() else { return Err(Errno::NOENT) };
    let mut so_far = String::new();
    let mut dir = open_in(root, "/", OFlags::PATH | OFlags::DIRECTORY)?;
    for part in parents {
        dir = make_one(root, &mut so_far, dir.as_fd(), part, Kind::Directory)?;
    }
    make_one(root, &mut so_far, dir.as_fd(), name, kind)
}

/// Opens the next part of a path below `dir`, which is `so_far` inside `root`; makes it when it is missing.
fn make_one(
    root: BorrowedFd<'_>,
    so_far: &mut String,
    dir: BorrowedFd<'_>,
    part: &str,
    kind: Kind,
) -> rustix::io::Result<OwnedFd> {
    so_far.push('/');
    so_far.push_str(part);
    let flags = match kind {
        Kind::Directory => OFlags::PATH | OFlags::DIRECTORY,
        Kind::File => OFlags::PATH,
    };
    match open_in(root, so_far, flags) {
        Err(Errno::NOENT) if part != ".." => {}
        found => return found,
    }
    let made = match kind {
        Kind::Directory => mkdirat(dir, part, Mode::from_raw_mode(0o755)),
        Kind::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(dir, part, flags, Mode::from_raw_mode(0o644)).map(drop)
        }
    };
    match made {
        Ok(()) | Err(Errno::EXIST) => open_in(root, so_far, flags),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str) -> (Self, OwnedFd) {
            let path = std::env::temp_dir().join(format!("berth-resolve-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let fd = rustix::fs::open(&path, flags, Mode::empty()).unwrap();
            (Self(path), fd)
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn links_out_of_the_tree_stay_inside() {
        let (tree, root) = Tree::new("links");
        std::fs::create_dir(tree.0.join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc", tree.0.join("abs")).unwrap();
        std::os::unix::fs::symlink("../../../../../../etc", tree.0.join("up")).unwrap();
        for link in ["/abs/made", "/up/made2", "/../../etc/made3"] {
            open_or_make(root.as_fd(), link, Kind::File).unwrap();
        }
        for name in ["made", "made2", "made3"] {
            assert!(tree.0.join("etc").join(name).is_file(), "{name}");
        }
    }

    #[test]
    fn missing_directories_are_made_on_the_way() {
        let (tree, root) = Tree::new("make");
        open_or_make(root.as_fd(), "/a/b/./c", Kind::Directory).unwrap();
        open_or_make(root.as_fd(), "a/b/f", Kind::File).unwrap();
        assert!(tree.0.join("a/b/c").is_dir());
        assert!(tree.0.join("a/b/f").is_file());
    }

    #[test]
    fn a_dangling_link_is_an_error_and_makes_nothing() {
        let (tree, root) = Tree::new("dangling");
        std::os::unix::fs::symlink("/nowhere", tree.0.join("link")).unwrap();
        assert_eq!(open_or_make(root.as_fd(), "/link", Kind::File).unwrap_err(), Errno::NOENT);
        assert!(!tree.0.join("nowhere").exists());
    }

    #[test]
    fn a_loop_of_links_ends() {
        let (tree, root) = Tree::new("loop");
        std::os::unix::fs::symlink("loop", tree.0.join("loop")).unwrap();
        assert_eq!(open_or_make(root.as_fd(), "/loop/x", Kind::File).unwrap_err(), Errno::LOOP);
    }

    #[test]
    fn magic_links_are_refused() {
        let proc = rustix::fs::open("/proc", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        assert_eq!(open_in(proc.as_fd(), "self/root", OFlags::PATH).unwrap_err(), Errno::LOOP);
    }

    #[test]
    fn a_path_too_long_is_refused() {
        let (_tree, root) = Tree::new("long");
        let path = "/a".repeat(PATH_MAX / 2);
        assert_eq!(open_or_make(root.as_fd(), &path, Kind::Directory).unwrap_err(), Errno::NAMETOOLONG);
    }
}
