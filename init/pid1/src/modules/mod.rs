//! The module loader: what modprobe and udev do elsewhere.
//!
//! The indexes are only ever read in stage 1 and in children, so that PID 1 does not carry them; loading may take
//! a device's whole probe, so it never happens in the event loop.

mod glob;
mod index;

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use index::{Index, module_name};

use crate::kmsg::{note, warn};

/// Longest list of modules; unit: bytes.
const LIST_MAX: usize = 64 * 1024;
/// How deep devices lie below `/sys/devices` at most.
const DEPTH_MAX: usize = 24;
/// Rounds of coldplug: a bus may reveal devices that reveal devices.
const ROUNDS_MAX: usize = 6;

/// Whether the image has modules for the running kernel. One with everything built in has none.
pub(crate) fn are_there() -> bool {
    folder().join("modules.dep").exists()
}

fn folder() -> PathBuf {
    Path::new("/lib/modules").join(rustix::system::uname().release().to_string_lossy().as_ref())
}

/// Loads modules of the running kernel.
pub(crate) struct Loader {
    folder: PathBuf,
    index: Index,
    /// Names of modules that were loaded or tried.
    done: HashSet<String>,
    /// How many modules were loaded.
    pub(crate) loaded: usize,
}

impl Loader {
    /// Reads the indexes below `/lib/modules/<release>`. Without them nothing can be loaded.
    pub(crate) fn open() -> Self {
        let folder = folder();
        let text = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        let index = Index::parse(&text("modules.dep"), &text("modules.alias"), &text("modules.softdep"));
        // The kernel would read and verify a whole file before it says that it has the module.
        let present = std::fs::read_to_string("/proc/modules").unwrap_or_default();
        let done = present.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
        Self { folder, index, done, loaded: 0 }
    }

    /// Loads a module or what serves an alias, with what it needs. Failures are logged.
    pub(crate) fn load(&mut self, name: &str) {
        let paths: Vec<String> = self.index.closure(name).into_iter().map(str::to_owned).collect();
        for path in paths {
            if !self.done.insert(module_name(&path)) {
                continue;
            }
            match insert(&self.folder.join(&path)) {
                Ok(()) => self.loaded = self.loaded.saturating_add(1),
                Err(error) => warn!("module {} does not load: {error}, continuing", module_name(&path)),
            }
        }
    }

    /// Loads the modules a file names, one a line; `#` starts a comment. No file is no modules.
    pub(crate) fn load_list(&mut self, path: &Path) {
        let Ok(text) = std::fs::read_to_string(path) else { return };
        let text = text.get(..LIST_MAX).unwrap_or(&text);
        for line in text.lines() {
            let name = line.split('#').next().unwrap_or_default().trim();
            if name.is_empty() {
                continue;
            }
            if self.index.resolve(name).is_empty() && !is_present(name) {
                note!("module {name} is not in the image, continuing");
            }
            self.load(name);
        }
    }

    /// Loads what the devices below `/sys/devices` ask for, until no new ones appear.
    pub(crate) fn coldplug(&mut self) {
        let mut seen = HashSet::new();
        for _ in 0..ROUNDS_MAX {
            let mut found = Vec::new();
            collect_aliases(Path::new("/sys/devices"), 0, &mut found);
            found.retain(|alias| seen.insert(alias.clone()));
            if found.is_empty() {
                return;
            }
            for alias in found {
                self.load(&alias);
            }
        }
    }
}

/// Whether a module is loaded or built in (it then has a folder when it has parameters or was loaded).
fn is_present(name: &str) -> bool {
    Path::new("/sys/module").join(module_name(name)).exists()
}

fn insert(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    match rustix::system::finit_module(&file, c"", 0) {
        // EEXIST: loaded in stage 1 or by the kernel itself meanwhile. ENODEV: a cpu feature or hypervisor that
        // is not here.
        Ok(()) | Err(rustix::io::Errno::EXIST | rustix::io::Errno::NODEV) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn collect_aliases(folder: &Path, depth: usize, found: &mut Vec<String>) {
    if depth > DEPTH_MAX {
        return;
    }
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        // file_type does not follow links, so the tree is walked once.
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            collect_aliases(&entry.path(), depth.saturating_add(1), found);
        } else if entry.file_name() == "modalias"
            && let Ok(text) = std::fs::read_to_string(entry.path())
            && !text.trim().is_empty()
        {
            found.push(text.trim().to_owned());
        }
    }
}
