//! Reading an archive into a directory of a container's tree.
//!
//! The archive is the client's, the tree a stranger's: names are cleaned by text, their parents are opened inside the
//! tree, and the last part is never followed.

use std::ffi::CString;
use std::io::{self, BufRead, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags, chownat, fchmod, fchown,
    fsetxattr, futimens, linkat, mkdirat, mknodat, openat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use tar::EntryType;

use super::tree::{FOLDER, LOOK, Tree};

/// Entries of one archive.
const ENTRIES_MAX: u64 = 4_000_000;
/// Directories above one another that are removed to make place.
const DEPTH_MAX: usize = 512;
/// Longest name of a file, in bytes (`NAME_MAX`).
const NAME_MAX: usize = 255;
/// Bytes read of the archive at a time.
const BUFFER: usize = 256 << 10;

const NEW: OFlags =
    OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Why an archive could not be read into a tree.
#[derive(Debug, thiserror::Error)]
pub(super) enum UnpackError {
    /// The archive is none, or of a kind that is not read.
    #[error("{0}")]
    Archive(String),
    /// An entry cannot be what it says.
    #[error("{path}: {what}")]
    Entry {
        /// Its name.
        path: String,
        /// What is wrong.
        what: &'static str,
    },
    /// A directory would be replaced by a file, or the other way round.
    #[error("cannot overwrite {}", if *.folder { format!("directory {path:?} with non-directory") } else { format!("non-directory {path:?} with directory") })]
    Kind {
        /// Where.
        path: String,
        /// A directory is there.
        folder: bool,
    },
    /// The kernel refused.
    #[error("{path}")]
    Io {
        /// The entry it was about.
        path: String,
        /// Its reason.
        #[source]
        source: io::Error,
    },
}

/// What is wanted beside the archive.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wishes {
    /// User and group of all that is made.
    pub(super) owner: Option<(u32, u32)>,
    /// Refuse to change a directory into something else and back.
    pub(super) keep_kinds: bool,
}

/// Reads the archive from `input` into the directory `base`, a path of `tree`.
pub(super) fn unpack(tree: &Tree, base: &[u8], input: impl Read, wishes: Wishes) -> Result<(), UnpackError> {
    let input = unpacked(io::BufReader::with_capacity(BUFFER, input))?;
    let mut archive = tar::Archive::new(input);
    let broken = |error: io::Error| UnpackError::Archive(format!("archive: {error}"));
    let mut writer = Writer { tree, base, wishes, folders: Vec::new() };
    let mut count = 0;
    for entry in archive.entries().map_err(broken)? {
        count += 1;
        if count > ENTRIES_MAX {
            return Err(UnpackError::Archive(format!("archive: more than {ENTRIES_MAX} entries")));
        }
        writer.entry(&mut entry.map_err(broken)?)?;
    }
    writer.finish()
}

/// The archive without its packing, which its first bytes tell.
fn unpacked<'a>(mut input: impl BufRead + 'a) -> Result<Box<dyn Read + 'a>, UnpackError> {
    let broken = |error: io::Error| UnpackError::Archive(format!("archive: {error}"));
    Ok(match input.fill_buf().map_err(broken)? {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Box::new(zstd::stream::read::Decoder::with_buffer(input).map_err(broken)?)
        }
        [b'B', b'Z', b'h', ..] | [0xfd, b'7', b'z', b'X', ..] => {
            return Err(UnpackError::Archive(
                "archives packed with bzip2 or xz are not read; use gzip, zstd or none".to_owned(),
            ));
        }
        _ => Box::new(input),
    })
}

struct Writer<'a> {
    tree: &'a Tree,
    base: &'a [u8],
    wishes: Wishes,
    /// Directories whose time is set last, since what is made in them changes it.
    folders: Vec<(OwnedFd, i64)>,
}

/// Directories that are remembered for their time; of more the time is that of their last change.
const FOLDERS_MAX: usize = 500;

/// What an entry says of itself.
struct Facts {
    mode: Mode,
    uid: Uid,
    gid: Gid,
    mtime: i64,
}

