//! Guest instructions from the kernel's start to a container answering, phase by phase.
//!
//! Under QEMU's `-icount shift=0` the guest's clock advances one nanosecond per instruction, so the kernel's time
//! stamps, less the time that its processor idled, count guest instructions: the same on any machine at any load.
//! While the guest waits for a disk or the network its clock follows the world's, and none of that counts.
//!
//! The machine finds the container's image on its disk, as the Debian machines beside it do: it was pulled in a boot
//! that is not counted, and the registry is gone since.

use super::{Stack, debian};
use crate::commands::image;
use crate::kernel::{Choice, own};
use crate::paths::Paths;
use crate::progress::Step;
use crate::table::Table;
use crate::{checks, demo, inputs};
use anyhow::{Context, Result};
use berth_api::host::Status;
use qemu_test::artifacts::Artifacts;
use qemu_test::disk::Disk;
use qemu_test::pki::Pki;
use qemu_test::registry::Registry;
use qemu_test::{BootImage, Guest, Machine, http, scenario};
use std::time::{Duration, Instant};

/// What is done between two phases of the boot, as the host API names them.
const PHASES: [(&str, &str); 3] = [
    ("kernel to init", "stage1"),
    ("init to its second stage", "stage2"),
    ("second stage to API ready", "api ready"),
];

/// What the whole way may take, in 10⁹ instructions.
const OWN_BAR: f64 = 1.0;
/// Leaves room for a new kernel package, not for a new habit.
const STOCK_BAR: f64 = 2.4;

/// How many times less than either Debian machine takes.
const TIMES_LESS: f64 = 10.0;

/// Port of the demo page on the guest.
const PAGE: u16 = 8080;

/// Unit: bytes; the file is sparse.
const DISK_BYTES: u64 = 1 << 30;

/// Counting instructions runs one processor, several times slower than real time.
const DEADLINE: Duration = Duration::from_secs(300);

/// Measures the kernel asked for. Beside our own stand the stock kernel and the Debian machines.
pub(crate) fn run(choice: Option<&Choice>) -> Result<Table> {
    let paths = Paths::find()?;
    inputs::ensure(&[inputs::IMAGE, inputs::BOOT])?;
    let with_own = match choice {
        Some(choice) => *choice == Choice::Own,
        None => own::find_cached(&paths)?.is_some(),
    };
    if !with_own {
        return Ok(measure(&paths, choice, "stock kernel", STOCK_BAR)?.0);
    }
    let (mut table, own) = measure(&paths, Some(&Choice::Own), "own kernel", OWN_BAR)?;
    table.append(measure(&paths, Some(&Choice::Stock), "stock kernel", STOCK_BAR)?.0);
    for stack in Stack::ALL {
        let (figures, answered) = debian::table(stack, &paths)?;
        table.append(figures);
        let name = format!("Debian with {} to own kernel", stack.name());
        table.add_at_least(&name, answered / own, "x", TIMES_LESS);
    }
    Ok(table)
}

/// The table of one kernel, and the whole way in 10⁹ instructions.
fn measure(paths: &Paths, choice: Option<&Choice>, what: &str, bar: f64) -> Result<(Table, f64)> {
    image::build(paths, choice, &[])?;
    let boot = BootImage::in_folder(&paths.output)?;
    let step = Step::start(format!("counting instructions, {what}"));
    step.message("loading the container");
    let scratch = tempfile::Builder::new().prefix("berth-bench-").tempdir_in(&paths.output)?;
    let disk = Disk::create_or_open(&scratch.path().join("state"), DISK_BYTES)?;
    let pki = Pki::generate()?;
    let config = {
        let program =
            crate::debian::unpack("docker-registry", paths, &step)?.root.join("usr/bin/docker-registry");
        let registry = Registry::start_program(&program, &scratch.path().join("registry"))?;
        let reference = registry.push("demo:latest", &demo::image(paths, &step)?)?;
        let unit = format!(
            "[[container]]\nname = \"web\"\nimage = \"{reference}\"\nports = [\"{PAGE}:80\"]\nrestart = \"always\"\n"
        );
        let config = scenario::machine_file(&pki, &registry.guest_name(), &unit);
        let artifacts = Artifacts::create(&paths.output, "bench-boot-prepare")?;
        let machine = Machine::new("bench-boot-prepare").config(&config).forward(PAGE).disk(disk.clone());
        let mut guest = machine.boot_in(&boot, artifacts)?;
        answered(&guest).context("the boot that pulls the image")?;
        guest.power_down(DEADLINE)?;
        guest.passed();
        config
    };
    let artifacts = Artifacts::create(&paths.output, "bench-boot")?.kept();
    let machine = Machine::new("bench-boot").config(config).forward(PAGE).disk(disk).count_instructions();
    let mut guest = machine.boot_in(&boot, artifacts)?;
    step.message("until the container answers");
    let whole = answered(&guest)?;
    step.message("asking for the phases");
    guest.connect_api(&pki, DEADLINE)?;
    let status: Status = guest.get("/host/v1/status")?;
    step.done(&format!("{whole:.2} G"));
    Ok((phases(&status, what, whole, bar)?, whole))
}

fn phases(status: &Status, what: &str, whole: f64, bar: f64) -> Result<Table> {
    let mut table = Table::default();
    let mut before = 0.0;
    for (name, phase) in PHASES {
        let found = status.boot.iter().find(|found| found.name == phase);
        let found = found.with_context(|| format!("the machine tells of no phase {phase}"))?;
        let at = found.at_s - found.idle_s;
        table.add(&format!("{what}: {name}"), at - before, "G");
        before = at;
    }
    table.add(&format!("{what}: API ready to container answering"), whole - before, "G");
    table.add_with_bar(&format!("{what}: kernel's start to container answering"), whole, "G", bar);
    Ok(table)
}

/// What was done until the container answered on its published port, by the page it shows, in 10⁹ instructions.
fn answered(guest: &Guest) -> Result<f64> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let page = http::get(guest.address(PAGE)?, "/").map(|page| page.text());
        match page.and_then(|page| Ok(checks::uptime_s(&page)? - checks::idle_s(&page)?)) {
            Ok(busy_s) => return Ok(busy_s),
            Err(error) if Instant::now() > deadline => return Err(error),
            // Not up yet: only asking again can tell.
            Err(_) => std::thread::yield_now(),
        }
    }
}
