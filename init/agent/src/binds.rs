//! Paths of the host that users mount into containers.
//!
//! The root of the machine is read-only and holds nothing of the user's. A path that is not there is meant to be the
//! user's own, as it would be on any other engine, and lies below a folder of the state disk: `/srv/site` and
//! `/home/me/project` are made there, and found again. What is in that folder was written by containers, so it is
//! resolved inside it and links lead nowhere else.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open as open_path};
use rustix::io::Errno;

use crate::files::tree::Tree;

/// Where the users' own paths are.
const ROOT: &str = "/var/lib/berth/host";
/// The API's socket for containers, where its owner can be shifted into theirs.
pub(crate) const API_SOCKET: &str = "/var/lib/berth/api/docker.sock";
/// What clients call it.
const SOCKETS: [&str; 2] = ["/run/docker.sock", "/var/run/docker.sock"];
/// Places of the machine's own, where nothing stands in for what is missing.
const MACHINE: [&str; 5] = ["/var", "/run", "/proc", "/sys", "/dev"];

/// Where a path is: below a folder that is trusted, at a path that is resolved inside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPath {
    /// Trusted, links and all.
    pub(crate) folder: PathBuf,
    /// Inside the folder; empty for the folder itself.
    pub(crate) below: String,
}

/// Where a path of a bind mount is.
pub(crate) fn place(source: &str) -> HostPath {
    place_below(source, Path::new(ROOT))
}

fn place_below(source: &str, root: &Path) -> HostPath {
    let source = Path::new(source);
    let here = |path: &Path| HostPath { folder: path.to_owned(), below: String::new() };
    if SOCKETS.iter().any(|socket| source == Path::new(socket)) {
        return here(Path::new(API_SOCKET));
    }
    let machine = MACHINE.iter().any(|place| source.starts_with(place));
    if machine || std::fs::symlink_metadata(source).is_ok() {
        return here(source);
    }
    HostPath { folder: root.to_owned(), below: source.to_string_lossy().into_owned() }
}

impl HostPath {
    /// Opens it for mounting. With `create` a directory is made when nothing is there.
    pub(crate) fn open(&self, create: bool) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        if create {
            // The folder of the users' paths is made with the first of them.
            match std::fs::symlink_metadata(&self.folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    std::fs::create_dir_all(&self.folder)?;
                }
                _ => {}
            }
        }
        let folder = open_path(&self.folder, flags, Mode::empty())?;
        if self.below.is_empty() {
            return Ok(folder);
        }
        let tree = Tree::new(folder)?;
        match tree.open(self.below.as_bytes(), OFlags::PATH) {
            Err(Errno::NOENT) if create => Ok(tree.make_folders(self.below.as_bytes())?),
            other => Ok(other?),
        }
    }

    /// A part of what is there, resolved inside it.
    pub(crate) fn part(mut self, subpath: &str) -> Self {
        if !subpath.is_empty() {
            self.below = format!("{}/{subpath}", self.below);
        }
        self
    }

    /// Whether something is there.
    pub(crate) fn exists(&self) -> bool {
        self.open(false).is_ok_and(|fd| rustix::fs::fstat(fd.as_fd()).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_lacks_is_the_users_own() {
        let root = Path::new("/state");
        let direct = |path: &str| HostPath { folder: path.into(), below: String::new() };
        assert_eq!(place_below("/etc/passwd", root), direct("/etc/passwd"));
        assert_eq!(place_below("/var/log/none", root), direct("/var/log/none"));
        assert_eq!(place_below("/var/run/docker.sock", root), direct(API_SOCKET));
        let own = HostPath { folder: root.into(), below: "/no/such/path".to_owned() };
        assert_eq!(place_below("/no/such/path", root), own);
    }

    #[test]
    fn links_made_by_containers_lead_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("host");
        std::fs::create_dir(dir.path().join("outside")).unwrap();
        let path = |source: &str| place_below(source, &root);
        assert!(!path("/no/such/a").exists());
        path("/no/such/a").open(true).unwrap();
        assert!(path("/no/such/a").exists() && root.join("no/such/a").is_dir());
        std::os::unix::fs::symlink("../../../../outside", root.join("no/such/a/link")).unwrap();
        assert!(path("/no/such/a/link/made").open(true).is_err());
        assert_eq!(std::fs::read_dir(dir.path().join("outside")).unwrap().count(), 0);
    }
}
