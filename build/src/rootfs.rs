//! Lays out the root image's files and the initramfs around it (docs/architecture.md, "One root image").

use crate::cpio::Archive;
use crate::kernel::{Kernel, stock};
use crate::modules::{self, Index};
use crate::paths::Paths;
use crate::progress::Step;
use crate::state;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

/// Where file systems are mounted or programs expect a folder.
const MOUNT_POINTS: &[&str] = &["proc", "sys", "dev", "run", "var", "tmp", "mnt"];

/// Binary's name after the build → its place in the root image.
const BINARIES: &[(&str, &str)] =
    &[("init", "sbin/init"), ("agent", "sbin/agent"), ("launcher", "sbin/launcher")];

/// Debian's bundle of certificate authorities on the building machine.
const CA_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// What depmod reads beside the modules themselves.
const DEPMOD_INPUTS: &[&str] = &["modules.builtin", "modules.builtin.modinfo", "modules.order"];

/// The text indexes init reads; depmod's binary twins only cost room.
const KEPT_INDEXES: &[&str] = &["modules.dep", "modules.alias", "modules.softdep", "modules.builtin"];

/// Fills `tree` with everything of the root image.
pub(crate) fn assemble(tree: &Path, paths: &Paths, kernel: &Kernel, step: &Step) -> Result<()> {
    if tree.exists() {
        fs::remove_dir_all(tree).with_context(|| format!("removing {}", tree.display()))?;
    }
    for point in MOUNT_POINTS {
        fs::create_dir_all(tree.join(point))?;
    }
    for (binary, place) in BINARIES {
        copy(&paths.binaries.join(binary), &tree.join(place), 0o755)?;
    }
    // A kernel with everything built in has nothing to load: no module folder, empty lists.
    let (mut early, mut late): (&[&str], &[&str]) = (&[], &[]);
    if let Some(folder) = &kernel.modules {
        (early, late) = (modules::EARLY, modules::LATE);
        let names = [modules::BEFORE_ROOT, early, late, modules::ON_DEMAND].concat();
        let files = Index::read(folder)?.closure(&names)?;
        module_tree(tree, folder, &kernel.release, &files, step)?;
    }
    write(&tree.join("etc/berth/modules"), &lines(early))?;
    write(&tree.join("etc/berth/modules.late"), &lines(late))?;
    write(&tree.join("etc/berth/os-release"), &os_release())?;
    symlink("berth/os-release", tree.join("etc/os-release"))?;
    symlink("/run/berth/resolv.conf", tree.join("etc/resolv.conf"))?;
    copy(Path::new(CA_BUNDLE), &tree.join("etc/ssl/ca-certificates.crt"), 0o644)?;
    let template = tree.join("usr/share/berth/state.ext4");
    make_parent(&template)?;
    state::make_template(&template, step)
}

/// Writes the initramfs: init, the modules needed before the root, and the root image as one file.
pub(crate) fn initramfs(
    out: &Path,
    aside: &Path,
    root_image: &Path,
    paths: &Paths,
    kernel: &Kernel,
    step: &Step,
) -> Result<u64> {
    let mut archive = Archive::default();
    // The kernel opens /dev/console for init's first three descriptors; Rust's runtime wants /dev/null.
    archive.device("dev/console", 0o600, 5, 1);
    archive.device("dev/null", 0o666, 1, 3);
    for folder in ["proc", "sys", "run", "root"] {
        archive.folder(folder);
    }
    let read = |path: &Path| fs::read(path).with_context(|| format!("reading {}", path.display()));
    archive.file("init", 0o755, read(&paths.binaries.join("init"))?);
    archive.file("root.erofs", 0o444, read(root_image)?);
    if aside.exists() {
        fs::remove_dir_all(aside)?;
    }
    if let Some(modules) = &kernel.modules {
        let files = Index::read(modules)?.closure(modules::BEFORE_ROOT)?;
        module_tree(aside, modules, &kernel.release, &files, step)?;
        let folder = format!("lib/modules/{}", kernel.release);
        for name in files.iter().map(String::as_str).chain(KEPT_INDEXES.iter().copied()) {
            let path = format!("{folder}/{name}");
            archive.file(&path, 0o444, read(&aside.join(&path))?);
        }
        fs::remove_dir_all(aside)?;
    }
    let temporary = out.with_extension("new");
    let mut file = fs::File::create(&temporary).with_context(|| format!("making {}", temporary.display()))?;
    let mut bytes = Vec::new();
    archive.write(&mut bytes)?;
    file.write_all(&bytes)?;
    fs::rename(&temporary, out)?;
    Ok(bytes.len() as u64)
}

/// Copies modules and lets depmod index just those.
fn module_tree(
    tree: &Path,
    modules: &Path,
    release: &str,
    files: &BTreeSet<String>,
    step: &Step,
) -> Result<()> {
    let folder = tree.join("lib/modules").join(release);
    for name in files.iter().map(String::as_str).chain(DEPMOD_INPUTS.iter().copied()) {
        copy(&modules.join(name), &folder.join(name), 0o444)?;
    }
    stock::index(tree, release, step)?;
    for entry in fs::read_dir(&folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type()?.is_file() && !KEPT_INDEXES.iter().any(|kept| name == *kept) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn os_release() -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!("ID=berth\nNAME=Berth\nPRETTY_NAME=\"Berth {version}\"\nVERSION_ID={version}\n")
}

fn lines(names: &[&str]) -> String {
    names.iter().flat_map(|name| [*name, "\n"]).collect()
}

fn write(path: &Path, text: &str) -> Result<()> {
    make_parent(path)?;
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

fn copy(from: &Path, to: &Path, mode: u32) -> Result<()> {
    make_parent(to)?;
    let context = || format!("copying {} to {}", from.display(), to.display());
    fs::copy(from, to).with_context(context)?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode)).with_context(context)
}

fn make_parent(path: &Path) -> Result<()> {
    let parent = path.parent().context("a file needs a folder")?;
    fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))
}
