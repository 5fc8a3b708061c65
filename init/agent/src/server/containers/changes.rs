//! What a container changed in the files of its image: its writable overlay layer compared with the layers below.
//!
//! In that layer a character device 0:0 stands for a file that was deleted, and a directory marked opaque hides what
//! lower layers have at its place.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use berth_api::docker::containers::Change;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::size::CONTAINERS;
use crate::server::errors::{ApiError, chain};
use crate::server::images::blocking;
use crate::server::request::Request;
use crate::server::respond;
use crate::server::routes::Answer;

/// Changes told, at most.
pub(crate) const MAX_CHANGES: usize = 1_000_000;
/// Folders deeper than this are not looked into.
const MAX_DEPTH: usize = 128;

const MODIFIED: u8 = 0;
const ADDED: u8 = 1;
const DELETED: u8 = 2;

/// Places that are made for every container and are no change of its own.
const MADE: [&str; 8] =
    ["/dev", "/proc", "/sys", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc/mtab", "/.dockerenv"];

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// `GET /containers/{id}/changes`: null when there are none.
pub(crate) async fn changes(request: Request, name: &str) -> Answer {
    let view = request.api.owner.view(name).await?;
    let image = request.api.require_image(&view.image_id)?;
    let lower = request.api.images.layer_dirs(&image);
    let upper: PathBuf = [CONTAINERS, &view.id, "rw", "fs"].iter().collect();
    let found = blocking(move || compare(&upper, &lower)).await?;
    let found = found
        .map_err(|error| ApiError::failed(format!("cannot compare with the image: {}", chain(&error))))?;
    Ok(respond::ok(&(!found.is_empty()).then_some(found)))
}

/// The differences, sorted by path. `lower` lists the image's layers, lowest first. Blocks.
pub(crate) fn compare(upper: &Path, lower: &[PathBuf]) -> io::Result<Vec<Change>> {
    let top = match rustix::fs::open(upper, FOLDER, Mode::empty()) {
        // Never started: nothing was written.
        Err(Errno::NOENT) => return Ok(Vec::new()),
        other => other?,
    };
    let layers = lower.iter().rev().map(|layer| rustix::fs::open(layer, FOLDER, Mode::empty()));
    let mut walk = Walk { layers: layers.collect::<Result<_, _>>()?, found: BTreeMap::new() };
    walk.folder(&top, "", 0);
    Ok(walk.found.into_iter().map(|(path, kind)| Change { path, kind }).collect())
}

struct Walk {
    /// The image's layers, highest first.
    layers: Vec<OwnedFd>,
    found: BTreeMap<String, u8>,
}

impl Walk {
    /// Looks at everything in `folder`, whose path is `path`; true when something below changed. The tree may change
    /// under our feet: what vanishes meanwhile is left out.
    fn folder(&mut self, folder: &OwnedFd, path: &str, depth: usize) -> bool {
        let Ok(list) = Dir::read_from(folder.as_fd()) else { return false };
        let mut changed = false;
        for entry in list.flatten() {
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") || self.found.len() >= MAX_CHANGES {
                continue;
            }
            let below = format!("{path}/{}", name.to_string_lossy());
            if !MADE.contains(&below.as_str()) {
                changed |= self.entry(folder.as_fd(), name, &below, depth);
            }
        }
        changed
    }

    fn entry(&mut self, folder: BorrowedFd<'_>, name: &CStr, path: &str, depth: usize) -> bool {
        let Ok(stat) = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) else { return false };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if is_whiteout(&stat) {
            self.found.insert(path.to_owned(), DELETED);
            return true;
        }
        let before = self.in_image(path);
        let mut changed = kind != FileType::Directory
            || before.is_none_or(|before| {
                (before.st_mode, before.st_uid, before.st_gid) != (stat.st_mode, stat.st_uid, stat.st_gid)
            });
        if kind == FileType::Directory
            && depth < MAX_DEPTH
            && let Ok(below) = rustix::fs::openat(folder, name, FOLDER, Mode::empty())
        {
            changed |= self.folder(&below, path, depth + 1);
        }
        if changed {
            self.found.insert(path.to_owned(), if before.is_some() { MODIFIED } else { ADDED });
        }
        changed
    }

    /// What the image has at `path`.
    fn in_image(&self, path: &str) -> Option<Stat> {
        let relative = path.trim_start_matches('/');
        for layer in &self.layers {
            match look(layer.as_fd(), relative) {
                Ok(stat) => return (!is_whiteout(&stat)).then_some(stat),
                // Something that is no directory stands in the way, such as a whiteout of a parent.
                Err(Errno::NOTDIR) => return None,
                Err(_) if hides(layer.as_fd(), relative) => return None,
                Err(_) => {}
            }
        }
        None
    }
}

