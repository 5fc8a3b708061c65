//! Installs the few Debian packages a build, a boot or a test needs, after saying which and why.

use crate::process;
use crate::progress::Step;
use anyhow::{Context, Result, bail};
use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::Command;

/// One thing the machine must have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Input {
    /// A program's name, or a file's absolute path.
    proof: &'static str,
    package: &'static str,
    why: &'static str,
}

const fn input(proof: &'static str, package: &'static str, why: &'static str) -> Input {
    Input { proof, package, why }
}

/// What building the image takes.
pub(crate) const IMAGE: &[Input] = &[
    input("dpkg-deb", "dpkg", "unpacks the kernel's package without installing it"),
    input("depmod", "kmod", "indexes the kernel's modules"),
    input("mke2fs", "e2fsprogs", "makes the template of the state file system"),
    input("mkfs.erofs", "erofs-utils", "makes the read-only root image"),
    input(
        "/etc/ssl/certs/ca-certificates.crt",
        "ca-certificates",
        "the root image's trusted certificate authorities",
    ),
];

/// What building our own kernel takes. The source itself is only unpacked into the cache.
pub(crate) const KERNEL: &[Input] = &[
    input("dpkg-deb", "dpkg", "unpacks the kernel's source package without installing it"),
    input("xz", "xz-utils", "unpacks the source archive"),
    input("gcc", "gcc", "compiles the kernel"),
    input("ld", "binutils", "links it and strips the ELF file"),
    input("make", "make", "runs the kernel's build"),
    input("flex", "flex", "makes the scanner of Kconfig"),
    input("bison", "bison", "makes the parser of Kconfig"),
    input("bc", "bc", "computes the kernel's time constants"),
    input("perl", "perl", "runs generators of the kernel's build"),
    input("zstd", "zstd", "compresses the kernel"),
    input(
        "/usr/include/libelf.h",
        "libelf-dev",
        "objtool, which writes the unwinder's tables, reads ELF files",
    ),
    input("/usr/include/openssl/ssl.h", "libssl-dev", "the build's certificate tool links it"),
    input("/usr/include/asm-generic/types.h", "linux-libc-dev", "headers of the build's own tools"),
];

/// What booting it takes.
pub(crate) const BOOT: &[Input] =
    &[input("qemu-system-x86_64", "qemu-system-x86", "the machine that boots the image")];

/// What testing takes beside that.
pub(crate) const TEST: &[Input] = &[
    input("e2fsck", "e2fsprogs", "checks state disks after a shutdown"),
    input("docker-compose", "docker-compose", "a client that is not ours runs a project of several services"),
];

/// What building the runtime specification's suite takes.
pub(crate) const CONFORMANCE: &[Input] =
    &[input("go", "golang-go", "compiles the suite, which is written in Go")];

/// What the disk images for comparison take.
pub(crate) const DEBIAN: &[Input] = &[
    input("mmdebstrap", "mmdebstrap", "installs Debian into a folder"),
    input("mke2fs", "e2fsprogs", "writes that folder to a disk image"),
];

impl Input {
    fn present(&self) -> bool {
        if self.proof.starts_with('/') {
            Path::new(self.proof).exists()
        } else {
            process::find(self.proof).is_some()
        }
    }
}

/// Installs what is missing. Prints the list and fails when this user may not install.
pub(crate) fn ensure(lists: &[&[Input]]) -> Result<()> {
    let missing: Vec<Input> =
        lists.iter().flat_map(|list| list.iter()).filter(|input| !input.present()).copied().collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("These Debian packages are missing:");
    for input in &missing {
        eprintln!("  {:<18} {}", input.package, input.why);
    }
    let mut packages: Vec<&str> = missing.iter().map(|input| input.package).collect();
    packages.sort_unstable();
    packages.dedup();
    let Some(prefix) = root_prefix() else {
        bail!(
            "this user may not install them; run as root: apt-get install --no-install-recommends {}",
            packages.join(" ")
        );
    };
    let step = Step::start("installing packages");
    apt_get(&prefix, &step, &["update", "-q"]).context("refreshing the package lists")?;
    let mut install = vec!["install", "-y", "-q", "--no-install-recommends"];
    install.extend(&packages);
    apt_get(&prefix, &step, &install).context("installing packages")?;
    if let Some(absent) = missing.iter().find(|input| !input.present()) {
        bail!("{} is installed but {} is still not there", absent.package, absent.proof);
    }
    step.done(&packages.join(" "));
    Ok(())
}

/// Refreshes apt's lists; for a machine whose lists are empty.
pub(crate) fn refresh_lists(step: &Step) -> Result<()> {
    let prefix = root_prefix().context("apt's package lists are empty; run as root: apt-get update")?;
    apt_get(&prefix, step, &["update", "-q"])
}

/// How to become root: nothing for root, `sudo` (which asks once) for a user at a terminal, `sudo -n` elsewhere.
fn root_prefix() -> Option<Vec<String>> {
    if rustix::process::geteuid().is_root() {
        return Some(Vec::new());
    }
    let sudo = process::find("sudo")?.to_string_lossy().into_owned();
    if io::stdin().is_terminal() {
        // Sudo asks on the terminal itself, before any spinner runs; later calls use its ticket.
        eprintln!("Root is needed once to install them.");
        let allowed = Command::new(&sudo).arg("-v").status().is_ok_and(|status| status.success());
        return allowed.then(|| vec![sudo, "-n".to_owned()]);
    }
    let allowed = Command::new(&sudo).args(["-n", "true"]).status().is_ok_and(|status| status.success());
    allowed.then(|| vec![sudo, "-n".to_owned()])
}

fn apt_get(prefix: &[String], step: &Step, arguments: &[&str]) -> Result<()> {
    let mut words: Vec<&str> = prefix.iter().map(String::as_str).collect();
    words.extend(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
    words.extend(arguments);
    let (program, rest) = words.split_first().context("no command")?;
    process::run(process::command(program).args(rest), step).map(drop)
}
