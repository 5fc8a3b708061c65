//! Debian packages as material: downloaded and unpacked into the cache, never installed on the host.
//!
//! Installing would start daemons, replace `busybox` or put a kernel into the host's boot menu.

use crate::process;
use crate::progress::Step;
use crate::{inputs, paths::Paths};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// An unpacked package.
#[derive(Debug, Clone)]
pub(crate) struct Unpacked {
    /// Where its files are, laid out as below `/`.
    pub(crate) root: PathBuf,
    /// Name and version, for the build's report.
    pub(crate) version: String,
}

/// The package that a metapackage depends on, by the beginning of its name.
pub(crate) fn dependency(metapackage: &str, prefix: &str) -> Result<String> {
    let answer = process::ask("apt-cache", ["depends", "--important", metapackage])?;
    let names = answer.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let found = names.map(str::trim).find(|name| name.starts_with(prefix));
    Ok(found
        .with_context(|| format!("{metapackage} depends on no package that begins with {prefix}"))?
        .to_owned())
}

/// Does something that needs apt's lists; once more with fresh lists when it fails, since old lists name versions that
/// the archive has dropped.
pub(crate) fn with_fresh_lists<T>(step: &Step, work: impl Fn() -> Result<T>) -> Result<T> {
    work().or_else(|first| {
        step.message("refreshing apt's package lists");
        inputs::refresh_lists(step)
            .and_then(|()| work())
            .with_context(|| format!("a first try failed: {first:#}"))
    })
}

/// Downloads a package's newest version through apt (which checks its signature) and unpacks it once.
pub(crate) fn unpack(package: &str, paths: &Paths, step: &Step) -> Result<Unpacked> {
    with_fresh_lists(step, || unpack_listed(package, paths, step))
}

/// [`unpack`] by the lists as they are.
pub(crate) fn unpack_listed(package: &str, paths: &Paths, step: &Step) -> Result<Unpacked> {
    let version = version(package)?;
    let name = format!("{package}_{}", version.replace([':', '/'], "%"));
    let root = paths.cache.join("debian").join(&name);
    let unpacked = Unpacked { root: root.clone(), version };
    if root.is_dir() {
        return Ok(unpacked);
    }
    let parent = paths.cache.join("debian");
    fs::create_dir_all(&parent).with_context(|| format!("making {}", parent.display()))?;
    let aside = tempfile::Builder::new().prefix(".unpack-").tempdir_in(&parent)?;
    step.message(&format!("downloading {package}"));
    // Root's apt would drop to a user that cannot write here; the folder is ours alone anyway.
    let mut download = process::command("apt-get");
    download.args(["-q", "-o", "APT::Sandbox::User=root", "download", package]).current_dir(aside.path());
    process::run(&mut download, step)?;
    let file = downloaded(aside.path())?;
    let tree = aside.path().join("tree");
    process::run(process::command("dpkg-deb").arg("-x").arg(&file).arg(&tree), step)?;
    match fs::rename(&tree, &root) {
        // Another build made it meanwhile: the same package, so it is as good as ours.
        Err(_) if root.is_dir() => Ok(unpacked),
        Err(error) => Err(error).with_context(|| format!("moving {package} into the cache")),
        Ok(()) => Ok(unpacked),
    }
}

fn version(package: &str) -> Result<String> {
    let answer = process::ask("apt-cache", ["show", "--no-all-versions", package])?;
    let version = answer.lines().find_map(|line| line.strip_prefix("Version: "));
    Ok(version.with_context(|| format!("apt knows no version of {package}"))?.trim().to_owned())
}

fn downloaded(folder: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            return Ok(path);
        }
    }
    bail!("apt-get download left no package behind")
}
