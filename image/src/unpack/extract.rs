//! Writing the entries of a layer into its tree, in overlay format.
//!
//! Whatever lies where an entry goes was put there by the same layer and is replaced, except that a directory
//! meets a directory. What the layer itself brings is never hidden by its own whiteouts, in whatever order they come.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, Dev, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use super::attributes;
use super::error::UnpackError;
use super::path::{self, PATH_MAX, Target};
use super::tar::{Entry, Kind, Tar};
use super::tree::{self, Found, Tree, failed, shown};

const NEW_FILE: OFlags =
    OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What writing a layer found out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Directories the archive left out, parents first, with default attributes for now.
    pub implied: Vec<Vec<u8>>,
    /// The layer hides something of lower ones.
    pub whiteouts: bool,
    /// The layer hides everything below it.
    pub opaque_root: bool,
    /// Bytes of file content.
    pub size: u64,
    /// Bytes of the tar stream.
    pub length: u64,
    /// Every file of the stream is in the tree as it was, so the stream can be made again.
    pub exact: bool,
}

/// What a directory gets when nothing more is written into it.
struct Finish {
    mtime: (i64, u32),
    default_acl: Option<Vec<u8>>,
}

/// Writes all entries of `tar` below `root`. `lowest` says that nothing is below this layer.
pub(super) fn extract<R: BufRead>(
    tar: &mut Tar<R>,
    root: OwnedFd,
    lowest: bool,
) -> Result<Outcome, UnpackError> {
    let mut extractor = Extractor { tree: Tree::new(root, lowest), directories: BTreeMap::new(), size: 0 };
    while let Some(entry) = tar.next()? {
        extractor.entry(&entry, tar)?;
    }
    extractor.finish()
}

struct Extractor {
    tree: Tree,
    directories: BTreeMap<Vec<u8>, Finish>,
    size: u64,
}

impl Extractor {
    fn entry<R: BufRead>(&mut self, entry: &Entry, tar: &mut Tar<R>) -> Result<(), UnpackError> {
        let refused = |what| UnpackError::Entry { path: shown(&entry.path), what };
        attributes::check(&entry.xattrs).map_err(refused)?;
        match path::target(&entry.path).map_err(refused)? {
            Target::Nothing => Ok(()),
            Target::Opaque { directory } => self.tree.make_opaque_at(&directory),
            Target::Whiteout { parent, name } => self.tree.make_whiteout(&parent, &name),
            Target::Root if entry.kind == Kind::Directory => {
                let root = self.tree.root();
                self.finish_directory_later(&[], entry)?;
                attributes::apply_open(root.as_fd(), entry)
            }
            Target::Root => Err(refused("root of the layer is not a directory")),
            Target::Leaf { parent, name } => self.leaf(entry, &parent, &name, tar),
        }
    }

    fn leaf<R: BufRead>(
        &mut self,
        entry: &Entry,
        parent: &[u8],
        name: &[u8],
        tar: &mut Tar<R>,
    ) -> Result<(), UnpackError> {
        let refused = |what| UnpackError::Entry { path: shown(&entry.path), what };
        let fd = self.tree.parent(parent)?;
        let fd = fd.as_fd();
        match entry.kind {
            Kind::Directory => self.directory(fd, entry, &path::join(parent, name), name),
            Kind::File => self.file(fd, entry, &path::join(parent, name), name, tar),
            Kind::HardLink => self.hard_link(fd, entry, &path::join(parent, name), name),
            Kind::Symlink => {
                if entry.link.is_empty() || entry.link.len() >= PATH_MAX || entry.link.contains(&0) {
                    return Err(refused("symbolic link has no valid target"));
                }
                self.make(fd, entry, name, |fd| fs::symlinkat(&entry.link[..], fd, name))?;
                attributes::apply_named(fd, name, entry, true)
            }
            Kind::Fifo => self.node(fd, entry, name, FileType::Fifo, 0),
            Kind::Block => self.node(fd, entry, name, FileType::BlockDevice, device(entry)),
            // This device is overlayfs's own sign for a whiteout.
            Kind::Character if entry.major == 0 && entry.minor == 0 => {
                Err(refused("character device 0:0 must not be in a layer"))
            }
            Kind::Character => self.node(fd, entry, name, FileType::CharacterDevice, device(entry)),
        }
    }

