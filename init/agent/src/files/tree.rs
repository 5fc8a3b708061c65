//! Paths in a container's tree: by descriptor, never leaving the tree, never through the magic links of procfs.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use berth_api::docker::containers::PathStat;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat, fstat, mkdirat, openat, openat2, readlinkat};
use rustix::io::Errno;

use crate::server::time;

/// How long a look-up is tried again while the tree is being renamed under it (`EAGAIN`).
const RENAME_PATIENCE: Duration = Duration::from_secs(2);
/// Longest path in bytes (`PATH_MAX`).
pub(super) const PATH_MAX: usize = 4096;

/// Flags to look at something without opening it.
pub(super) const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Flags for a directory on the way.
pub(super) const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// The tree of a container.
#[derive(Debug)]
pub(crate) struct Tree {
    root: OwnedFd,
    /// How the kernel names the root to this process.
    prefix: Vec<u8>,
}

/// A path as asked for, cleaned by text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// Its parts.
    pub(super) parts: Vec<Vec<u8>>,
    /// It ends with a slash or a dot: what it names must be a directory, and a link at its end is followed.
    pub(super) inside: bool,
    /// Its last element as Docker tells it: a name, `.`, or `/`.
    pub(super) base: Vec<u8>,
}

/// Something that was found.
#[derive(Debug)]
pub(super) struct Found {
    /// Open for looking only.
    pub(super) fd: OwnedFd,
    /// What it is.
    pub(super) stat: Stat,
    /// See [`Asked::base`].
    pub(super) base: Vec<u8>,
    /// Where a link leads in the end, as a path of the container.
    pub(super) link: Vec<u8>,
}

impl Asked {
    /// Cleans a path as Docker does: relative to the root, `..` by text, but a slash or dot at the end keeps its meaning.
    pub(super) fn of(path: &[u8]) -> Self {
        let mut parts: Vec<Vec<u8>> = Vec::new();
        for part in path.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => drop(parts.pop()),
                part => parts.push(part.to_vec()),
            }
        }
        let last = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let base = match parts.last() {
            _ if last == b"." => b".".to_vec(),
            Some(part) => part.clone(),
            None => b"/".to_vec(),
        };
        let inside = matches!(last, b"" | b".") || parts.is_empty();
        Self { parts, inside, base }
    }

    fn joined(parts: &[Vec<u8>]) -> Vec<u8> {
        parts.join(&b'/')
    }
}

impl Tree {
    /// The tree below a directory.
    pub(crate) fn new(root: OwnedFd) -> rustix::io::Result<Self> {
        let prefix = name_of(root.as_fd())?;
        Ok(Self { root, prefix })
    }

    /// The root.
    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens a path inside; links are followed inside the tree.
    pub(crate) fn open(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        if path.len() >= PATH_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        let path = if path.is_empty() { b"/" } else { path };
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let deadline = Instant::now() + RENAME_PATIENCE;
        loop {
            match openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), how) {
                Err(Errno::AGAIN) if Instant::now() < deadline => {}
                Err(Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// Opens a directory, making what is missing of it with mode 0755.
    pub(crate) fn make_folders(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        match self.open(path, FOLDER) {
            Err(Errno::NOENT) => {}
            found => return found,
        }
        let mut so_far = Vec::new();
        let mut folder = self.open(b"/", FOLDER)?;
        for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
            so_far.push(b'/');
            so_far.extend_from_slice(part);
            folder = match self.open(&so_far, FOLDER) {
                Err(Errno::NOENT) if part != b".." => {
                    match mkdirat(&folder, part, Mode::from_raw_mode(0o755)) {
                        Ok(()) | Err(Errno::EXIST) => self.open(&so_far, FOLDER)?,
                        Err(error) => return Err(error),
                    }
                }
                found => found?,
            };
        }
        Ok(folder)
    }

    /// The path of an open file as the container knows it.
    pub(super) fn path_of(&self, fd: BorrowedFd<'_>) -> rustix::io::Result<Vec<u8>> {
        let name = name_of(fd)?;
        let rest = name.strip_prefix(&self.prefix[..]).unwrap_or(&name);
        Ok(if rest.starts_with(b"/") { rest.to_vec() } else { [b"/", rest].concat() })
    }

    /// Finds what is asked for. A link at the end is found itself, unless the path says it is a directory.
    pub(super) fn find(&self, asked: &Asked) -> rustix::io::Result<Found> {
        let base = asked.base.clone();
        if asked.inside {
            let fd = self.open(&Asked::joined(&asked.parts), FOLDER)?;
            let stat = fstat(&fd)?;
            return Ok(Found { fd, stat, base, link: Vec::new() });
        }
        let (name, parents) = asked.parts.split_last().ok_or(Errno::NOENT)?;
        let parent = self.open(&Asked::joined(parents), FOLDER)?;
        let fd = openat(&parent, &name[..], LOOK, Mode::empty())?;
        let stat = fstat(&fd)?;
        let mut link = Vec::new();
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            link = if let Ok(end) = self.open(&Asked::joined(&asked.parts), OFlags::PATH) {
                self.path_of(end.as_fd())?
            } else {
                // It leads nowhere: as far as the text goes.
                let text = readlinkat(&fd, "", Vec::new())?.into_bytes();
                let from = if text.starts_with(b"/") { Vec::new() } else { self.path_of(parent.as_fd())? };
                let whole = Asked::of(&[&from[..], b"/", &text].concat());
                [b"/", &Asked::joined(&whole.parts)[..]].concat()
            };
        }
        Ok(Found { fd, stat, base, link })
    }
}

