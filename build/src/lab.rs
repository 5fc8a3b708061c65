//! A machine for measuring and trying single programs: Debian's stock kernel, busybox, given files, one script.
//!
//! The host's control groups may be of version 1 and its kernel anything; here both are what Berth runs on. The
//! files lie in a tmpfs, for `pivot_root` does not work in the initramfs itself.

use crate::cpio::Archive;
use crate::kernel::stock;
use crate::modules::Index;
use crate::paths::Paths;
use crate::process;
use crate::progress::Step;
use crate::{debian, demo};
use anyhow::{Context, Result, ensure};
use qemu_test::artifacts::Artifacts;
use qemu_test::{BootImage, Guest, Machine};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

/// Printed by the machine when the script has ended, with its exit code.
const ENDED: &str = "lab: script ended with";

/// First stage, in the initramfs: everything goes into a tmpfs, which becomes the root.
const FIRST: &str = "#!/lab/bin/busybox sh
/lab/bin/busybox mount -t tmpfs -o mode=755,size=90% root /new
/lab/bin/busybox cp -a /lab/. /new/
exec /lab/bin/busybox switch_root /new /init
";

/// Second stage: mounts, modules, the script; then the machine goes off. Kernel messages stay out of the output.
const SECOND: &str = "#!/bin/busybox sh
export PATH=/bin:/usr/bin:/usr/sbin HOME=/root
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /tmp /run /mnt /var
mount -t devpts -o ptmxmode=0666 devpts /dev/pts
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
dmesg -n 1
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
  echo +$controller > /sys/fs/cgroup/cgroup.subtree_control
done
for file in $(cat /modules); do insmod $file; done
sh /script
";

/// The files of a lab machine.
pub(crate) struct Lab {
    archive: Archive,
    modules: Vec<&'static str>,
}

impl Lab {
    /// Busybox and nothing else.
    pub(crate) fn new(paths: &Paths, step: &Step) -> Result<Self> {
        let mut lab = Self { archive: Archive::default(), modules: Vec::new() };
        lab.archive.device("dev/console", 0o600, 5, 1);
        for folder in ["new", "lab/proc", "lab/sys", "lab/dev", "lab/root", "lab/etc"] {
            lab.archive.folder(folder);
        }
        lab.archive.file("init", 0o755, FIRST.into());
        lab.archive.file("lab/init", 0o755, format!("{SECOND}echo {ENDED} $?\npoweroff -f\n").into());
        lab.file(&demo::busybox(paths, step)?, "bin/busybox")?;
        Ok(lab)
    }

    /// Copies a file of this machine, with its permissions.
    pub(crate) fn file(&mut self, from: &Path, to: &str) -> Result<()> {
        let context = || format!("reading {}", from.display());
        let content = fs::read(from).with_context(context)?;
        let mode = fs::metadata(from).with_context(context)?.permissions().mode() & 0o777;
        self.archive.file(&format!("lab/{to}"), mode, content);
        Ok(())
    }

    /// Writes a file.
    pub(crate) fn text(&mut self, to: &str, mode: u32, text: &str) {
        self.archive.file(&format!("lab/{to}"), mode, text.into());
    }

    /// Takes the shared libraries of Debian packages, without their side folders.
    pub(crate) fn libraries(&mut self, packages: &[&str], paths: &Paths, step: &Step) -> Result<()> {
        for package in packages {
            let root = debian::unpack(package, paths, step)?.root;
            for folder in ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"] {
                let Ok(entries) = fs::read_dir(root.join(folder)) else { continue };
                for entry in entries {
                    let path = entry?.path();
                    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    if name.contains(".so") && path.is_file() {
                        self.file(&path, &format!("lib/x86_64-linux-gnu/{name}"))?;
                    }
                }
            }
            let loader = root.join("lib64/ld-linux-x86-64.so.2");
            if loader.exists() || loader.is_symlink() {
                self.file(
                    &root.join("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"),
                    "lib64/ld-linux-x86-64.so.2",
                )?;
            }
        }
        Ok(())
    }

    /// Loads these modules of the kernel, in this order.
    pub(crate) fn modules(&mut self, names: &[&'static str]) {
        self.modules.extend(names);
    }

    /// Writes kernel and initramfs into `folder`.
    pub(crate) fn write(
        mut self,
        folder: &Path,
        script: &str,
        paths: &Paths,
        step: &Step,
    ) -> Result<BootImage> {
        let kernel = stock::obtain(paths, step)?;
        let from = kernel.modules.as_deref().context("Debian's kernel has modules")?;
        let index = Index::read(from)?;
        let mut list = String::new();
        for name in std::mem::take(&mut self.modules) {
            for file in index.in_order(name)? {
                let place = format!("/modules.d/{}", file.rsplit('/').next().unwrap_or(&file));
                if !list.lines().any(|line| line == place) {
                    self.file(&from.join(&file), place.trim_start_matches('/'))?;
                    list.push_str(&place);
                    list.push('\n');
                }
            }
        }
        self.text("modules", 0o444, &list);
        self.text("script", 0o755, script);
        let image = BootImage { kernel: kernel.image, initramfs: folder.join("lab.cpio") };
        let mut bytes = Vec::new();
        self.archive.write(&mut bytes)?;
        fs::write(&image.initramfs, bytes).context("writing the initramfs")?;
        Ok(image)
    }
}

/// Boots a lab machine, waits for the end of its script and gives the lines it printed.
pub(crate) fn run(
    name: &str,
    image: &BootImage,
    shape: impl FnOnce(Machine) -> Machine,
    paths: &Paths,
    within: Duration,
    mut on_line: impl FnMut(&str),
) -> Result<Vec<String>> {
    let artifacts = Artifacts::create(&paths.output, name)?.kept();
    let machine = shape(Machine::new(name).memory_mib(MEMORY_MIB).without_network());
    let guest = machine.boot_in(image, artifacts)?;
    let lines = follow(&guest, within, &mut on_line)?;
    let last = lines.last().map_or("", String::as_str);
    ensure!(last.ends_with(" 0"), "{last}; see {}", guest.artifacts().path("console.log").display());
    Ok(lines)
}

/// Room for a root in memory beside what runs; unit: MiB.
const MEMORY_MIB: u32 = 2048;

fn follow(guest: &Guest, within: Duration, on_line: &mut impl FnMut(&str)) -> Result<Vec<String>> {
    let deadline = std::time::Instant::now() + within;
    let mut lines = Vec::new();
    loop {
        let next = guest.console().next_line(lines.len(), deadline)?;
        on_line(&next.text);
        let ended = next.text.contains(ENDED);
        lines.push(next.text);
        if ended {
            return Ok(lines);
        }
    }
}

/// Builds release binaries of this workspace.
pub(crate) fn compile(arguments: &[&str], paths: &Paths, step: &Step) -> Result<()> {
    let mut command = process::cargo();
    command.current_dir(&paths.checkout).args(["build", "--release", "--locked"]).args(arguments);
    process::run(&mut command, step).context("building the programs to try").map(drop)
}
