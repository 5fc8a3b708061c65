//! The tree a layer is written into, reached by descriptor only.
//!
//! A parent is looked up with `openat2`, inside the tree whatever symbolic links say, and never through a magic link
//! or a mount. A leaf is never followed. Only this process writes into the tree, so nothing can change between a
//! look-up and its use. Parents the archive left out are made and remembered: their attributes belong to lower layers.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::rc::Rc;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::error::UnpackError;
use super::path::{DEPTH_MAX, PATH_MAX, join};

/// Parents kept open.
const CACHE_MAX: usize = 32;
/// Symbolic links followed on the way to one parent, as many as the kernel follows.
const FOLLOWED_MAX: u32 = 40;
/// Bytes of paths remembered until the layer is done.
const REMEMBERED_MAX: usize = 32 << 20;

const DIRECTORY: OFlags =
    OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::RDONLY).union(OFlags::CLOEXEC);
const INSIDE: ResolveFlags =
    ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);

/// The same, but not by way of any link: then a path is as deep as it looks.
const DIRECTLY: ResolveFlags = INSIDE.union(ResolveFlags::NO_SYMLINKS);

/// Name of the attribute by which overlayfs knows an opaque directory.
const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

/// What lies at a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    Whiteout,
    Directory,
    Other,
}

/// A tree being written.
pub(super) struct Tree {
    root: Rc<OwnedFd>,
    open: HashMap<Vec<u8>, Rc<OwnedFd>>,
    /// Paths of directories the archive did not have, parents before children.
    pub(super) implied: BTreeSet<Vec<u8>>,
    /// Paths of whiteouts made.
    whiteouts: BTreeSet<Vec<u8>>,
    /// Something the layer itself brought was replaced by a later entry.
    pub(super) replaced: bool,
    /// Some directory was made opaque.
    any_opaque: bool,
    /// Everything below the layer is hidden.
    pub(super) opaque_root: bool,
    /// The layer has whiteouts, whether or not they were made.
    pub(super) hides: bool,
    /// Nothing is below this layer, so nothing has to be hidden.
    lowest: bool,
    remembered: usize,
}

impl Tree {
    pub(super) fn new(root: OwnedFd, lowest: bool) -> Self {
        Self {
            root: Rc::new(root),
            open: HashMap::new(),
            implied: BTreeSet::new(),
            whiteouts: BTreeSet::new(),
            replaced: false,
            any_opaque: false,
            opaque_root: false,
            hides: false,
            lowest,
            remembered: 0,
        }
    }

    pub(super) fn root(&self) -> Rc<OwnedFd> {
        Rc::clone(&self.root)
    }

    /// Counts bytes kept in memory until the end, which a hostile layer must not choose freely.
    pub(super) fn remember(&mut self, bytes: usize) -> Result<(), UnpackError> {
        self.remembered += bytes + 64;
        if self.remembered > REMEMBERED_MAX {
            return Err(UnpackError::Limit {
                what: "bytes of directory names",
                limit: REMEMBERED_MAX as u64,
            });
        }
        Ok(())
    }

    /// The directory at a cleaned path, if it is there. Not for making anything in it: see [`Tree::parent`].
    pub(super) fn lookup(&mut self, path: &[u8]) -> Result<Option<Rc<OwnedFd>>, UnpackError> {
        if path.is_empty() {
            return Ok(Some(self.root()));
        }
        if let Some(fd) = self.open.get(path) {
            return Ok(Some(Rc::clone(fd)));
        }
        let follow = DIRECTORY.difference(OFlags::NOFOLLOW);
        match fs::openat2(&self.root, path, follow, Mode::empty(), INSIDE) {
            Ok(fd) => Ok(Some(Rc::new(fd))),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(failed("open directory", path)(error)),
        }
    }

    /// The directory at a cleaned path. What is missing is made; what is in the way of it is replaced.
    ///
    /// However many links lead there, it lies no deeper than a path may be: trees are deleted recursively.
    pub(super) fn parent(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, UnpackError> {
        if path.is_empty() {
            return Ok(self.root());
        }
        if let Some(fd) = self.open.get(path) {
            return Ok(Rc::clone(fd));
        }
        let fd = match fs::openat2(&self.root, path, DIRECTORY, Mode::empty(), DIRECTLY) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => self.walk(path)?,
            Err(error) => return Err(failed("open directory", path)(error)),
        };
        Ok(self.keep(path, fd))
    }

