//! Makes a Debian disk image with a container engine, loads the demo container once, and counts the guest
//! instructions of later boots until the container answers.
//!
//! The same QEMU flags, the same container and the same time stamps as with `cargo berth bench boot`. Images are kept
//! in the cache, named by the hash of all that goes into them.

use super::stack::{self, Stack};
use crate::paths::Paths;
use crate::progress::{Step, size};
use crate::table::Table;
use crate::{demo, inputs, process};
use anyhow::{Context, Result, ensure};
use qemu_test::artifacts::Artifacts;
use qemu_test::disk::Disk;
use qemu_test::oci::{Image, digest};
use qemu_test::{BootImage, Machine};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The release whose kernel Berth's own is made from.
const SUITE: &str = "bookworm";

/// Counts up when images are made in another way.
const RECIPE: &str = "1";

/// Room for the engine, its storage and a boot's logs; unit: bytes. The file is sparse.
const DISK_BYTES: u64 = 4 << 30;

/// Both engines are at ease in it; unit: MiB.
const MEMORY_MIB: u32 = 2048;

/// The first boot unpacks and starts everything once, translated; a counted one runs several times slower still.
const PREPARE_DEADLINE: Duration = Duration::from_secs(900);
const COUNT_DEADLINE: Duration = Duration::from_secs(1800);

/// The stock disk by its first name; rw saves a remount. The engines need no more.
const COMMAND_LINE: &str = "root=/dev/vda rw";

/// A prepared disk and the kernel that boots it.
#[derive(Debug, Clone)]
struct Debian {
    image: BootImage,
    disk: PathBuf,
}

/// What one boot took.
#[derive(Debug, Clone, Copy)]
struct Figures {
    /// From the kernel's start to the initramfs; unit: 10⁹ instructions.
    to_initramfs: f64,
    /// From the kernel's start to systemd on the disk; unit: as `to_answer`.
    to_systemd: f64,
    /// From the kernel's start to the answer; unit: 10⁹ instructions or idle nanoseconds.
    to_answer: f64,
    /// How much of that the processor idled; unit: seconds of guest time.
    idle_s: f64,
}

/// The table of one stack, and the whole way to the answer in 10⁹ instructions.
pub(crate) fn table(stack: Stack, paths: &Paths) -> Result<(Table, f64)> {
    inputs::ensure(&[inputs::BOOT, inputs::DEBIAN])?;
    let disk = obtain(stack, paths)?;
    let figures = measure(stack, &disk, paths)?;
    let name = |phase: &str| format!("Debian with {}: {phase}", stack.name());
    let mut table = Table::default();
    table.add(&name("kernel to initramfs"), figures.to_initramfs, "G");
    table.add(&name("kernel to systemd"), figures.to_systemd, "G");
    let busy = figures.to_answer - figures.idle_s;
    table.add(&name("kernel's start to container answering"), busy, "G");
    table.add(&name("not counted: the processor idle"), figures.idle_s, "s");
    Ok((table, busy))
}

/// Makes the stack's disk image, or takes it from the cache.
fn obtain(stack: Stack, paths: &Paths) -> Result<Debian> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "making a Debian disk image takes root: its files belong to many users"
    );
    let step = Step::start(format!("Debian with {}", stack.name()));
    let demo = demo::image(paths, &step)?;
    let home = paths.cache.join("bench");
    fs::create_dir_all(&home).with_context(|| format!("making {}", home.display()))?;
    let folder = home.join(format!("{}-{}", stack.name(), key(stack, &demo)));
    let debian = Debian {
        image: BootImage { kernel: folder.join("vmlinuz"), initramfs: folder.join("initrd") },
        disk: folder.join("disk"),
    };
    if folder.is_dir() {
        step.done("from the cache");
        return Ok(debian);
    }
    let aside = tempfile::Builder::new().prefix(".debian-").tempdir_in(&home)?;
    make_disk(stack, &demo, aside.path(), &step)?;
    step.message("loading the container");
    let made = Debian {
        image: BootImage { kernel: aside.path().join("vmlinuz"), initramfs: aside.path().join("initrd") },
        disk: aside.path().join("disk"),
    };
    prepare(stack, &made, paths)?;
    fs::rename(aside.keep(), &folder).context("moving the image into the cache")?;
    step.done(&size(allocated(&debian.disk)?));
    Ok(debian)
}

/// The beginning of the hash of all that decides what the disk holds.
fn key(stack: Stack, demo: &Image) -> String {
    let mut parts = vec![RECIPE, SUITE, &demo.manifest.digest];
    parts.extend(stack.packages());
    let files = stack.files();
    parts.extend(files.iter().flat_map(|file| [file.path, &file.text]));
    let digest = digest(parts.join("\0").as_bytes());
    digest.trim_start_matches("sha256:").chars().take(16).collect()
}

