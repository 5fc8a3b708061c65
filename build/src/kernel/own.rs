//! Our own kernel: Debian's source, the committed fragment, one build, cached by the hash of both.
//!
//! The cache folder `kernel/` holds the unpacked source, the object files (so that a changed fragment rebuilds only
//! what it touches) and one folder per finished kernel. Nothing is installed into the system but the compilers.

use super::Kernel;
use super::config::{Config, FRAGMENT};
use crate::paths::Paths;
use crate::progress::Step;
use crate::{debian, process};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Debian's kernel source: 6.1 is the long-term series of the release the stock kernel comes from.
const SOURCE_PACKAGE: &str = "linux-source-6.1";

/// Counts up when the way of building changes, so that kernels built the old way are not taken for new ones.
const RECIPE: &str = "1";

/// Lines make prints for one build from nothing; measured, only for the first estimate of the time left.
const LINES_OF_FIRST_BUILD: usize = 3_300;

/// How often progress is printed where there is no terminal; unit: percent.
const MILESTONE_PERCENT: usize = 10;

/// The options a build takes from the command line.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// Compilers at a time.
    pub(crate) jobs: usize,
    /// Build even when the cache has it.
    pub(crate) force: bool,
}

/// A finished kernel in the cache.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Built {
    /// Version of Debian's source package.
    pub(crate) version: String,
    /// What `uname -r` says.
    pub(crate) release: String,
    /// Hash of source version, recipe and fragment.
    pub(crate) key: String,
    /// Compressed kernel for boot loaders, UEFI and `-kernel`.
    pub(crate) bzimage: PathBuf,
    /// Stripped ELF file with a PVH note.
    pub(crate) vmlinux: PathBuf,
    /// The whole configuration, as the kernel's scripts wrote it.
    pub(crate) config: PathBuf,
    /// Options that are built in.
    pub(crate) options: usize,
    /// How many lines the build printed; the next one estimates by it.
    pub(crate) lines: usize,
    /// How long the build took; unit: seconds.
    pub(crate) seconds: u64,
}

impl From<Built> for Kernel {
    fn from(built: Built) -> Self {
        Self {
            release: built.release,
            image: built.bzimage,
            elf: Some(built.vmlinux),
            modules: None,
            version: format!("{SOURCE_PACKAGE} {}, own configuration", built.version),
        }
    }
}

/// The newest kernel in the cache that the present fragment gives; asks neither apt nor the network.
pub(crate) fn find_cached(paths: &Paths) -> Result<Option<Built>> {
    let found = cached(paths)?.into_iter().filter(|built| built.key == key(&built.version));
    Ok(found.max_by(|one, other| version_order(&one.version).cmp(&version_order(&other.version))))
}

/// Brings the newest source into the cache and builds it, unless that was done before.
pub(crate) fn obtain(options: Options, paths: &Paths) -> Result<Built> {
    let step = Step::start("kernel source");
    let package = debian::unpack(SOURCE_PACKAGE, paths, &step)?;
    let key = key(&package.version);
    let before = cached(paths)?;
    if let Some(built) = before.iter().find(|built| built.key == key && !options.force) {
        step.done(&format!("{} is built already", package.version));
        return Ok(built.clone());
    }
    let home = home(paths);
    fs::create_dir_all(&home).with_context(|| format!("making {}", home.display()))?;
    let lock = fs::File::create(home.join("lock")).context("opening the lock of kernel builds")?;
    step.message("waiting for another build to end");
    lock.lock().context("locking kernel builds")?;
    let tree = Tree { source: source(&package, &home, &step)?, objects: home.join("objects") };
    step.done(&package.version);

    let step = Step::start("kernel configuration");
    let options_built_in = tree.configure(&step)?;
    step.done(&format!(
        "{options_built_in} options built in, all {} of the fragment as asked",
        fragment()?.named()
    ));

    let began = Instant::now();
    let step = Step::start("compiling the kernel");
    let expected = before.iter().map(|built| built.lines).max().unwrap_or(LINES_OF_FIRST_BUILD);
    let lines = tree.compile(options.jobs, expected, &package.root, &step)?;
    step.done("");
    let built = Built {
        release: tree.release()?,
        bzimage: "bzImage".into(),
        vmlinux: "vmlinux".into(),
        config: "config".into(),
        version: package.version,
        // Interrupted and partial builds print less; the estimate is for a whole one.
        lines: lines.max(expected),
        seconds: began.elapsed().as_secs(),
        key,
        options: options_built_in,
    };
    tree.keep(&home, built)
}

