//! The kernel that boots the image: our own from Debian's source, Debian's stock one, or a file the caller names.
//!
//! [`config`] reads the committed fragment and checks what became of it, [`own`] builds and caches our kernel,
//! [`stock`] brings in Debian's cloud kernel with its modules, [`file`] asks any kernel for its name.

pub(crate) mod config;
mod file;
pub(crate) mod own;
pub(crate) mod stock;

use crate::paths::Paths;
use crate::progress::Step;
use anyhow::{Context, Result};
use std::convert::Infallible;
use std::path::PathBuf;
use std::str::FromStr;

/// A bootable kernel on this machine's disk.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// What `uname -r` will say.
    pub(crate) release: String,
    /// The compressed kernel that boot loaders and QEMU's `-kernel` take.
    pub(crate) image: PathBuf,
    /// The same kernel as an ELF file with a PVH note: QEMU starts it without unpacking anything.
    pub(crate) elf: Option<PathBuf>,
    /// `lib/modules/<release>` with `modules.dep` made; none when everything is built in.
    pub(crate) modules: Option<PathBuf>,
    /// Package version, for the report.
    pub(crate) version: String,
}

/// Which kernel the caller wants: `own`, `stock` or the path of one without modules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Built by `cargo berth kernel`.
    Own,
    /// Debian's cloud kernel.
    Stock,
    /// A bzImage or PVH ELF file with everything built in.
    File(PathBuf),
}

impl FromStr for Choice {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "own" => Self::Own,
            "stock" => Self::Stock,
            path => Self::File(PathBuf::from(path)),
        })
    }
}

/// Finds or fetches the kernel asked for; without a wish our own when it was built, Debian's otherwise.
pub(crate) fn obtain(choice: Option<&Choice>, paths: &Paths, step: &Step) -> Result<Kernel> {
    match choice {
        None => match own::find_cached(paths)? {
            Some(built) => Ok(built.into()),
            None => stock::obtain(paths, step),
        },
        Some(Choice::Own) => {
            let built = own::find_cached(paths)?;
            built.map(Kernel::from).context("our own kernel is not built yet; run: cargo berth kernel")
        }
        Some(Choice::Stock) => stock::obtain(paths, step),
        Some(Choice::File(path)) => {
            let release = file::release(path)?;
            Ok(Kernel {
                release,
                image: path.clone(),
                elf: None,
                modules: None,
                version: path.display().to_string(),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Choice;
    use std::path::PathBuf;

    #[test]
    fn a_choice_is_a_word_or_a_path() {
        let file = Choice::File(PathBuf::from("./own"));
        for (text, choice) in [("own", Choice::Own), ("stock", Choice::Stock), ("./own", file)] {
            assert_eq!(text.parse(), Ok(choice));
        }
    }
}
