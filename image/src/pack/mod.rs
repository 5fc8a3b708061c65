//! From a tree in overlay format to the tar stream of a layer: the way back of [`crate::unpack`].
//!
//! Everything is read by descriptor and no link is followed, because what is packed is a container's, which may go on
//! writing. A file that shrinks meanwhile is filled up with zeros, one that grows is cut: its size is in the stream
//! before its bytes are. Entries come sorted, so that the same tree gives the same bytes.
//!
//! Rooms: `writer` (tar headers), this one (the walk).

#[cfg(test)]
mod tests;
mod writer;

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

pub use writer::{Head, Writer};

use crate::unpack::{DEPTH_MAX, is_whiteout_name};

/// Entries of one tree; the unpacker takes as many.
const ENTRIES_MAX: u64 = 2_000_000;
/// Bytes of the names of one file's attributes, the kernel's limit.
const XATTR_LIST_MAX: usize = 64 << 10;
/// Bytes of one attribute's value, the kernel's limit.
const XATTR_SIZE_MAX: usize = 64 << 10;
/// Bytes copied at a time.
const PIECE: usize = 64 << 10;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const FILE: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// Attributes of overlayfs that mean that a file's bytes or place are not what the tree shows.
const INDIRECT: [&[u8]; 2] = [b"trusted.overlay.redirect", b"trusted.overlay.metacopy"];

/// A tree cannot be packed. Paths are shown as far as they are text.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// A file cannot be read.
    #[error("cannot read {path:?}")]
    Read {
        /// Its path in the tree.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something that no layer can hold.
    #[error("{path:?}: {what}")]
    Entry {
        /// Its path in the tree.
        path: String,
        /// What is wrong.
        what: &'static str,
    },
    /// Too many entries.
    #[error("the tree has more than {ENTRIES_MAX} entries")]
    TooMany,
    /// The stream cannot be written.
    #[error("cannot write the layer")]
    Write(#[source] io::Error),
}

/// Writes what is in `root`, not `root` itself, as a layer with its trailer. Blocks.
///
/// `root` is an upper directory of overlayfs: a device 0:0 becomes a whiteout, an opaque directory is marked as one.
/// A path (without leading slash) for which `keep` is false is left out with all that is below it. Sockets are left
/// out too: nobody listens there any more.
pub fn pack(root: BorrowedFd<'_>, out: impl Write, keep: &dyn Fn(&[u8]) -> bool) -> Result<(), PackError> {
    let mut walk = Walk { writer: Writer::new(out), keep, links: HashMap::new(), entries: 0 };
    walk.folder(root, b"", 0)?;
    walk.writer.finish().map_err(PackError::Write)
}

struct Walk<'a, W> {
    writer: Writer<W>,
    keep: &'a dyn Fn(&[u8]) -> bool,
    /// First path of each file that has several.
    links: HashMap<(u64, u64), Vec<u8>>,
    entries: u64,
}

impl<W: Write> Walk<'_, W> {
    fn folder(&mut self, folder: BorrowedFd<'_>, path: &[u8], depth: usize) -> Result<(), PackError> {
        if depth >= DEPTH_MAX {
            return Err(refused(path, "directories are too deep"));
        }
        for name in names(folder).map_err(unread(path))? {
            let below = if path.is_empty() {
                name.as_bytes().to_vec()
            } else {
                [path, b"/", name.as_bytes()].concat()
            };
            if (self.keep)(&below) {
                self.entry(folder, &name, &below, depth)?;
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        folder: BorrowedFd<'_>,
        name: &CString,
        path: &[u8],
        depth: usize,
    ) -> Result<(), PackError> {
        let stat = match fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            other => other.map_err(unread(path))?,
        };
        self.entries += 1;
        if self.entries > ENTRIES_MAX {
            return Err(PackError::TooMany);
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            return self.mark(path, b".wh.", name.as_bytes());
        }
        if is_whiteout_name(name.as_bytes()) {
            return Err(refused(path, "a name that begins with .wh. means a deleted file in a layer"));
        }
        match kind {
            FileType::Directory => self.directory(folder, name, path, depth),
            FileType::RegularFile if self.linked(path, &stat)? => Ok(()),
            FileType::RegularFile => self.file(folder, name, path),
            FileType::Socket => Ok(()),
            _ if self.linked(path, &stat)? => Ok(()),
            kind => self.special(folder, name, path, kind, &stat),
        }
    }

    /// A whiteout: an empty file of a name that says what is hidden.
    fn mark(&mut self, path: &[u8], prefix: &[u8], name: &[u8]) -> Result<(), PackError> {
        let parent = path.get(..path.len() - name.len()).unwrap_or_default();
        let head = Head { mode: 0o644, ..Head::new(b'0', [parent, prefix, name].concat()) };
        self.writer.head(&head).map_err(PackError::Write)
    }

    fn directory(
        &mut self,
        folder: BorrowedFd<'_>,
        name: &CString,
        path: &[u8],
        depth: usize,
    ) -> Result<(), PackError> {
        let fd = match fs::openat(folder, name, FOLDER, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(()),
            other => other.map_err(unread(path))?,
        };
        let stat = fs::fstat(&fd).map_err(unread(path))?;
        let (xattrs, opaque) = open_xattrs(&fd, path)?;
        let head = Head { xattrs, ..head(b'5', [path, b"/"].concat(), &stat) };
        self.writer.head(&head).map_err(PackError::Write)?;
        if opaque {
            let mark = Head { mode: 0o644, ..Head::new(b'0', [path, b"/.wh..wh..opq"].concat()) };
            self.writer.head(&mark).map_err(PackError::Write)?;
        }
        self.folder(fd.as_fd(), path, depth + 1)
    }

    /// Writes a hard link, if the file was written under another path before.
    fn linked(&mut self, path: &[u8], stat: &Stat) -> Result<bool, PackError> {
        if stat.st_nlink < 2 {
            return Ok(false);
        }
        if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
            let head = Head { link: first.clone(), ..head(b'1', path.to_vec(), stat) };
            self.writer.head(&head).map_err(PackError::Write)?;
            return Ok(true);
        }
        self.links.insert((stat.st_dev, stat.st_ino), path.to_vec());
        Ok(false)
    }

    fn file(&mut self, folder: BorrowedFd<'_>, name: &CString, path: &[u8]) -> Result<(), PackError> {
        let fd = match fs::openat(folder, name, FILE, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(()),
            other => other.map_err(unread(path))?,
        };
        let stat = fs::fstat(&fd).map_err(unread(path))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(refused(path, "changed its kind while it was read"));
        }
        let (xattrs, _) = open_xattrs(&fd, path)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let head = Head { size, xattrs, ..head(b'0', path.to_vec(), &stat) };
        self.writer.head(&head).map_err(PackError::Write)?;
        let mut file = File::from(fd).take(size);
        let mut piece = vec![0; PIECE.min(usize::try_from(size).unwrap_or(PIECE))];
        let mut left = size;
        while left > 0 {
            let count = file.read(&mut piece).map_err(|source| unread_io(path, source))?;
            if count == 0 {
                self.writer.zeros(left).map_err(PackError::Write)?;
                break;
            }
            left -= count as u64;
            self.writer.data(piece.get(..count).unwrap_or_default()).map_err(PackError::Write)?;
        }
        self.writer.end_data(size).map_err(PackError::Write)
    }

    fn special(
        &mut self,
        folder: BorrowedFd<'_>,
        name: &CString,
        path: &[u8],
        kind: FileType,
        stat: &Stat,
    ) -> Result<(), PackError> {
        let flag = match kind {
            FileType::Symlink => b'2',
            FileType::CharacterDevice => b'3',
            FileType::BlockDevice => b'4',
            FileType::Fifo => b'6',
            _ => return Err(refused(path, "is of a kind no layer can hold")),
        };
        let link = match kind {
            FileType::Symlink => {
                let target = fs::readlinkat(folder, name, Vec::new()).map_err(unread(path))?;
                target.into_bytes()
            }
            _ => Vec::new(),
        };
        let device = match kind {
            FileType::CharacterDevice | FileType::BlockDevice => {
                (fs::major(stat.st_rdev), fs::minor(stat.st_rdev))
            }
            _ => (0, 0),
        };
        let head = Head { link, device, ..head(flag, path.to_vec(), stat) };
        self.writer.head(&head).map_err(PackError::Write)
    }
}