/// How the kernel names an open file to this process.
fn name_of(fd: BorrowedFd<'_>) -> rustix::io::Result<Vec<u8>> {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let mut name = rustix::fs::readlink(link, Vec::new())?.into_bytes();
    if name == b"/" {
        name.clear();
    }
    Ok(name)
}

/// What is told of a path. The mode is Go's, whose kinds of files have bits of their own.
pub(super) fn told(found: &Found) -> PathStat {
    let stat = &found.stat;
    let raw = stat.st_mode;
    let kind = match FileType::from_raw_mode(raw) {
        FileType::Directory => 1 << 31,
        FileType::Symlink => 1 << 27,
        FileType::BlockDevice => 1 << 26,
        FileType::CharacterDevice => (1 << 26) | (1 << 21),
        FileType::Fifo => 1 << 25,
        FileType::Socket => 1 << 24,
        FileType::RegularFile | FileType::Unknown => 0,
    };
    let bits = [(0o4000, 1 << 23), (0o2000, 1 << 22), (0o1000, 1 << 20)];
    let special = bits.iter().filter(|(bit, _)| raw & bit != 0).fold(0_u32, |all, (_, go)| all | go);
    let ns = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
    PathStat {
        name: String::from_utf8_lossy(&found.base).into_owned(),
        size: stat.st_size,
        mode: kind | special | (raw & 0o777),
        mtime: time::rfc3339_nano(stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(ns)),
        link_target: String::from_utf8_lossy(&found.link).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn tree() -> (tempfile::TempDir, Tree) {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path().join("root");
        fs::create_dir_all(top.join("usr/lib")).unwrap();
        fs::write(top.join("usr/lib/file"), "text").unwrap();
        fs::write(folder.path().join("secret"), "secret").unwrap();
        symlink("usr/lib", top.join("lib")).unwrap();
        symlink("/usr/lib/file", top.join("abs")).unwrap();
        symlink("../../../../secret", top.join("out")).unwrap();
        symlink("/nowhere/else", top.join("dangling")).unwrap();
        let root = rustix::fs::open(&top, FOLDER, Mode::empty()).unwrap();
        (folder, Tree::new(root).unwrap())
    }

    fn look(tree: &Tree, path: &str) -> Result<PathStat, Errno> {
        tree.find(&Asked::of(path.as_bytes())).map(|found| told(&found))
    }

    #[test]
    fn paths_are_cleaned_and_keep_what_their_end_says() {
        for (path, parts, inside, base) in [
            ("/etc/passwd", "etc/passwd", false, "passwd"),
            ("etc/../etc/./x", "etc/x", false, "x"),
            ("/etc/", "etc", true, "etc"),
            ("/etc/.", "etc", true, "."),
            ("/", "", true, "/"),
            ("/.", "", true, "."),
            ("/../..", "", true, "/"),
        ] {
            let asked = Asked::of(path.as_bytes());
            assert_eq!(Asked::joined(&asked.parts), parts.as_bytes(), "{path}");
            assert_eq!((asked.inside, &asked.base[..]), (inside, base.as_bytes()), "{path}");
        }
    }

    #[test]
    fn a_link_is_found_itself_and_told_with_its_end() {
        let (_folder, tree) = tree();
        let link = look(&tree, "/abs").unwrap();
        assert_eq!((link.mode >> 27 & 1, link.link_target.as_str()), (1, "/usr/lib/file"));
        assert_eq!(look(&tree, "/lib").unwrap().link_target, "/usr/lib");
        assert_eq!(look(&tree, "/lib/").unwrap().mode >> 31, 1);
        assert_eq!(look(&tree, "/lib/file").unwrap().size, 4);
        assert_eq!(look(&tree, "/dangling").unwrap().link_target, "/nowhere/else");
        assert_eq!(look(&tree, "/abs/").unwrap_err(), Errno::NOTDIR);
        assert_eq!(look(&tree, "/none").unwrap_err(), Errno::NOENT);
    }

    #[test]
    fn no_path_leaves_the_tree() {
        let (_folder, tree) = tree();
        assert_eq!(look(&tree, "/out").unwrap().link_target, "/secret");
        assert_eq!(tree.open(b"out", OFlags::PATH).unwrap_err(), Errno::NOENT);
        assert_eq!(look(&tree, "/../../secret").unwrap_err(), Errno::NOENT);
        tree.make_folders(b"/lib/new/er").unwrap();
        assert_eq!(look(&tree, "/usr/lib/new/er").unwrap().mode, 1 << 31 | 0o755);
    }
}
