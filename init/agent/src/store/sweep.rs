//! Removing a tree that a container wrote: any depth, any names, no recursion, nothing outside it touched.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;

const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Removes a directory and everything below. One that is not there is fine.
///
/// Directories below are first moved up to the top and then emptied there, so the depth never grows.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    let top = match openat(CWD, path, DIR, Mode::empty()) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut moved = 0_u64;
    loop {
        let mut left = false;
        for (name, is_dir) in entries(&top)? {
            if !is_dir {
                unlinkat(&top, &name, AtFlags::empty())?;
                continue;
            }
            left = true;
            let dir = openat(&top, &name, DIR, Mode::empty())?;
            for (inner, is_dir) in entries(&dir)? {
                if is_dir {
                    moved = move_up(&dir, &inner, &top, moved)?;
                } else {
                    unlinkat(&dir, &inner, AtFlags::empty())?;
                }
            }
            unlinkat(&top, &name, AtFlags::REMOVEDIR)?;
        }
        if !left {
            break;
        }
    }
    unlinkat(CWD, path, AtFlags::REMOVEDIR)?;
    Ok(())
}

fn move_up(from: &OwnedFd, name: &std::ffi::CStr, top: &OwnedFd, mut number: u64) -> io::Result<u64> {
    loop {
        let fresh = format!(".swept-{number}");
        number += 1;
        match renameat(from, name, top, fresh.as_str()) {
            Ok(()) => return Ok(number),
            // Left by an earlier sweep that was cut short.
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn entries(dir: &OwnedFd) -> io::Result<Vec<(std::ffi::CString, bool)>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir.as_fd())? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push((name.to_owned(), entry.file_type() == FileType::Directory));
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_far_deeper_than_any_stack_goes() {
        let dir = tempfile::tempdir().expect("a directory");
        let top = dir.path().join("top");
        std::fs::create_dir(&top).expect("a directory");
        std::os::unix::fs::symlink("/etc", top.join("link")).expect("a link");
        let mut here = openat(CWD, &top, DIR, Mode::empty()).expect("the top");
        for _ in 0..5000 {
            rustix::fs::mkdirat(&here, "d", Mode::RWXU).expect("a directory");
            here = openat(&here, "d", DIR, Mode::empty()).expect("the directory");
        }
        std::fs::write(top.join(".swept-0"), "in the way").expect("a file");
        remove_tree(&top).expect("a removal");
        assert!(!top.exists() && Path::new("/etc").exists());
        remove_tree(&top).expect("nothing to do");
    }
}