fn look(layer: BorrowedFd<'_>, path: &str) -> rustix::io::Result<Stat> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::fs::fstat(rustix::fs::openat2(layer, path, flags, Mode::empty(), resolve)?)
}

/// Whether a parent of `path` is marked opaque in this layer.
fn hides(layer: BorrowedFd<'_>, path: &str) -> bool {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    path.match_indices('/').any(|(end, _)| {
        let parent = path.get(..end).unwrap_or_default();
        let mut mark = [0_u8; 1];
        rustix::fs::openat2(layer, parent, FOLDER, Mode::empty(), resolve)
            .and_then(|folder| rustix::fs::fgetxattr(folder, "trusted.overlay.opaque", &mut mark))
            .is_ok_and(|_| mark == *b"y")
    })
}

fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    struct Trees {
        folder: tempfile::TempDir,
    }

    impl Trees {
        fn new(files: &[&str]) -> Self {
            let trees = Self { folder: tempfile::tempdir().unwrap() };
            for layer in ["low", "high", "upper"] {
                fs::create_dir(trees.folder.path().join(layer)).unwrap();
            }
            for file in files {
                let path = trees.folder.path().join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "x").unwrap();
            }
            trees
        }

        fn changes(&self) -> Vec<(String, u8)> {
            let at = |name: &str| self.folder.path().join(name);
            let found = compare(&at("upper"), &[at("low"), at("high")]).unwrap();
            found.into_iter().map(|change| (change.path, change.kind)).collect()
        }
    }

    fn told(list: &[(&str, u8)]) -> Vec<(String, u8)> {
        list.iter().map(|(path, kind)| ((*path).to_owned(), *kind)).collect()
    }

    #[test]
    fn new_and_changed_files_are_told_with_their_folders() {
        let trees =
            Trees::new(&["low/etc/passwd", "high/a/b", "upper/etc/passwd", "upper/new/file", "upper/a/c"]);
        assert_eq!(
            trees.changes(),
            told(&[("/a", 0), ("/a/c", 1), ("/etc", 0), ("/etc/passwd", 0), ("/new", 1), ("/new/file", 1)])
        );
    }

    #[test]
    fn what_is_made_for_every_container_is_no_change() {
        let trees =
            Trees::new(&["low/etc/passwd", "upper/etc/hosts", "upper/etc/resolv.conf", "upper/dev/console"]);
        assert_eq!(trees.changes(), told(&[]));
        assert_eq!(compare(&trees.folder.path().join("none"), &[]).unwrap(), []);
    }

    #[test]
    fn links_of_the_image_are_not_followed() {
        let trees = Trees::new(&["upper/link/passwd"]);
        std::os::unix::fs::symlink("/etc", trees.folder.path().join("low/link")).unwrap();
        // The directory took the link's place, and what is in it is new.
        assert_eq!(trees.changes(), told(&[("/link", 0), ("/link/passwd", 1)]));
    }

    #[test]
    fn whiteouts_are_deletions_and_hide_lower_layers() {
        let trees = Trees::new(&["low/gone", "low/back", "upper/back"]);
        let whiteout = |path: &str| {
            let path = trees.folder.path().join(path);
            rustix::fs::mknodat(rustix::fs::CWD, path, FileType::CharacterDevice, Mode::empty(), 0)
        };
        if whiteout("upper/gone").is_err() {
            // Only root may make devices.
            return;
        }
        whiteout("high/back").unwrap();
        assert_eq!(trees.changes(), told(&[("/back", 1), ("/gone", 2)]));
    }
}
