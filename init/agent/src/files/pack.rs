//! Writing a part of a container's tree as an archive, in the form clients of Docker expect.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Dir, FileType, Mode, OFlags, Stat, fstat, fstatfs, major, minor, openat, readlinkat};
use rustix::io::Errno;
use tar::{Builder, EntryType, Header};

use super::tree::{Found, LOOK};

/// Directories above one another. Each is open while what is below it is written.
const DEPTH_MAX: usize = 512;
/// Entries of one archive.
const ENTRIES_MAX: u64 = 4_000_000;
/// Longest name in an archive's fixed field, in bytes; longer ones go into an extended header.
const SHORT: usize = 100;
/// Largest number in a fixed field of seven octal digits.
const SMALL_ID: u32 = 0o777_7777;
/// Longest file capability, in bytes: `struct vfs_ns_cap_data`.
const CAPABILITY_MAX: usize = 24;
/// File systems whose contents are no files of anybody: what is mounted of them is written as an empty directory.
/// `PROC`, `SYSFS`, `CGROUP2`, `DEVPTS`, `MQUEUE`, `TMPFS`.
const NOT_FILES: [i64; 6] = [0x9fa0, 0x6265_6572, 0x6367_7270, 0x1cd1, 0x1980_0202, 0x0102_1994];

/// Writes what was found, under the name it was asked by.
pub(super) fn one(found: &Found, out: impl Write) -> io::Result<()> {
    let mut packer = Packer::new(out);
    let name = if found.base == b"/" { Vec::new() } else { found.base.clone() };
    packer.entry(found.fd.as_fd(), &found.stat, &name, 0)?;
    packer.finish()
}

/// Writes all that is below `root`, with names that begin there.
pub(super) fn whole(root: BorrowedFd<'_>, out: impl Write) -> io::Result<()> {
    let mut packer = Packer::new(out);
    packer.below(root, fstat(root)?.st_dev, b"", 0)?;
    packer.finish()
}

struct Packer<W: Write> {
    tar: Builder<W>,
    /// First names of files with several, by device and inode.
    seen: HashMap<(u64, u64), Vec<u8>>,
    entries: u64,
}

impl<W: Write> Packer<W> {
    fn new(out: W) -> Self {
        Self { tar: Builder::new(out), seen: HashMap::new(), entries: 0 }
    }

    fn finish(self) -> io::Result<()> {
        self.tar.into_inner()?.flush()
    }

