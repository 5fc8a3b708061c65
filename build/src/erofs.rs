//! Packs a folder into the read-only root image, the same bytes for the same content.

use crate::process;
use crate::progress::Step;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

/// Fixed: an identifier by content comes with the verity hash, not with this field.
const UUID: &str = "b3e7f5d0-6f3a-4d0e-9c57-be6700000001";

/// Largest compressed unit; unit: bytes. Larger packs better, smaller reads less for one page.
const CLUSTER_BYTES: u32 = 65536;

/// Writes the image of `tree`, all files root's and dated 0.
pub(crate) fn pack(tree: &Path, image: &Path, step: &Step) -> Result<u64> {
    if image.exists() {
        fs::remove_file(image).with_context(|| format!("removing {}", image.display()))?;
    }
    let mut mkfs = process::command("mkfs.erofs");
    mkfs.args(["-zlz4hc,9", "-T0", "--all-root", "-U", UUID]).arg(format!("-C{CLUSTER_BYTES}"));
    process::run(mkfs.arg(image).arg(tree), step)?;
    Ok(fs::metadata(image)?.len())
}
