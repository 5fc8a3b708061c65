//! Where things are: the checkout, its output folder and the cache of downloads outside the checkout.

use anyhow::{Context, Result, bail};
use std::env;
use std::path::{Path, PathBuf};

/// The folders every step works with.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    /// The workspace's root: the folder with `Cargo.lock`.
    pub(crate) checkout: PathBuf,
    /// What `cargo berth` makes: `target/berth`.
    pub(crate) output: PathBuf,
    /// Cargo's own output folder for this target's release binaries.
    pub(crate) binaries: PathBuf,
    /// Downloads that outlive `cargo clean`: `$XDG_CACHE_HOME/berth` or `~/.cache/berth`.
    pub(crate) cache: PathBuf,
}

impl Paths {
    /// Finds the checkout from cargo's environment or the current folder and makes the output folders.
    pub(crate) fn find() -> Result<Self> {
        let checkout = checkout()?;
        let target =
            env::var_os("CARGO_TARGET_DIR").map_or_else(|| checkout.join("target"), |dir| checkout.join(dir));
        let paths = Self {
            output: target.join("berth"),
            binaries: target.join("x86_64-unknown-linux-gnu/release"),
            cache: cache()?,
            checkout,
        };
        for folder in [&paths.output, &paths.cache] {
            std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        }
        Ok(paths)
    }
}

fn checkout() -> Result<PathBuf> {
    let start = match env::var_os("CARGO_MANIFEST_DIR") {
        Some(manifest) => PathBuf::from(manifest),
        None => env::current_dir()?,
    };
    let is_checkout =
        |folder: &&Path| folder.join("Cargo.lock").exists() && folder.join("build/Cargo.toml").exists();
    match start.ancestors().find(is_checkout) {
        Some(folder) => Ok(folder.to_owned()),
        None => bail!("{} is not inside a Berth checkout", start.display()),
    }
}

fn cache() -> Result<PathBuf> {
    if let Some(base) = env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        return Ok(PathBuf::from(base).join("berth"));
    }
    let home = env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?;
    Ok(PathBuf::from(home).join(".cache/berth"))
}
