//! `cargo berth image`: from a bare checkout to `target/berth/{vmlinuz,initramfs.cpio}`.

use crate::kernel::{self, Choice, Kernel};
use crate::paths::Paths;
use crate::progress::{Step, size};
use crate::{erofs, inputs, process, rootfs};
use anyhow::{Context, Result};
use serde::Serialize;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

/// Kernel and initramfs may together be downloaded for a boot over the network; unit: bytes.
pub(crate) const DOWNLOAD_BAR_BYTES: u64 = 45_000_000;

/// Packages that hold the image's binaries.
const PACKAGES: [&str; 3] = ["berth-init", "berth-agent", "berth-runtime"];

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Which kernel boots it [default: our own when it was built, Debian's otherwise]
    #[arg(long, value_name = "own|stock|PATH")]
    pub(crate) kernel: Option<Choice>,
}

/// What a build gave.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Image {
    /// Bootable kernel.
    pub(crate) kernel: PathBuf,
    /// The same kernel as a PVH ELF file, which starts without unpacking; Debian's stock kernel has none.
    pub(crate) kernel_elf: Option<PathBuf>,
    /// Initramfs with the root image inside.
    pub(crate) initramfs: PathBuf,
    /// What `uname -r` will say.
    pub(crate) kernel_release: String,
    /// Kernel package version.
    pub(crate) kernel_version: String,
    /// Unit: bytes.
    pub(crate) kernel_bytes: u64,
    /// Unit: bytes.
    pub(crate) initramfs_bytes: u64,
    /// Unit: bytes; it is inside the initramfs.
    pub(crate) root_bytes: u64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let paths = Paths::find()?;
    let image = build(&paths, arguments.kernel.as_ref(), &[])?;
    print_sizes(&image);
    Ok(ExitCode::SUCCESS)
}

/// Builds the image and, in the same cargo run, further binaries given as cargo arguments.
pub(crate) fn build(paths: &Paths, choice: Option<&Choice>, more_binaries: &[&str]) -> Result<Image> {
    inputs::ensure(&[inputs::IMAGE])?;
    compile(paths, more_binaries)?;
    let step = Step::start("kernel");
    let kernel = kernel::obtain(choice, paths, &step)?;
    step.done(&kernel.version);
    pack(paths, &kernel)
}

/// Release builds of everything that goes into the image.
fn compile(paths: &Paths, more: &[&str]) -> Result<()> {
    let step = Step::start("compiling init, agent and launcher");
    let mut command = process::cargo();
    command.current_dir(&paths.checkout).args(["build", "--release", "--locked"]);
    for package in PACKAGES {
        command.args(["-p", package]);
    }
    process::run(command.args(more), &step).context("building the image's binaries")?;
    step.done("");
    Ok(())
}

fn pack(paths: &Paths, kernel: &Kernel) -> Result<Image> {
    let (tree, root_image) = (paths.output.join("root"), paths.output.join("root.erofs"));
    let step = Step::start("root image");
    rootfs::assemble(&tree, paths, kernel, &step)?;
    let root_bytes = erofs::pack(&tree, &root_image, &step)?;
    step.done(&size(root_bytes));

    let step = Step::start("initramfs");
    let (vmlinuz, initramfs) = (paths.output.join("vmlinuz"), paths.output.join("initramfs.cpio"));
    fs::copy(&kernel.image, &vmlinuz).context("copying the kernel")?;
    let elf = paths.output.join("vmlinux");
    let kernel_elf = kernel.elf.as_ref().map(|file| fs::copy(file, &elf).map(|_| elf.clone()));
    let kernel_elf = kernel_elf.transpose().context("copying the kernel")?;
    if kernel_elf.is_none() {
        // Whoever boots takes the ELF file when there is one; that of an earlier build is not this kernel.
        let _ = fs::remove_file(&elf);
    }
    let aside = paths.output.join("initramfs-modules");
    let initramfs_bytes = rootfs::initramfs(&initramfs, &aside, &root_image, paths, kernel, &step)?;
    step.done(&size(initramfs_bytes));
    let image = Image {
        kernel_bytes: fs::metadata(&vmlinuz)?.len(),
        kernel: vmlinuz,
        kernel_elf,
        kernel_release: kernel.release.clone(),
        initramfs,
        kernel_version: kernel.version.clone(),
        initramfs_bytes,
        root_bytes,
    };
    fs::write(paths.output.join("image.json"), serde_json::to_vec_pretty(&image)?)?;
    Ok(image)
}

pub(crate) fn print_sizes(image: &Image) {
    println!(
        "kernel      {:>9}  {} ({})",
        size(image.kernel_bytes),
        image.kernel.display(),
        image.kernel_version
    );
    println!("initramfs   {:>9}  {}", size(image.initramfs_bytes), image.initramfs.display());
    println!("of it root  {:>9}", size(image.root_bytes));
    println!("together    {:>9}", size(image.kernel_bytes + image.initramfs_bytes));
}
