//! A directory for one test, with a tree beside the one under test that nothing may touch.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// What a test may write to, and a canary it may not.
pub(crate) struct Scratch {
    directory: tempfile::TempDir,
    before: Listing,
}

/// Every path of a tree with all that matters about it.
pub(crate) type Listing = BTreeMap<String, String>;

impl Scratch {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let canary = directory.path().join("canary");
        fs::create_dir_all(canary.join("sub")).unwrap();
        fs::write(canary.join("file"), "canary").unwrap();
        fs::write(canary.join("sub/secret"), "secret").unwrap();
        fs::set_permissions(&canary, fs::Permissions::from_mode(0o711)).unwrap();
        let before = listing(&canary, true);
        Self { directory, before }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn canary(&self) -> PathBuf {
        self.path().join("canary")
    }

    /// An empty directory.
    pub(crate) fn empty(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Fails if anything outside changed.
    pub(crate) fn assert_canary(&self) {
        assert_eq!(listing(&self.canary(), true), self.before, "something outside the tree was changed");
    }
}

/// Lists a tree. With `identity` inodes and change times count too.
pub(crate) fn listing(root: &Path, identity: bool) -> Listing {
    let mut all = Listing::new();
    walk(root, Path::new(""), identity, &mut all);
    all
}

fn walk(root: &Path, below: &Path, identity: bool, all: &mut Listing) {
    let path = root.join(below);
    let meta = fs::symlink_metadata(&path).unwrap();
    let kind = meta.file_type();
    let what = if kind.is_dir() {
        "dir".to_owned()
    } else if kind.is_symlink() {
        format!("link {}", fs::read_link(&path).unwrap().display())
    } else if kind.is_file() {
        let bytes = fs::read(&path).unwrap();
        format!("file {} {}", meta.len(), crate::digest::Digest::of(&bytes).short())
    } else if kind.is_char_device() || kind.is_block_device() {
        let letter = if kind.is_char_device() { "char" } else { "block" };
        format!("{letter} {}:{}", rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()))
    } else if kind.is_fifo() {
        "fifo".to_owned()
    } else {
        "other".to_owned()
    };
    let mut line = format!(
        "{what} {:o} {}:{} @{}.{:09}",
        meta.mode() & 0o7777,
        meta.uid(),
        meta.gid(),
        meta.mtime(),
        meta.mtime_nsec()
    );
    if identity {
        line.push_str(&format!(" #{} {}.{}", meta.ino(), meta.ctime(), meta.ctime_nsec()));
    }
    for (name, value) in xattrs(&path) {
        line.push_str(&format!(" {name}={}", value.escape_ascii()));
    }
    all.insert(below.display().to_string(), line);
    if kind.is_dir() {
        let mut names: Vec<_> =
            fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        for name in names {
            walk(root, &below.join(name), identity, all);
        }
    }
}

/// Extended attributes, sorted, without the machine's own.
pub(crate) fn xattrs(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut list = vec![0; 64 << 10];
    let Ok(length) = rustix::fs::llistxattr(path, &mut list[..]) else { return Vec::new() };
    let mut all: Vec<(String, Vec<u8>)> = list[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty() && *name != b"security.selinux")
        .map(|name| {
            let mut value = vec![0; 64 << 10];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            value.truncate(length);
            (String::from_utf8_lossy(name).into_owned(), value)
        })
        .collect();
    all.sort();
    all
}
