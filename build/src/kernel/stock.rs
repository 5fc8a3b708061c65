//! Debian's stock cloud kernel: found through its metapackage, unpacked into the cache, its modules indexed.

use super::Kernel;
use crate::paths::Paths;
use crate::progress::Step;
use crate::{debian, process};
use anyhow::{Context, Result, ensure};
use std::path::Path;

/// Always depends on the newest cloud kernel.
const METAPACKAGE: &str = "linux-image-cloud-amd64";

/// Brings the kernel into the cache if it is not there yet.
pub(crate) fn obtain(paths: &Paths, step: &Step) -> Result<Kernel> {
    let (package, unpacked) = debian::with_fresh_lists(step, || {
        let package = debian::dependency(METAPACKAGE, "linux-image-")?;
        let unpacked = debian::unpack_listed(&package, paths, step)?;
        Ok((package, unpacked))
    })?;
    let release =
        package.strip_prefix("linux-image-").context("a kernel package has an odd name")?.to_owned();
    let image = unpacked.root.join(format!("boot/vmlinuz-{release}"));
    let modules = unpacked.root.join(format!("lib/modules/{release}"));
    ensure!(image.is_file(), "{package} holds no kernel at {}", image.display());
    if !modules.join("modules.dep").is_file() {
        index(&unpacked.root, &release, step)?;
    }
    Ok(Kernel { release, image, elf: None, modules: Some(modules), version: unpacked.version })
}

/// Writes the module indexes (`modules.dep`, `modules.alias`, …) below `root/lib/modules/<release>`.
pub(crate) fn index(root: &Path, release: &str, step: &Step) -> Result<()> {
    process::run(process::command("depmod").arg("-b").arg(root).arg(release), step).map(drop)
}