/// `disk`, `vmlinuz` and `initrd` in `folder`.
fn make_disk(stack: Stack, demo: &Image, folder: &Path, step: &Step) -> Result<()> {
    let tree = folder.join("tree");
    let mut bootstrap = process::command("mmdebstrap");
    bootstrap.args(["--mode=root", "--variant=minbase", "--format=directory"]);
    bootstrap.arg(format!("--include={}", stack.packages().join(","))).arg(SUITE).arg(&tree);
    process::run(&mut bootstrap, step).context("installing Debian")?;
    for file in stack.files() {
        let path = tree.join(file.path);
        let parent = path.parent().context("a file needs a folder")?;
        fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        fs::write(&path, &file.text).with_context(|| format!("writing {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(file.mode))?;
    }
    let wants = tree.join("etc/systemd/system/multi-user.target.wants");
    fs::create_dir_all(&wants)?;
    for unit in stack.wanted() {
        let ours = Path::new("/etc/systemd/system").join(unit);
        let has_ours = tree.join(ours.strip_prefix("/")?).is_file();
        let target = if has_ours { ours } else { Path::new("/lib/systemd/system").join(unit) };
        symlink(target, wants.join(unit)).with_context(|| format!("enabling {unit}"))?;
    }
    fs::write(tree.join(stack::DEMO_ARCHIVE), archive(demo)?).context("writing the demo image")?;
    for (link, file) in [("vmlinuz", "vmlinuz"), ("initrd.img", "initrd")] {
        let source = fs::canonicalize(tree.join(link)).with_context(|| format!("Debian has no /{link}"))?;
        fs::copy(source, folder.join(file)).with_context(|| format!("copying {file}"))?;
    }
    let disk = folder.join("disk");
    fs::File::create_new(&disk)?.set_len(DISK_BYTES)?;
    step.message("writing the disk");
    let mut format = process::command("mke2fs");
    format.args(["-q", "-t", "ext4", "-d"]).arg(&tree).arg(&disk);
    process::run(&mut format, step).context("writing the disk")?;
    fs::remove_dir_all(&tree).context("removing Debian's tree")
}

/// The image as `docker save` writes it; both engines load that.
fn archive(image: &Image) -> Result<Vec<u8>> {
    let bare = |digest: &str| digest.trim_start_matches("sha256:").to_owned();
    let config = format!("{}.json", bare(&image.config.digest));
    let layers: Vec<String> =
        image.layers.iter().map(|layer| format!("{}.tar.gz", bare(&layer.digest))).collect();
    let index = serde_json::json!([{ "Config": config, "RepoTags": [stack::DEMO_NAME], "Layers": layers }]);
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |path: &str, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, content)
    };
    add("manifest.json", &serde_json::to_vec(&index)?)?;
    add(&config, &image.config.bytes)?;
    for (path, layer) in layers.iter().zip(&image.layers) {
        add(path, &layer.bytes)?;
    }
    Ok(tar.into_inner()?)
}

fn machine(name: &str) -> Machine {
    Machine::new(name).memory_mib(MEMORY_MIB).command_line(COMMAND_LINE)
}

/// The first boot: the engine takes the image, then the machine goes off.
fn prepare(stack: Stack, debian: &Debian, paths: &Paths) -> Result<()> {
    let name = format!("bench-{}-prepare", stack.name());
    let artifacts = Artifacts::create(&paths.output, &name)?;
    let disk = Disk::create_or_open(&debian.disk, DISK_BYTES)?;
    let machine = machine(&name).command_line(stack::PREPARE_WORD).disk(disk);
    let mut guest = machine.boot_in(&debian.image, artifacts)?;
    guest.wait_for_line(stack::PREPARED, PREPARE_DEADLINE).context("loading the demo container")?;
    guest.wait_off(PREPARE_DEADLINE)?;
    guest.passed();
    Ok(())
}

/// Boots a copy of the disk with instructions counted, until the container answers.
fn measure(stack: Stack, debian: &Debian, paths: &Paths) -> Result<Figures> {
    let step = Step::start(format!("counting instructions of Debian with {}", stack.name()));
    let name = format!("bench-{}", stack.name());
    let artifacts = Artifacts::create(&paths.output, &name)?.kept();
    let aside = tempfile::Builder::new().prefix("berth-bench-").tempdir_in(&paths.output)?;
    let copy = aside.path().join("disk");
    let mut duplicate = process::command("cp");
    duplicate.args(["--sparse=always", "--reflink=auto"]).arg(&debian.disk).arg(&copy);
    process::run(&mut duplicate, &step)?;
    let disk = Disk::create_or_open(&copy, DISK_BYTES)?;
    let guest = machine(&name).disk(disk).count_instructions().boot_in(&debian.image, artifacts)?;
    let answer = guest.wait_for_line(stack::ANSWERED, COUNT_DEADLINE)?;
    let started = guest.wait_for_line(stack::STARTED, COUNT_DEADLINE)?;
    let figures = Figures {
        to_initramfs: number_after("initramfs", &started.text)?,
        to_systemd: number_after("systemd", &started.text)?,
        to_answer: answer.kernel_time().context("the answer has no time stamp")?.as_secs_f64(),
        idle_s: number_after("idle", &answer.text)?,
    };
    step.done(&format!("{:.2} G", figures.to_answer));
    Ok(figures)
}

/// The number behind a word of a line.
fn number_after(word: &str, line: &str) -> Result<f64> {
    let mut words = line.split_whitespace();
    let found = words.by_ref().any(|one| one == word).then(|| words.next()).flatten();
    found.and_then(|text| text.parse().ok()).with_context(|| format!("no number behind {word}: {line}"))
}

/// What a sparse file takes on the disk; unit: bytes.
fn allocated(file: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(fs::metadata(file)?.blocks() * 512)
}

#[cfg(test)]
mod tests {
    use super::number_after;

    #[test]
    fn figures_are_read_by_their_name() {
        let line = "[   12.345678] bench: started: initramfs 1.234567 systemd 3.5";
        assert_eq!(number_after("initramfs", line).ok(), Some(1.234_567));
        assert_eq!(number_after("systemd", line).ok(), Some(3.5));
        for missing in ["idle", "bench:", "3.5"] {
            assert!(number_after(missing, line).is_err(), "{missing}");
        }
    }
}
