//! Debian's stock cloud kernel: found through its metapackage, unpacked into the cache, its modules indexed.

use crate::paths::Paths;
use crate::progress::Step;
use crate::{debian, process};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};

/// Always depends on the newest cloud kernel.
const METAPACKAGE: &str = "linux-image-cloud-amd64";

/// A kernel and its modules on this machine's disk.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// What `uname -r` will say.
    pub(crate) release: String,
    /// The bootable kernel.
    pub(crate) image: PathBuf,
    /// `lib/modules/<release>` with `modules.dep` made.
    pub(crate) modules: PathBuf,
    /// Package version, for the report.
    pub(crate) version: String,
}

/// Brings the kernel into the cache if it is not there yet.
pub(crate) fn obtain(paths: &Paths, step: &Step) -> Result<Kernel> {
    let package = debian::dependency(METAPACKAGE, "linux-image-", step)?;
    let release =
        package.strip_prefix("linux-image-").context("a kernel package has an odd name")?.to_owned();
    let unpacked = debian::unpack(&package, paths, step)?;
    let image = unpacked.root.join(format!("boot/vmlinuz-{release}"));
    let modules = unpacked.root.join(format!("lib/modules/{release}"));
    ensure!(image.is_file(), "{package} holds no kernel at {}", image.display());
    if !modules.join("modules.dep").is_file() {
        index(&unpacked.root, &release, step)?;
    }
    Ok(Kernel { release, image, modules, version: unpacked.version })
}

/// Writes the module indexes (`modules.dep`, `modules.alias`, …) below `root/lib/modules/<release>`.
pub(crate) fn index(root: &Path, release: &str, step: &Step) -> Result<()> {
    process::run(process::command("depmod").arg("-b").arg(root).arg(release), step).map(drop)
}
