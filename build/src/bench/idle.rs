//! What a machine with nothing to do takes: memory with the API up, and whether a small one with a disk still serves.

use crate::commands::image;
use crate::kernel::Choice;
use crate::paths::Paths;
use crate::progress::{Step, megabytes};
use crate::table::Table;
use crate::{demo, inputs};
use anyhow::Result;
use berth_api::host::Status;
use qemu_test::artifacts::Artifacts;
use qemu_test::disk::Disk;
use qemu_test::pki::Pki;
use qemu_test::registry::Registry;
use qemu_test::{BootImage, Machine, http, scenario};
use std::time::Duration;

/// The smallest machine promised; unit: MiB.
const SMALL_MIB: u32 = 128;

/// Bars; unit: MB.
const IN_USE_BAR_MB: f64 = 64.0;
const DOWNLOAD_BAR_MB: f64 = 25.0;

/// Unit: bytes; the file is sparse.
const DISK_BYTES: u64 = 1 << 30;

/// Port of the demo page on the guest.
const PAGE: u16 = 8080;
const DEADLINE: Duration = Duration::from_secs(120);

/// Boots the smallest machine, asks for its memory, then has one with a disk pull and serve the demo image.
pub(crate) fn run(choice: Option<&Choice>) -> Result<Table> {
    let paths = Paths::find()?;
    inputs::ensure(&[inputs::IMAGE, inputs::BOOT])?;
    let built = image::build(&paths, choice, &[])?;
    let step = Step::start(format!("a machine of {SMALL_MIB} MiB"));
    let program =
        crate::debian::unpack("docker-registry", &paths, &step)?.root.join("usr/bin/docker-registry");
    let data = tempfile::Builder::new().prefix("berth-registry-").tempdir()?;
    let registry = Registry::start_program(&program, data.path())?;
    let reference = registry.push("demo:latest", &demo::image(&paths, &step)?)?;
    let pki = Pki::generate()?;
    let boot = BootImage::in_folder(&paths.output)?;
    let machine = |name: &str| Machine::new(name).memory_mib(SMALL_MIB).forward(PAGE);

    step.message("idle");
    let artifacts = Artifacts::create(&paths.output, "bench-idle")?.kept();
    let config = scenario::machine_file(&pki, &registry.guest_name(), "");
    let mut guest = machine("bench-idle").config(config).boot_in(&boot, artifacts)?;
    guest.connect_api(&pki, DEADLINE)?;
    let idle: Status = guest.get("/host/v1/status")?;
    guest.kill()?;

    step.message("serving");
    let artifacts = Artifacts::create(&paths.output, "bench-idle-serving")?.kept();
    let unit = format!("[[container]]\nname = \"web\"\nimage = \"{reference}\"\nports = [\"{PAGE}:80\"]\n");
    let config = scenario::machine_file(&pki, &registry.guest_name(), &unit);
    let disk = Disk::create_or_open(&data.path().join("state"), DISK_BYTES)?;
    let mut guest = machine("bench-idle-serving").config(config).disk(disk).boot_in(&boot, artifacts)?;
    guest.connect_api(&pki, DEADLINE)?;
    let address = guest.address(PAGE)?;
    guest.until("the page", DEADLINE, |_| {
        Ok(http::get(address, "/").ok().filter(|page| page.status == 200))
    })?;
    let serving: Status = guest.get("/host/v1/status")?;
    guest.kill()?;
    step.done("");

    let mut table = Table::default();
    let download = built.kernel_bytes + built.initramfs_bytes;
    table.add("memory the kernel leaves", megabytes(idle.memory_total_bytes), "MB");
    table.add_with_bar("in use, API up", in_use(&idle), "MB", IN_USE_BAR_MB);
    table.add("in use, a container serving", in_use(&serving), "MB");
    table.add("agent resident", megabytes(serving.agent_rss_bytes), "MB");
    table.add("kernel", megabytes(built.kernel_bytes), "MB");
    table.add("initramfs", megabytes(built.initramfs_bytes), "MB");
    table.add_with_bar("kernel and initramfs", megabytes(download), "MB", DOWNLOAD_BAR_MB);
    Ok(table)
}

fn in_use(status: &Status) -> f64 {
    megabytes(status.memory_total_bytes.saturating_sub(status.memory_available_bytes))
}