/// Hash of all that decides what comes out; the beginning of it names the cache's folder.
fn key(version: &str) -> String {
    let mut hash = Sha256::new();
    for part in [RECIPE, version, FRAGMENT] {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn home(paths: &Paths) -> PathBuf {
    paths.cache.join("kernel")
}

/// Every finished kernel; a folder that cannot be read is not one.
fn cached(paths: &Paths) -> Result<Vec<Built>> {
    let Ok(entries) = fs::read_dir(home(paths)) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in entries {
        let folder = entry.context("reading the kernel cache")?.path();
        let Ok(text) = fs::read(folder.join("built.json")) else { continue };
        let Ok(built) = serde_json::from_slice::<Built>(&text) else { continue };
        let place = |name: &Path| folder.join(name);
        let built = Built {
            bzimage: place(&built.bzimage),
            vmlinux: place(&built.vmlinux),
            config: place(&built.config),
            ..built
        };
        if [&built.bzimage, &built.vmlinux, &built.config].into_iter().all(|file| file.is_file()) {
            found.push(built);
        }
    }
    Ok(found)
}

/// Numbers in a Debian version, in order: enough to tell 6.1.99 from 6.1.192 and -2 from -10.
fn version_order(version: &str) -> Vec<u64> {
    version.split(|letter: char| !letter.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

fn fragment() -> Result<Config> {
    Config::fragment(FRAGMENT).context("reading build/fragment.config")
}

/// Unpacks the source once per version and drops the trees and objects of older ones.
fn source(package: &debian::Unpacked, home: &Path, step: &Step) -> Result<PathBuf> {
    let name = format!("source-{}", package.version.replace([':', '/'], "%"));
    let source = home.join(&name);
    if source.is_dir() {
        return Ok(source);
    }
    for entry in fs::read_dir(home)? {
        let entry = entry?;
        let old = entry.file_name();
        if old.to_string_lossy().starts_with("source-") || old == "objects" {
            fs::remove_dir_all(entry.path()).context("removing an older source")?;
        }
    }
    step.message("unpacking the source");
    let archive = package.root.join(format!("usr/src/{SOURCE_PACKAGE}.tar.xz"));
    let aside = tempfile::Builder::new().prefix(".source-").tempdir_in(home)?;
    let mut unpack = process::command("tar");
    unpack.arg("-xJf").arg(&archive).arg("-C").arg(aside.path()).arg("--strip-components=1");
    process::run(&mut unpack, step).context("unpacking the kernel's source")?;
    fs::rename(aside.keep(), &source).context("moving the source into place")?;
    Ok(source)
}

/// A source tree and the folder its objects go to.
struct Tree {
    source: PathBuf,
    objects: PathBuf,
}

impl Tree {
    fn make(&self, arguments: &[&str]) -> Command {
        let mut make = process::command("make");
        make.arg("-C").arg(&self.source).arg(format!("O={}", self.objects.display()));
        make.args(["ARCH=x86_64", "LC_ALL=C"]).args(arguments);
        // Flags meant for an outer make or for other programs would end up in the kernel.
        for inherited in ["MAKEFLAGS", "MAKEOVERRIDES", "CFLAGS", "LDFLAGS", "CROSS_COMPILE", "KCFLAGS"] {
            make.env_remove(inherited);
        }
        make
    }

    /// `tinyconfig`, the fragment merged by the kernel's own script, then every option compared with what was asked.
    fn configure(&self, step: &Step) -> Result<usize> {
        fs::create_dir_all(&self.objects).context("making the folder of object files")?;
        let (fragment_file, config) = (self.objects.join("berth.config"), self.objects.join(".config"));
        fs::write(&fragment_file, FRAGMENT).context("writing the fragment")?;
        process::run(&mut self.make(&["tinyconfig"]), step)?;
        let mut merge = Command::new(self.source.join("scripts/kconfig/merge_config.sh"));
        merge
            .current_dir(&self.source)
            .arg("-m")
            .arg("-O")
            .arg(&self.objects)
            .arg(&config)
            .arg(&fragment_file);
        process::run(&mut merge, step).context("merging the fragment")?;
        process::run(&mut self.make(&["olddefconfig"]), step)?;
        let result = Config::written(&fs::read_to_string(&config).context("reading the configuration")?);
        let deviations = fragment()?.deviations(&result);
        if !deviations.is_empty() {
            let list: Vec<String> = deviations.iter().map(ToString::to_string).collect();
            bail!("the merge did not keep what build/fragment.config asks for:\n  {}", list.join("\n  "));
        }
        Ok(result.built_in())
    }

    /// Compiles, and shows percent and time left by counting make's lines. Gives their number.
    fn compile(&self, jobs: usize, expected: usize, package: &Path, step: &Step) -> Result<usize> {
        let began = Instant::now();
        let (mut lines, mut shown) = (0, 0);
        let mut make = self.make(&[&format!("-j{}", jobs.max(1)), "bzImage", "vmlinux"]);
        // Who built it where and when must not be in it; the date is the source's.
        let date = archive_date(package)?;
        make.env("KBUILD_BUILD_TIMESTAMP", date.trim()).env("KBUILD_BUILD_VERSION", "1");
        make.env("KBUILD_BUILD_USER", "berth").env("KBUILD_BUILD_HOST", "berth");
        let output = process::watch(&mut make, |line| {
            lines += 1;
            let percent = (lines * 100 / expected.max(1)).min(99);
            let left = estimate(began.elapsed().as_secs(), lines, expected);
            let file = line.split_whitespace().next_back().unwrap_or_default();
            if percent / MILESTONE_PERCENT > shown {
                shown = percent / MILESTONE_PERCENT;
                step.milestone(&format!("{percent} %, {left}"));
            }
            step.message(&format!("{percent} %, {left}, {file}"));
        });
        output.context("compiling the kernel")?;
        Ok(lines)
    }

    fn release(&self) -> Result<String> {
        let file = self.objects.join("include/config/kernel.release");
        Ok(fs::read_to_string(file).context("reading the kernel's release")?.trim().to_owned())
    }

    /// Copies the results aside and moves them to their final name in one step.
    fn keep(&self, home: &Path, built: Built) -> Result<Built> {
        let aside = tempfile::Builder::new().prefix(".built-").tempdir_in(home)?;
        let copy = |from: &str, to: &Path| {
            fs::copy(self.objects.join(from), aside.path().join(to))
                .with_context(|| format!("keeping {from}"))
        };
        copy("arch/x86/boot/bzImage", &built.bzimage)?;
        copy(".config", &built.config)?;
        // Names for the addresses of an oops.
        copy("System.map", Path::new("System.map"))?;
        let mut strip = process::command("strip");
        strip.arg("-o").arg(aside.path().join(&built.vmlinux)).arg(self.objects.join("vmlinux"));
        let stripped = strip.status().context("starting strip")?;
        ensure!(stripped.success(), "strip failed with {stripped}");
        fs::write(aside.path().join("built.json"), serde_json::to_vec_pretty(&built)?)?;
        let folder = home.join(built.key.chars().take(16).collect::<String>());
        if folder.exists() {
            fs::remove_dir_all(&folder).context("replacing the kernel in the cache")?;
        }
        fs::rename(aside.keep(), &folder).context("moving the kernel into the cache")?;
        Ok(Built {
            bzimage: folder.join(&built.bzimage),
            vmlinux: folder.join(&built.vmlinux),
            config: folder.join(&built.config),
            ..built
        })
    }
}

/// When Debian packed the source, as a date the kernel's scripts understand.
fn archive_date(package: &Path) -> Result<String> {
    let archive = package.join(format!("usr/src/{SOURCE_PACKAGE}.tar.xz"));
    let reference = format!("--reference={}", archive.display());
    process::ask("date", ["--utc", &reference, "+%a %b %e %H:%M:%S UTC %Y"])
}

/// The time left if the rest goes as fast as what is done.
fn estimate(elapsed_s: u64, done: usize, expected: usize) -> String {
    let (done, left) = (done as u64, expected.saturating_sub(done) as u64);
    match elapsed_s * left / done.max(1) {
        0..60 => "less than a minute left".to_owned(),
        60..120 => "1 minute left".to_owned(),
        seconds => format!("{} minutes left", seconds / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::{Built, estimate, find_cached, home, key, version_order};
    use crate::paths::Paths;
    use std::fs;
    use std::path::Path;

    fn paths(cache: &Path) -> Paths {
        let elsewhere = cache.join("elsewhere");
        Paths {
            checkout: elsewhere.clone(),
            output: elsewhere.clone(),
            binaries: elsewhere,
            cache: cache.to_owned(),
        }
    }

    fn put(cache: &Path, folder: &str, version: &str, key: &str) {
        let folder = home(&paths(cache)).join(folder);
        fs::create_dir_all(&folder).expect("folder");
        let built = Built {
            version: version.to_owned(),
            release: "6.1.0-berth".to_owned(),
            key: key.to_owned(),
            bzimage: "bzImage".into(),
            vmlinux: "vmlinux".into(),
            config: "config".into(),
            options: 1,
            lines: 1,
            seconds: 1,
        };
        for file in ["bzImage", "vmlinux", "config"] {
            fs::write(folder.join(file), file).expect("file");
        }
        fs::write(folder.join("built.json"), serde_json::to_vec(&built).expect("json")).expect("built.json");
    }

    #[test]
    fn the_newest_kernel_of_the_present_fragment_is_found() {
        let cache = tempfile::tempdir().expect("folder");
        assert!(find_cached(&paths(cache.path())).expect("empty cache").is_none());
        put(cache.path(), "a", "6.1.99-1", &key("6.1.99-1"));
        put(cache.path(), "b", "6.1.192-2", &key("6.1.192-2"));
        put(cache.path(), "c", "6.1.200-1", "the hash of another fragment");
        let found = find_cached(&paths(cache.path())).expect("cache").expect("a kernel");
        assert_eq!(found.version, "6.1.192-2");
        assert!(found.bzimage.is_file() && found.vmlinux.is_file(), "{found:?}");
        fs::remove_file(&found.vmlinux).expect("removing");
        let found = find_cached(&paths(cache.path())).expect("cache").expect("a kernel");
        assert_eq!(found.version, "6.1.99-1", "a kernel with a part missing is not taken");
    }

    #[test]
    fn the_key_changes_with_the_version() {
        assert_eq!(key("6.1.192-2"), key("6.1.192-2"));
        assert_ne!(key("6.1.192-2"), key("6.1.192-1"));
        assert_eq!(key("").len(), 64);
    }

    #[test]
    fn versions_are_ordered_by_number() {
        assert!(version_order("6.1.192-10") > version_order("6.1.192-2"));
        assert!(version_order("6.1.192-1") > version_order("6.1.99-3"));
    }

    #[test]
    fn the_time_left_follows_the_pace() {
        for (elapsed_s, done, text) in [
            (0, 0, "less than a minute left"),
            (60, 1_000, "2 minutes left"),
            (100, 1_500, "1 minute left"),
            (500, 2_900, "less than a minute left"),
            (500, 4_000, "less than a minute left"),
        ] {
            assert_eq!(estimate(elapsed_s, done, 3_000), text, "{elapsed_s} {done}");
        }
    }
}
