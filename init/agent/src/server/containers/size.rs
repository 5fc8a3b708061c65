//! How much a container has written into its own layer.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};

/// Where containers' writable layers are: `<id>/rw/fs`.
const CONTAINERS: &str = "/var/lib/berth/containers";
/// Entries looked at, at most; what is beyond is not counted.
const MAX_ENTRIES: usize = 1_000_000;
/// Folders open at once: deeper ones are not counted.
const MAX_DEPTH: usize = 128;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Bytes of files in the container's writable layer; none when it has no layer yet. Blocks.
pub(crate) fn written_bytes(id: &str) -> Option<i64> {
    let layer: PathBuf = [CONTAINERS, id, "rw", "fs"].iter().collect();
    i64::try_from(bytes_below(&layer).ok()?).ok()
}

/// Bytes of regular files below `folder`. The tree may change under our feet, so it is walked by descriptor and no link
/// is followed; what vanishes meanwhile does not count.
fn bytes_below(folder: &Path) -> std::io::Result<u64> {
    let top = rustix::fs::open(folder, FOLDER, Mode::empty())?;
    let mut total = 0_u64;
    let mut entries = 0;
    let mut open: Vec<(OwnedFd, Dir)> = Vec::new();
    push(&mut open, top);
    while let Some((folder, list)) = open.last_mut() {
        let Some(Ok(entry)) = list.next() else {
            open.pop();
            continue;
        };
        entries += 1;
        if entries > MAX_ENTRIES {
            break;
        }
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let Ok(stat) = rustix::fs::statat(folder.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => total = total.saturating_add(u64::try_from(stat.st_size).unwrap_or(0)),
            FileType::Directory => {
                if let Ok(below) = rustix::fs::openat(folder.as_fd(), name, FOLDER, Mode::empty()) {
                    push(&mut open, below);
                }
            }
            _ => {}
        }
    }
    Ok(total)
}

fn push(open: &mut Vec<(OwnedFd, Dir)>, folder: OwnedFd) {
    if open.len() < MAX_DEPTH
        && let Ok(list) = Dir::read_from(folder.as_fd())
    {
        open.push((folder, list));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_at_every_depth_count_and_links_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a/b/c");
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(folder.path().join("one"), [0; 10]).unwrap();
        std::fs::write(deep.join("two"), [0; 5]).unwrap();
        std::os::unix::fs::symlink("/", folder.path().join("root")).unwrap();
        assert_eq!(bytes_below(folder.path()).unwrap(), 15);
        assert!(bytes_below(&folder.path().join("none")).is_err());
    }
}
