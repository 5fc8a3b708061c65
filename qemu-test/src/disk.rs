//! State disks: raw, sparse files.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A raw disk image.
#[derive(Debug, Clone)]
pub struct Disk {
    /// The file.
    pub path: PathBuf,
}

impl Disk {
    /// Makes a blank disk, or takes the file that is there with what it holds.
    pub fn create_or_open(path: &Path, bytes: u64) -> Result<Self> {
        if !path.exists() {
            let file = File::create_new(path).with_context(|| format!("making {}", path.display()))?;
            file.set_len(bytes).with_context(|| format!("sizing {}", path.display()))?;
        }
        Ok(Self { path: path.to_owned() })
    }

    /// Checks the file system without changing it; clean means nothing to repair and no journal to replay.
    pub fn check_clean(&self) -> Result<()> {
        let output =
            Command::new("/sbin/e2fsck").arg("-fn").arg(&self.path).output().context("starting e2fsck")?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() || text.contains("recovering journal") {
            bail!("e2fsck {}: {text}", output.status);
        }
        Ok(())
    }
}