impl Writer<'_> {
    fn entry<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<(), UnpackError> {
        let raw = entry.path_bytes().into_owned();
        let path = String::from_utf8_lossy(&raw).into_owned();
        let mut kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        // Archives older than the field say it this way.
        if kind == EntryType::Regular && raw.ends_with(b"/") {
            kind = EntryType::Directory;
        }
        let refused = |what| UnpackError::Entry { path: path.clone(), what };
        let parts = clean(&raw).map_err(refused)?;
        let Some((name, parents)) = parts.split_last() else {
            // The directory itself stays as it is.
            return Ok(());
        };
        let facts = self.facts(&path, entry)?;
        let failed = |source: Errno| UnpackError::Io { path: path.clone(), source: source.into() };
        let parent = self.folder(parents).map_err(failed)?;
        self.make_place(parent.as_fd(), name, &path, kind)?;
        let link = entry.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default();
        match kind {
            EntryType::Directory => self.directory(parent.as_fd(), name, &facts).map_err(failed),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let capability = capability(entry);
                file(parent.as_fd(), name, entry, &facts, capability.as_deref())
                    .map_err(|source| UnpackError::Io { path: path.clone(), source })
            }
            EntryType::Link => {
                let parts = clean(&link).map_err(refused)?;
                let (old, parents) = parts.split_last().ok_or_else(|| refused("hard link to the root"))?;
                let from = self.tree.open(&self.below(parents), FOLDER).map_err(failed)?;
                linkat(&from, *old, &parent, *name, AtFlags::empty()).map_err(failed)
            }
            EntryType::Symlink => {
                let link = CString::new(link).map_err(|_| refused("link has a NUL byte"))?;
                symlinkat(&*link, &parent, *name)
                    .and_then(|()| named(parent.as_fd(), name, &facts, true))
                    .map_err(failed)
            }
            EntryType::Fifo => mknodat(&parent, *name, FileType::Fifo, facts.mode, 0)
                .and_then(|()| named(parent.as_fd(), name, &facts, false))
                .map_err(failed),
            // Nobody in a user namespace may make devices; what is left out is no use there either.
            EntryType::Char | EntryType::Block => Ok(()),
            _ => Err(refused("unknown kind of entry")),
        }
    }

    fn facts<R: Read>(&self, path: &str, entry: &tar::Entry<'_, R>) -> Result<Facts, UnpackError> {
        let header = entry.header();
        let broken = |error: io::Error| UnpackError::Archive(format!("archive: {path}: {error}"));
        let refused = |what| UnpackError::Entry { path: path.to_owned(), what };
        let id = |id: u64| {
            u32::try_from(id)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| refused("owner is out of range"))
        };
        let (uid, gid) = match self.wishes.owner {
            Some(owner) => owner,
            None => (id(header.uid().map_err(broken)?)?, id(header.gid().map_err(broken)?)?),
        };
        Ok(Facts {
            mode: Mode::from_raw_mode(header.mode().map_err(broken)? & 0o7777),
            uid: Uid::from_raw(uid),
            gid: Gid::from_raw(gid),
            mtime: i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0),
        })
    }

    fn below(&self, parts: &[&[u8]]) -> Vec<u8> {
        [self.base, b"/", &parts.join(&b'/')].concat()
    }

    fn folder(&self, parts: &[&[u8]]) -> rustix::io::Result<OwnedFd> {
        self.tree.make_folders(&self.below(parts))
    }

    /// Removes what stands where an entry is to go.
    fn make_place(
        &self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        path: &str,
        kind: EntryType,
    ) -> Result<(), UnpackError> {
        let there = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            other => {
                other.map_err(|source| UnpackError::Io { path: path.to_owned(), source: source.into() })?
            }
        };
        let folder = FileType::from_raw_mode(there.st_mode) == FileType::Directory;
        let wanted = kind == EntryType::Directory;
        if folder && wanted {
            return Ok(());
        }
        if self.wishes.keep_kinds && folder != wanted {
            return Err(UnpackError::Kind { path: path.to_owned(), folder });
        }
        remove(parent, name, 0).map_err(|source| UnpackError::Io { path: path.to_owned(), source })
    }

    fn directory(&mut self, parent: BorrowedFd<'_>, name: &[u8], facts: &Facts) -> rustix::io::Result<()> {
        match mkdirat(parent, name, facts.mode) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(parent, name, flags, Mode::empty())?;
        fchown(&fd, Some(facts.uid), Some(facts.gid))?;
        fchmod(&fd, facts.mode)?;
        if self.folders.len() < FOLDERS_MAX {
            self.folders.push((fd, facts.mtime));
        }
        Ok(())
    }

    fn finish(self) -> Result<(), UnpackError> {
        for (fd, mtime) in self.folders.iter().rev() {
            futimens(fd, &times(*mtime))
                .map_err(|source| UnpackError::Io { path: "directory".to_owned(), source: source.into() })?;
        }
        Ok(())
    }
}