    /// Goes down component by component, following links inside the tree even where their targets are missing.
    fn walk(&mut self, path: &[u8]) -> Result<OwnedFd, UnpackError> {
        let mut todo: Vec<Vec<u8>> = path.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec).collect();
        // The way taken, every directory open, so that `..` costs nothing.
        let mut names: Vec<Vec<u8>> = Vec::new();
        let mut way: Vec<OwnedFd> = vec![self.reopen_root(path)?];
        let mut followed = 0;
        while let Some(part) = todo.pop() {
            let Some(here) = way.last() else { break };
            match &part[..] {
                b"" | b"." => continue,
                b".." => {
                    // The root is its own parent.
                    if names.pop().is_some() {
                        way.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let at = join(&names.join(&b'/'), &part);
            if is_link(here.as_fd(), &part)? {
                followed += 1;
                let target = fs::readlinkat(here, &part[..], Vec::new()).map_err(failed("read link", &at))?;
                let target = target.into_bytes();
                let pending: usize = todo.iter().map(Vec::len).sum();
                if followed > FOLLOWED_MAX || target.len() + pending > PATH_MAX {
                    return Err(failed("follow links of", path)(Errno::LOOP));
                }
                if target.starts_with(b"/") {
                    names.clear();
                    way.truncate(1);
                }
                todo.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
                continue;
            }
            if names.len() >= DEPTH_MAX {
                return Err(UnpackError::Limit {
                    what: "directories above one another",
                    limit: DEPTH_MAX as u64,
                });
            }
            let there = found(here.as_fd(), &part, &at)?;
            let next = self.step(here, &part, &at, there)?;
            names.push(part);
            way.push(next);
        }
        way.pop().ok_or_else(|| failed("open directory", path)(Errno::NOENT))
    }

    /// One step down, making the directory if there is none.
    fn step(&mut self, here: &OwnedFd, part: &[u8], at: &[u8], found: Found) -> Result<OwnedFd, UnpackError> {
        if found != Found::Directory {
            let hidden = self.replace(here.as_fd(), part, at, found)?;
            make_directory(here.as_fd(), part, at)?;
            self.remember(at.len())?;
            self.implied.insert(at.to_vec());
            let made = fs::openat(here, part, DIRECTORY, Mode::empty()).map_err(failed("open", at))?;
            if hidden {
                self.make_opaque(made.as_fd(), at)?;
            }
            return Ok(made);
        }
        fs::openat(here, part, DIRECTORY, Mode::empty()).map_err(failed("open", at))
    }

    fn reopen_root(&self, path: &[u8]) -> Result<OwnedFd, UnpackError> {
        rustix::io::fcntl_dupfd_cloexec(&self.root, 3).map_err(failed("open directory", path))
    }

    fn keep(&mut self, path: &[u8], fd: OwnedFd) -> Rc<OwnedFd> {
        if self.open.len() >= CACHE_MAX {
            self.open.clear();
        }
        let fd = Rc::new(fd);
        self.open.insert(path.to_vec(), Rc::clone(&fd));
        fd
    }

    /// Makes room at `name`. Returns whether a directory put there must hide lower layers, because what it takes
    /// the place of did.
    pub(super) fn replace(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        found: Found,
    ) -> Result<bool, UnpackError> {
        match found {
            Found::Nothing => return Ok(false),
            Found::Whiteout | Found::Other => {
                self.replaced |= found == Found::Other;
                fs::unlinkat(parent, name, AtFlags::empty()).map_err(failed("replace", path))?;
            }
            Found::Directory => {
                self.replaced = true;
                remove_directory(parent, name).map_err(failed("replace", path))?;
            }
        }
        // Remembered directories may have gone, or be reached by another way now.
        self.open.clear();
        self.whiteouts.remove(path);
        Ok(true)
    }

    /// Hides `name` of lower layers.
    pub(super) fn make_whiteout(&mut self, parent: &[u8], name: &[u8]) -> Result<(), UnpackError> {
        self.hides = true;
        if self.lowest {
            return Ok(());
        }
        let path = join(parent, name);
        let fd = self.parent(parent)?;
        match found(fd.as_fd(), name, &path)? {
            // What this layer brings itself already hides what is below, unless the two would be merged.
            Found::Whiteout | Found::Other => return Ok(()),
            Found::Directory => {
                let directory =
                    fs::openat(&*fd, name, DIRECTORY, Mode::empty()).map_err(failed("open", &path))?;
                return self.make_opaque(directory.as_fd(), &path);
            }
            Found::Nothing => {}
        }
        fs::mknodat(&*fd, name, FileType::CharacterDevice, Mode::empty(), 0)
            .map_err(failed("make whiteout", &path))?;
        self.remember(path.len())?;
        self.whiteouts.insert(path);
        Ok(())
    }

    /// Hides all that lower layers have in a directory.
    pub(super) fn make_opaque_at(&mut self, path: &[u8]) -> Result<(), UnpackError> {
        self.hides = true;
        if path.is_empty() {
            // Overlayfs ignores the mark on a layer's root: whoever stacks layers leaves out those below.
            self.opaque_root = true;
            return Ok(());
        }
        if self.lowest {
            return Ok(());
        }
        let fd = self.parent(path)?;
        self.make_opaque(fd.as_fd(), path)
    }

    /// Marks an open directory opaque.
    pub(super) fn make_opaque(&mut self, fd: BorrowedFd<'_>, path: &[u8]) -> Result<(), UnpackError> {
        self.hides = true;
        if self.lowest {
            return Ok(());
        }
        self.any_opaque = true;
        fs::fsetxattr(fd, OPAQUE_XATTR, b"y", fs::XattrFlags::empty()).map_err(failed("make opaque", path))
    }

    /// Removes whiteouts below opaque directories: there is nothing to hide, and overlayfs would list them.
    pub(super) fn drop_hidden_whiteouts(&mut self) -> Result<(), UnpackError> {
        if !self.any_opaque && !self.opaque_root {
            return Ok(());
        }
        for path in std::mem::take(&mut self.whiteouts) {
            let split = path.iter().rposition(|byte| *byte == b'/');
            let (parent, name) = match split {
                Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
                None => (&[][..], &path[..]),
            };
            let Some(fd) = self.lookup(parent)? else { continue };
            let is_whiteout = found(fd.as_fd(), name, &path)? == Found::Whiteout;
            if is_whiteout && (self.opaque_root || self.is_below_opaque(&fd, &path)?) {
                fs::unlinkat(&*fd, name, AtFlags::empty()).map_err(failed("remove", &path))?;
            }
        }
        Ok(())
    }

    fn is_below_opaque(&self, directory: &OwnedFd, path: &[u8]) -> Result<bool, UnpackError> {
        let root = fs::fstat(&self.root).map_err(failed("look at", path))?;
        let mut here = rustix::io::fcntl_dupfd_cloexec(directory, 3).map_err(failed("open", path))?;
        loop {
            if is_opaque(here.as_fd()) {
                return Ok(true);
            }
            let stat = fs::fstat(&here).map_err(failed("look at", path))?;
            if stat.st_ino == root.st_ino {
                return Ok(false);
            }
            here = fs::openat(&here, "..", DIRECTORY, Mode::empty()).map_err(failed("open", path))?;
        }
    }
}

fn is_link(parent: BorrowedFd<'_>, name: &[u8]) -> Result<bool, UnpackError> {
    let stat = stat(parent, name).map_err(failed("look at", name))?;
    Ok(stat.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink))
}

/// What lies at `name` in `parent`, not following it.
pub(super) fn found(parent: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<Found, UnpackError> {
    let Some(stat) = stat(parent, name).map_err(failed("look at", path))? else {
        return Ok(Found::Nothing);
    };
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Found::Directory,
        FileType::CharacterDevice if stat.st_rdev == 0 => Found::Whiteout,
        _ => Found::Other,
    })
}

