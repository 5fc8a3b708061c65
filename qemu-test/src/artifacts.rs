//! One folder per case: console, machine file, certificates, disk. Removed when the case passed, kept when it failed.

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// A case's folder.
#[derive(Debug)]
pub struct Artifacts {
    folder: PathBuf,
    end: End,
}

/// What becomes of the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// No verdict, so it failed: kept, and its place printed.
    Failed,
    /// Removed.
    Passed,
    /// Kept in silence.
    Kept,
}

impl Artifacts {
    /// A fresh folder `<base>/<case>`; what an earlier run left there goes.
    pub fn create(base: &Path, case: &str) -> Result<Self> {
        let folder = base.join(case);
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
        }
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(Self { folder, end: End::Failed })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes a file into the folder.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.path(name);
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// The case passed: the folder may go.
    pub fn passed(&mut self) {
        self.end = End::Passed;
    }

    /// Keeps the folder whatever comes.
    #[must_use]
    pub fn kept(mut self) -> Self {
        self.end = End::Kept;
        self
    }
}

impl Drop for Artifacts {
    fn drop(&mut self) {
        match self.end {
            End::Failed => eprintln!("kept for a look: {}", self.folder.display()),
            // What is left over is removed by the next run of the case.
            End::Passed => drop(fs::remove_dir_all(&self.folder)),
            End::Kept => {}
        }
    }
}