fn head(kind: u8, path: Vec<u8>, stat: &Stat) -> Head {
    Head {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
        ..Head::new(kind, path)
    }
}

/// Names in a directory, sorted.
fn names(folder: BorrowedFd<'_>) -> rustix::io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    names.sort();
    Ok(names)
}

type Xattr = (Vec<u8>, Vec<u8>);

/// Attributes that belong to a layer, sorted, and whether the directory is opaque.
fn open_xattrs(fd: &OwnedFd, path: &[u8]) -> Result<(Vec<Xattr>, bool), PackError> {
    let mut list = vec![0; XATTR_LIST_MAX];
    let length = match fs::flistxattr(fd, &mut list[..]) {
        Err(Errno::NOTSUP) => return Ok((Vec::new(), false)),
        other => other.map_err(unread(path))?,
    };
    let names = list.get(..length).unwrap_or_default().split(|byte| *byte == 0);
    let mut xattrs: Vec<Xattr> = Vec::new();
    let mut opaque = false;
    for name in names.filter(|name| !name.is_empty()) {
        if INDIRECT.contains(&name) {
            return Err(refused(path, "lies elsewhere by an attribute of overlayfs"));
        }
        let is_mark = name == b"trusted.overlay.opaque";
        if !is_mark && !crate::unpack::is_layer_xattr(name) {
            continue;
        }
        let mut value = vec![0; XATTR_SIZE_MAX];
        let read = fs::fgetxattr(fd, OsStr::from_bytes(name), &mut value[..]);
        let length = match read {
            // Gone in the meantime.
            Err(Errno::NODATA) => continue,
            other => other.map_err(unread(path))?,
        };
        value.truncate(length);
        if is_mark {
            opaque = value == b"y";
        } else {
            xattrs
                .push((name.to_vec(), if name == b"security.capability" { unrooted(value) } else { value }));
        }
    }
    xattrs.sort();
    Ok((xattrs, opaque))
}

/// File capabilities without the user namespace they were given in (version 3 to version 2 of their form, see
/// `linux/capability.h`): in an image they hold for whoever is root of the container.
fn unrooted(mut value: Vec<u8>) -> Vec<u8> {
    const VERSION_2: u8 = 2;
    const VERSION_3: u8 = 3;
    const SIZE_2: usize = 20;
    const SIZE_3: usize = 24;
    if value.len() == SIZE_3
        && let Some(version) = value.get_mut(3).filter(|version| **version == VERSION_3)
    {
        *version = VERSION_2;
        value.truncate(SIZE_2);
    }
    value
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

fn refused(path: &[u8], what: &'static str) -> PackError {
    PackError::Entry { path: shown(path), what }
}

fn unread(path: &[u8]) -> impl FnOnce(Errno) -> PackError {
    let path = shown(path);
    move |errno| PackError::Read { path, source: errno.into() }
}

fn unread_io(path: &[u8], source: io::Error) -> PackError {
    PackError::Read { path: shown(path), source }
}
