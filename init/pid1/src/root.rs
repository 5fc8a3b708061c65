//! Stage 1: from the initramfs to the root image.
//!
//! The initramfs cannot be left by `pivot_root`, so its files are deleted (they are memory) and the root image is
//! moved on top of it. The image's own file is deleted too: the loop device holds it.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::mount::{MountFlags, mount, mount_move};

use crate::kmsg::{error, note, warn};
use crate::modules::{self, Loader};
use crate::{loopdev, mounts, timeline};

const IMAGE: &str = "/root.erofs";
const NEW_ROOT: &str = "/root";
/// How deep the initramfs is at most.
const DEPTH_MAX: usize = 32;

/// Why there is no root.
#[derive(Debug, thiserror::Error)]
enum RootError {
    #[error("no image {IMAGE}")]
    NoImage(#[source] io::Error),
    #[error("no loop device for {IMAGE}")]
    Loop(#[source] io::Error),
    #[error("{0} does not mount")]
    Mount(String, #[source] io::Error),
    #[error("{0} does not move to the new root")]
    Move(&'static str, #[source] io::Error),
    #[error("the new root is not entered")]
    Enter(#[source] io::Error),
    #[error("/sbin/init does not start")]
    Exec(#[source] io::Error),
}

/// Runs stage 1. Comes back only when the machine cannot go on.
pub(crate) fn stage1() {
    let failed = mounts::before_root();
    crate::console::repair();
    crate::kmsg::open();
    let _ = mounts::make_folder("/run/berth", 0o755);
    timeline::mark("stage1");
    for (target, error) in failed {
        warn!("{target} does not mount: {error}, continuing");
    }
    note!("stage1 on Linux {}", rustix::system::uname().release().to_string_lossy());
    if modules::are_there() {
        load_modules();
    }
    let Err(failure) = switch_root();
    let source = std::error::Error::source(&failure).map(ToString::to_string).unwrap_or_default();
    error!("no root: {failure}: {source}");
}

fn load_modules() {
    let mut loader = Loader::open();
    // What reads the root image first: it is needed whatever hardware there is.
    for name in ["loop", "erofs"] {
        loader.load(name);
    }
    loader.coldplug();
    note!("stage1 loaded {} modules", loader.loaded);
    timeline::mark("stage1-modules");
}

fn switch_root() -> Result<Infallible, RootError> {
    let image = File::open(IMAGE).map_err(RootError::NoImage)?;
    let device = loopdev::attach(&image, true).map_err(RootError::Loop)?;
    let _ = mounts::make_folder(NEW_ROOT, 0o755);
    mount(device.path.as_str(), NEW_ROOT, "erofs", MountFlags::RDONLY | MountFlags::NODEV, c"")
        .map_err(|error| RootError::Mount(device.path.clone(), error.into()))?;
    drop((image, device));
    timeline::mark("root-mounted");
    for target in ["/proc", "/sys", "/dev", "/run"] {
        mount_move(target, format!("{NEW_ROOT}{target}"))
            .map_err(|error| RootError::Move(target, error.into()))?;
    }
    empty_initramfs();
    enter().map_err(RootError::Enter)?;
    let error = exec_stage2();
    Err(RootError::Exec(error))
}

fn enter() -> io::Result<()> {
    rustix::process::chdir(NEW_ROOT)?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")?;
    Ok(())
}

fn exec_stage2() -> io::Error {
    crate::execute(&[c"init", c"stage2"])
}

/// Gives the memory of the initramfs back. Only what is on its own device: mounts below it stay.
fn empty_initramfs() {
    let Ok(root) = fs::metadata("/") else { return };
    remove_below(Path::new("/"), root.dev(), 0);
}

fn remove_below(folder: &Path, device: u64, depth: usize) {
    if depth > DEPTH_MAX {
        return;
    }
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.dev() != device {
            continue;
        }
        if metadata.is_dir() {
            remove_below(&path, device, depth.saturating_add(1));
            let _ = fs::remove_dir(&path);
        } else {
            let _ = fs::remove_file(&path);
        }
    }
}