    /// Makes a name with `make`, replacing what is there.
    fn make<T>(
        &mut self,
        parent: BorrowedFd<'_>,
        entry: &Entry,
        name: &[u8],
        make: impl Fn(BorrowedFd<'_>) -> Result<T, Errno>,
    ) -> Result<T, UnpackError> {
        match make(parent) {
            Err(Errno::EXIST) => {
                let found = tree::found(parent, name, &entry.path)?;
                self.tree.replace(parent, name, &entry.path, found)?;
                make(parent).map_err(failed("make", &entry.path))
            }
            other => other.map_err(failed("make", &entry.path)),
        }
    }

    fn directory(
        &mut self,
        parent: BorrowedFd<'_>,
        entry: &Entry,
        path: &[u8],
        name: &[u8],
    ) -> Result<(), UnpackError> {
        let found = tree::found(parent, name, path)?;
        let mut hides = false;
        if found != Found::Directory {
            hides = self.tree.replace(parent, name, path, found)?;
            tree::make_directory(parent, name, path)?;
        }
        self.tree.implied.remove(path);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fs::openat(parent, name, flags, Mode::empty()).map_err(failed("open", path))?;
        if hides {
            self.tree.make_opaque(fd.as_fd(), path)?;
        }
        attributes::apply_open(fd.as_fd(), entry)?;
        self.finish_directory_later(path, entry)
    }

    fn finish_directory_later(&mut self, path: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        let finish = Finish { mtime: entry.mtime, default_acl: attributes::default_acl(entry) };
        self.tree.remember(path.len() + finish.default_acl.as_ref().map_or(0, Vec::len))?;
        self.directories.insert(path.to_vec(), finish);
        Ok(())
    }

    fn file<R: BufRead>(
        &mut self,
        parent: BorrowedFd<'_>,
        entry: &Entry,
        path: &[u8],
        name: &[u8],
        tar: &mut Tar<R>,
    ) -> Result<(), UnpackError> {
        let mode = Mode::from_raw_mode(0o600);
        let fd = self.make(parent, entry, name, |parent| fs::openat(parent, name, NEW_FILE, mode))?;
        match &entry.sparse {
            None => {
                tar.will_lie_at(path)?;
                self.size += copy(tar, fd.as_fd(), entry, u64::MAX)?;
            }
            Some((size, pieces)) => {
                fs::ftruncate(&fd, *size).map_err(failed("set size of", &entry.path))?;
                for (offset, length) in pieces {
                    fs::seek(&fd, fs::SeekFrom::Start(*offset)).map_err(failed("write", &entry.path))?;
                    self.size += copy(tar, fd.as_fd(), entry, *length)?;
                }
            }
        }
        attributes::apply_open(fd.as_fd(), entry)?;
        attributes::set_time(fd.as_fd(), entry.mtime, &entry.path)
    }

    fn node(
        &mut self,
        parent: BorrowedFd<'_>,
        entry: &Entry,
        name: &[u8],
        kind: FileType,
        device: Dev,
    ) -> Result<(), UnpackError> {
        self.make(parent, entry, name, |fd| fs::mknodat(fd, name, kind, Mode::empty(), device))?;
        attributes::apply_named(parent, name, entry, false)
    }

    fn hard_link(
        &mut self,
        parent: BorrowedFd<'_>,
        entry: &Entry,
        path: &[u8],
        name: &[u8],
    ) -> Result<(), UnpackError> {
        let refused = |what| UnpackError::Entry { path: shown(&entry.path), what };
        let (target_parent, target_name) = path::link_target(&entry.link).map_err(refused)?;
        if path::join(&target_parent, &target_name) == path {
            return Err(refused("hard link to itself"));
        }
        let missing = "hard link to a file the layer does not have";
        let target = self.tree.lookup(&target_parent)?.ok_or_else(|| refused(missing))?;
        match tree::found(target.as_fd(), &target_name, &entry.link)? {
            Found::Other => {}
            Found::Nothing | Found::Whiteout => return Err(refused(missing)),
            Found::Directory => return Err(refused("hard link to a directory")),
        }
        // Without the flag to follow, a symbolic link is linked itself.
        self.make(parent, entry, name, |parent| {
            fs::linkat(&*target, &target_name[..], parent, name, AtFlags::empty())
        })
    }

    fn finish(mut self) -> Result<Outcome, UnpackError> {
        self.tree.drop_hidden_whiteouts()?;
        // Children before parents is not needed: setting a time changes no other directory's.
        for (path, finish) in std::mem::take(&mut self.directories) {
            let Some(fd) = self.tree.lookup(&path)? else { continue };
            if let Some(acl) = finish.default_acl {
                let set = fs::fsetxattr(&*fd, attributes::DEFAULT_ACL, &acl, XattrFlags::empty());
                if !matches!(set, Err(Errno::NOTSUP)) {
                    set.map_err(failed("set attributes of", &path))?;
                }
            }
            attributes::set_time(fd.as_fd(), finish.mtime, &path)?;
        }
        Ok(Outcome {
            implied: self.tree.implied.into_iter().collect(),
            whiteouts: self.tree.hides,
            opaque_root: self.tree.opaque_root,
            size: self.size,
            length: 0,
            exact: !self.tree.replaced,
        })
    }
}

/// Copies up to `limit` bytes of the entry's data; returns how many.
fn copy<R: BufRead>(
    tar: &mut Tar<R>,
    fd: BorrowedFd<'_>,
    entry: &Entry,
    limit: u64,
) -> Result<u64, UnpackError> {
    let mut copied = 0;
    while copied < limit {
        let chunk = tar.chunk()?;
        let wanted = usize::try_from(limit - copied).unwrap_or(usize::MAX).min(chunk.len());
        let Some(chunk) = chunk.get(..wanted).filter(|chunk| !chunk.is_empty()) else { break };
        let written = match rustix::io::write(fd, chunk) {
            Err(Errno::INTR) => continue,
            other => other.map_err(failed("write", &entry.path))?,
        };
        tar.consume(written)?;
        copied += written as u64;
    }
    Ok(copied)
}

fn device(entry: &Entry) -> Dev {
    fs::makedev(entry.major, entry.minor)
}