/// Cleans a name by text; one that leaves the directory is refused.
fn clean(raw: &[u8]) -> Result<Vec<&[u8]>, &'static str> {
    let mut parts = Vec::new();
    for part in raw.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop().ok_or("path leaves the directory")?),
            part if part.len() > NAME_MAX => return Err("name is too long"),
            part if part.contains(&0) => return Err("path has a NUL byte"),
            part => parts.push(part),
        }
    }
    Ok(parts)
}

fn times(mtime: i64) -> Timestamps {
    let time = Timespec { tv_sec: mtime, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

fn file<R: Read>(
    parent: BorrowedFd<'_>,
    name: &[u8],
    content: &mut R,
    facts: &Facts,
    capability: Option<&[u8]>,
) -> io::Result<()> {
    let mut file = std::fs::File::from(openat(parent, name, NEW, Mode::from_raw_mode(0o600))?);
    io::copy(content, &mut file)?;
    // The change of owner takes set-id bits and capabilities away, so it comes first.
    fchown(&file, Some(facts.uid), Some(facts.gid))?;
    if let Some(capability) = capability {
        fsetxattr(&file, "security.capability", capability, XattrFlags::empty())?;
    }
    fchmod(&file, facts.mode)?;
    futimens(&file, &times(facts.mtime))?;
    Ok(())
}

/// Owner, mode and time of what cannot be opened.
fn named(parent: BorrowedFd<'_>, name: &[u8], facts: &Facts, link: bool) -> rustix::io::Result<()> {
    chownat(parent, name, Some(facts.uid), Some(facts.gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if !link {
        // Through what was looked at: the name may be a link by now.
        let fd = openat(parent, name, LOOK, Mode::empty())?;
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        rustix::fs::chmod(path, facts.mode)?;
    }
    utimensat(parent, name, &times(facts.mtime), AtFlags::SYMLINK_NOFOLLOW)
}

fn capability<R: Read>(entry: &mut tar::Entry<'_, R>) -> Option<Vec<u8>> {
    let records = entry.pax_extensions().ok().flatten()?;
    let mut found =
        records.flatten().filter(|record| record.key_bytes() == b"SCHILY.xattr.security.capability");
    found.next().map(|record| record.value_bytes().to_vec())
}

/// Removes a name and all that is below it.
fn remove(parent: BorrowedFd<'_>, name: &[u8], depth: usize) -> io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(error) => return Err(error.into()),
    }
    if depth >= DEPTH_MAX {
        return Err(io::Error::other("directories are too deep"));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = openat(parent, name, flags, Mode::empty())?;
    for entry in Dir::read_from(&folder)? {
        let entry = entry?;
        let text = entry.file_name().to_bytes();
        if !matches!(text, b"." | b"..") {
            remove(folder.as_fd(), text, depth + 1)?;
        }
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use tar::{Builder, Header};

    use super::super::tree::Tree;
    use super::*;

    /// An entry: kind, name, where it leads, content.
    type Line<'a> = (EntryType, &'a str, &'a str, &'a str);

    fn archive(lines: &[Line<'_>]) -> Vec<u8> {
        let mut tar = Builder::new(Vec::new());
        let me = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        for (kind, name, link, text) in lines {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o750);
            header.set_uid(me.0.into());
            header.set_gid(me.1.into());
            header.set_mtime(1_600_000_000);
            header.set_size(text.len() as u64);
            for (field, from) in [(0, name), (157, link)] {
                header.as_mut_bytes()[field..field + from.len()].copy_from_slice(from.as_bytes());
            }
            header.set_cksum();
            tar.append(&header, text.as_bytes()).unwrap();
        }
        tar.into_inner().unwrap()
    }

    /// A tree at `root` below a folder with a canary outside.
    fn scene() -> (tempfile::TempDir, Tree) {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("root/data")).unwrap();
        fs::create_dir(folder.path().join("outside")).unwrap();
        fs::write(folder.path().join("outside/canary"), "alive").unwrap();
        let root = rustix::fs::open(folder.path().join("root"), FOLDER, Mode::empty()).unwrap();
        (folder, Tree::new(root).unwrap())
    }

    fn put(tree: &Tree, lines: &[Line<'_>]) -> Result<(), UnpackError> {
        unpack(tree, b"/data", &archive(lines)[..], Wishes::default())
    }

    const FILE: EntryType = EntryType::Regular;
    const DIR: EntryType = EntryType::Directory;
    const LINK: EntryType = EntryType::Symlink;
    const HARD: EntryType = EntryType::Link;

    #[test]
    fn files_land_in_the_directory_with_mode_and_time() {
        let (folder, tree) = scene();
        let lines = [
            (DIR, "d/", "", ""),
            (FILE, "d/f", "", "text"),
            (HARD, "d/h", "d/f", ""),
            (LINK, "l", "d/f", ""),
        ];
        put(&tree, &lines).unwrap();
        let data = folder.path().join("root/data");
        assert_eq!(fs::read_to_string(data.join("l")).unwrap(), "text");
        assert_eq!(fs::read_to_string(data.join("d/h")).unwrap(), "text");
        let about = fs::metadata(data.join("d/f")).unwrap();
        assert_eq!(about.permissions().mode() & 0o7777, 0o750);
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_600_000_000);
        assert_eq!(
            (about.modified().unwrap(), fs::metadata(data.join("d")).unwrap().modified().unwrap()),
            (time, time)
        );
    }

    #[test]
    fn nothing_lands_outside_the_tree() {
        let attacks: [&[Line<'_>]; 7] = [
            &[(FILE, "../../outside/canary", "", "dead")],
            &[(LINK, "x", "../../outside", ""), (FILE, "x/canary", "", "dead")],
            &[(LINK, "x", "/../../outside/canary", ""), (FILE, "x", "", "dead")],
            &[(LINK, "x", "../../outside", ""), (DIR, "x/new/", "", "")],
            &[(LINK, "x", "../../outside", ""), (HARD, "y", "x/canary", ""), (FILE, "y", "", "dead")],
            &[(HARD, "y", "../../outside/canary", ""), (FILE, "y", "", "dead")],
            &[(FILE, "/../../outside/canary", "", "dead")],
        ];
        for lines in attacks {
            let (folder, tree) = scene();
            // Refused or landed inside: both are fine.
            let _ = put(&tree, lines);
            assert_eq!(
                fs::read_to_string(folder.path().join("outside/canary")).unwrap(),
                "alive",
                "{lines:?}"
            );
            assert_eq!(fs::read_dir(folder.path().join("outside")).unwrap().count(), 1, "{lines:?}");
        }
    }

    #[test]
    fn links_of_the_tree_are_followed_inside_it() {
        let (folder, tree) = scene();
        fs::create_dir(folder.path().join("root/real")).unwrap();
        symlink("/real", folder.path().join("root/data/link")).unwrap();
        put(&tree, &[(FILE, "link/f", "", "text")]).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("root/real/f")).unwrap(), "text");
        put(&tree, &[(FILE, "link", "", "took its place")]).unwrap();
        assert!(fs::symlink_metadata(folder.path().join("root/data/link")).unwrap().is_file());
    }

    #[test]
    fn kinds_change_unless_they_are_to_be_kept() {
        let keep = Wishes { keep_kinds: true, ..Wishes::default() };
        for (before, lines) in [("dir/below", [(FILE, "dir", "", "x")]), ("file", [(DIR, "file/", "", "")])] {
            let (folder, tree) = scene();
            let path = folder.path().join("root/data").join(before);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "x").unwrap();
            let bytes = archive(&lines);
            let refused = unpack(&tree, b"/data", &bytes[..], keep).unwrap_err();
            assert!(refused.to_string().starts_with("cannot overwrite "), "{refused}");
            unpack(&tree, b"/data", &bytes[..], Wishes::default()).unwrap();
        }
    }

    #[test]
    fn packed_archives_are_known_by_their_first_bytes() {
        let (folder, tree) = scene();
        let plain = archive(&[(FILE, "f", "", "text")]);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut gzip, &plain).unwrap();
        for bytes in [gzip.finish().unwrap(), zstd::encode_all(&plain[..], 1).unwrap(), plain] {
            unpack(&tree, b"/data", &bytes[..], Wishes::default()).unwrap();
            assert_eq!(fs::read_to_string(folder.path().join("root/data/f")).unwrap(), "text");
            fs::remove_file(folder.path().join("root/data/f")).unwrap();
        }
        let refused = unpack(&tree, b"/data", &b"BZh9"[..], Wishes::default()).unwrap_err();
        assert!(refused.to_string().contains("bzip2"));
        unpack(&tree, b"/data", &b""[..], Wishes::default()).unwrap();
        assert!(unpack(&tree, b"/data", &[7; 700][..], Wishes::default()).is_err());
    }
}