/// Makes a directory of root with mode 0755.
pub(super) fn make_directory(parent: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<(), UnpackError> {
    fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)).map_err(failed("make directory", path))?;
    // The mode was subject to the umask, and the group to a set-group-id parent.
    fs::chmodat(parent, name, Mode::from_raw_mode(0o755), AtFlags::empty())
        .map_err(failed("set mode of", path))?;
    let root = (Some(rustix::process::Uid::ROOT), Some(rustix::process::Gid::ROOT));
    fs::chownat(parent, name, root.0, root.1, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("set owner of", path))
}

/// Whether overlayfs hides what lower layers have in this directory.
pub(super) fn is_opaque(fd: BorrowedFd<'_>) -> bool {
    let mut value = [0_u8; 1];
    fs::fgetxattr(fd, OPAQUE_XATTR, &mut value[..]).is_ok_and(|length| length == 1 && value == *b"y")
}

fn stat(parent: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Stat>, Errno> {
    match fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes a directory with all that is in it. Depth is bounded by the depth of paths that made it.
pub(super) fn remove_directory(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let directory = fs::openat(parent, name, DIRECTORY, Mode::empty())?;
    // Collected first: deleting while reading may skip entries on some file systems.
    let mut names = Vec::new();
    for entry in fs::Dir::read_from(&directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    for name in names {
        match fs::unlinkat(&directory, &name[..], AtFlags::empty()) {
            Err(Errno::ISDIR) => remove_directory(directory.as_fd(), &name)?,
            other => other?,
        }
    }
    fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// Names a failed operation.
pub(super) fn failed(action: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> UnpackError {
    let path = shown(path);
    move |errno| UnpackError::Write { action, path, source: io::Error::from(errno) }
}

/// A path as text for messages.
pub(super) fn shown(path: &[u8]) -> String {
    OsStr::from_bytes(path).to_string_lossy().chars().take(512).collect()
}