    /// Writes one thing, which `fd` is open on for looking, and what is below it.
    fn entry(&mut self, fd: BorrowedFd<'_>, stat: &Stat, name: &[u8], depth: usize) -> io::Result<()> {
        self.entries += 1;
        if self.entries > ENTRIES_MAX {
            return Err(io::Error::other("too many files"));
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let folder = [name, b"/"].concat();
                self.head(EntryType::Directory, fd, stat, &folder, b"", 0)?;
                self.below(fd, stat.st_dev, &folder, depth)
            }
            FileType::RegularFile => self.file(fd, stat, name),
            FileType::Symlink => {
                let link = readlinkat(fd, "", Vec::new())?;
                self.head(EntryType::Symlink, fd, stat, name, link.as_bytes(), 0)
            }
            FileType::CharacterDevice => self.head(EntryType::Char, fd, stat, name, b"", 0),
            FileType::BlockDevice => self.head(EntryType::Block, fd, stat, name, b"", 0),
            FileType::Fifo => self.head(EntryType::Fifo, fd, stat, name, b"", 0),
            // No archive can hold a socket.
            FileType::Socket | FileType::Unknown => Ok(()),
        }
    }

    /// Writes what is in a directory, in the order of names.
    fn below(&mut self, folder: BorrowedFd<'_>, device: u64, name: &[u8], depth: usize) -> io::Result<()> {
        if depth >= DEPTH_MAX {
            return Err(io::Error::other("directories are too deep"));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = openat(folder, ".", flags, Mode::empty())?;
        let mut names = Vec::new();
        for entry in Dir::new(open)? {
            let entry = entry?;
            let text = entry.file_name();
            if !matches!(text.to_bytes(), b"." | b"..") {
                names.push(text.to_owned());
            }
        }
        names.sort();
        for text in names {
            let fd = match openat(folder, &*text, LOOK, Mode::empty()) {
                // Gone meanwhile.
                Err(Errno::NOENT) => continue,
                other => other?,
            };
            let stat = fstat(&fd)?;
            let path = [name, text.to_bytes()].concat();
            let mounted = stat.st_dev != device && NOT_FILES.contains(&fstatfs(&fd)?.f_type);
            if mounted && FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                self.head(EntryType::Directory, fd.as_fd(), &stat, &[&path[..], b"/"].concat(), b"", 0)?;
            } else {
                self.entry(fd.as_fd(), &stat, &path, depth + 1)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, fd: BorrowedFd<'_>, stat: &Stat, name: &[u8]) -> io::Result<()> {
        if stat.st_nlink > 1 {
            let known = self.seen.get(&(stat.st_dev, stat.st_ino)).cloned();
            if let Some(first) = known {
                return self.head(EntryType::Link, fd, stat, name, &first, 0);
            }
            self.seen.insert((stat.st_dev, stat.st_ino), name.to_vec());
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let source = reopen(fd)?;
        self.head(EntryType::Regular, fd, stat, name, b"", size)?;
        // A file that shrinks meanwhile is filled up, one that grows is cut: its size is told already.
        let mut source = std::fs::File::from(source).take(size).chain(io::repeat(0)).take(size);
        let out = self.tar.get_mut();
        io::copy(&mut source, out)?;
        let rest = usize::try_from(size % 512).unwrap_or(0);
        if rest > 0 {
            out.write_all(&[0; 512][rest..])?;
        }
        Ok(())
    }

    fn head(
        &mut self,
        kind: EntryType,
        fd: BorrowedFd<'_>,
        stat: &Stat,
        name: &[u8],
        link: &[u8],
        size: u64,
    ) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(stat.st_mode & 0o7777);
        header.set_uid(stat.st_uid.min(SMALL_ID).into());
        header.set_gid(stat.st_gid.min(SMALL_ID).into());
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
        header.set_size(size);
        if matches!(kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(major(stat.st_rdev))?;
            header.set_device_minor(minor(stat.st_rdev))?;
        }
        let old = header.as_old_mut();
        for (field, text) in [(&mut old.name, name), (&mut old.linkname, link)] {
            for (byte, from) in field.iter_mut().zip(text) {
                *byte = *from;
            }
        }
        header.set_cksum();
        let (uid, gid) = (stat.st_uid.to_string(), stat.st_gid.to_string());
        let capability = capability(kind, fd);
        let records = [
            ("path", name, name.len() > SHORT),
            ("linkpath", link, link.len() > SHORT),
            ("uid", uid.as_bytes(), stat.st_uid > SMALL_ID),
            ("gid", gid.as_bytes(), stat.st_gid > SMALL_ID),
            ("SCHILY.xattr.security.capability", &capability, !capability.is_empty()),
        ];
        let needed: Vec<(&str, &[u8])> =
            records.iter().filter(|(.., needed)| *needed).map(|(key, value, _)| (*key, *value)).collect();
        if !needed.is_empty() {
            self.tar.append_pax_extensions(needed)?;
        }
        self.tar.get_mut().write_all(header.as_bytes())
    }
}

/// What a program may do beyond its user, empty for nothing.
fn capability(kind: EntryType, fd: BorrowedFd<'_>) -> Vec<u8> {
    if kind != EntryType::Regular {
        return Vec::new();
    }
    let mut value = [0_u8; CAPABILITY_MAX];
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    // Where the file system knows no such thing there is none.
    let length = rustix::fs::getxattr(path, "security.capability", &mut value).unwrap_or(0);
    value.get(..length).unwrap_or_default().to_vec()
}

/// Opens for reading what was looked at and is a regular file: nothing that can take its place meanwhile is opened.
fn reopen(fd: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::super::tree::{Asked, FOLDER, Tree};
    use super::*;

    fn packed(tree: &Tree, path: &str) -> Vec<String> {
        let found = tree.find(&Asked::of(path.as_bytes())).unwrap();
        let mut out = Vec::new();
        one(&found, &mut out).unwrap();
        names(&out)
    }

    fn names(archive: &[u8]) -> Vec<String> {
        let mut archive = tar::Archive::new(archive);
        let name = |entry: io::Result<tar::Entry<'_, &[u8]>>| {
            String::from_utf8_lossy(&entry.unwrap().path_bytes()).into_owned()
        };
        archive.entries().unwrap().map(name).collect()
    }

    fn tree() -> (tempfile::TempDir, Tree) {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path();
        fs::create_dir_all(top.join("a/b")).unwrap();
        fs::write(top.join("a/b/file"), "text").unwrap();
        fs::hard_link(top.join("a/b/file"), top.join("a/second")).unwrap();
        symlink("/etc/passwd", top.join("a/link")).unwrap();
        symlink("a", top.join("to")).unwrap();
        let root = rustix::fs::open(top, FOLDER, Mode::empty()).unwrap();
        (folder, Tree::new(root).unwrap())
    }

    #[test]
    fn names_begin_with_what_was_asked_for() {
        let (_folder, tree) = tree();
        assert_eq!(packed(&tree, "/a"), ["a/", "a/b/", "a/b/file", "a/link", "a/second"]);
        assert_eq!(packed(&tree, "/a/b/."), ["./", "./file"]);
        assert_eq!(packed(&tree, "/a/b/file"), ["file"]);
        assert_eq!(packed(&tree, "/to"), ["to"]);
        assert_eq!(packed(&tree, "/to/b"), ["b/", "b/file"]);
        assert_eq!(packed(&tree, "/")[..3], ["/", "/a/", "/a/b/"]);
        let mut out = Vec::new();
        whole(tree.root(), &mut out).unwrap();
        assert_eq!(names(&out)[..2], ["a/", "a/b/"]);
    }

    #[test]
    fn kinds_links_and_contents_are_kept() {
        let (_folder, tree) = tree();
        let mut out = Vec::new();
        whole(tree.root(), &mut out).unwrap();
        let mut archive = tar::Archive::new(&out[..]);
        let mut kinds = BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let link = entry.link_name().unwrap().map(|link| link.display().to_string());
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            kinds.insert(name, (entry.header().entry_type(), link.unwrap_or_default(), text));
        }
        let of = |name: &str| kinds.get(name).cloned().unwrap();
        assert_eq!(of("a/b/file"), (EntryType::Regular, String::new(), "text".to_owned()));
        assert_eq!(of("a/second"), (EntryType::Link, "a/b/file".to_owned(), String::new()));
        assert_eq!(of("a/link"), (EntryType::Symlink, "/etc/passwd".to_owned(), String::new()));
    }

    #[test]
    fn long_names_are_kept_whole() {
        let (folder, tree) = tree();
        let (long, deep) = ("n".repeat(200), "d".repeat(120));
        fs::create_dir(folder.path().join(&deep)).unwrap();
        fs::write(folder.path().join(&deep).join(&long), "x").unwrap();
        assert!(packed(&tree, &format!("/{deep}")).contains(&format!("{deep}/{long}")));
    }
}
