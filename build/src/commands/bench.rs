//! `cargo berth bench`: figures that are the same on any machine at any load.
//!
//! Under QEMU's `-icount shift=0` the guest's clock advances one nanosecond per instruction, so the kernel's time
//! stamps on the console count guest instructions. While the guest waits for the world outside (the registry), its
//! clock follows its own timers, so the phases after the agent is ready hold some waiting too.

use super::image;
use crate::bench::{self, Stack};
use crate::paths::Paths;
use crate::progress::Step;
use crate::table::Table;
use crate::{checks, debian, demo, inputs, kernel};
use anyhow::{Context, Result};
use qemu_test::artifacts::Artifacts;
use qemu_test::console::Line;
use qemu_test::pki::Pki;
use qemu_test::registry::Registry;
use qemu_test::{BootImage, Guest, Machine, http, scenario};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// A phase ends with the first console line that holds this text; its bar in 10⁹ instructions, when it has one.
const PHASES: &[(&str, &str, Option<f64>)] = &[
    ("kernel to init", "init:", Some(1.0)),
    ("init to its second stage", "init: stage2", Some(0.3)),
    ("second stage to agent ready", "agent: api ready", Some(0.6)),
    ("agent ready to container started", "agent: container web started", Some(1.2)),
];

/// The whole way, in 10⁹ instructions. Bars leave room for a new kernel package, not for a new habit.
const WHOLE_BAR: f64 = 2.6;

/// Port of the demo page on the guest.
const PAGE: u16 = 8080;

/// Counting instructions runs one processor, several times slower than real time.
const DEADLINE: Duration = Duration::from_secs(300);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(clap::Subcommand)]
enum Bench {
    /// Guest instructions from the kernel's start to a container answering, by phase
    Boot {
        /// Also write {"figures", "bars"} to this file
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Which kernel boots it [default: our own when it was built, Debian's otherwise]
        #[arg(long, value_name = "own|stock|PATH")]
        kernel: Option<kernel::Choice>,
    },
    /// How long a start takes: the launcher, berth-runtime, crun and runc beside bare system calls, in one machine
    Start {
        /// Starts of each
        #[arg(long, default_value_t = 200)]
        count: u32,
        /// Also write {"figures", "bars"} to this file
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// The same figures of Debian with systemd and Docker or Podman, running the same container
    Debian {
        /// Only this one
        #[arg(long)]
        stack: Option<Stack>,
        /// Also write {"figures", "bars"} to this file
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let (table, json) = match &arguments.bench {
        Bench::Start { count, json } => (bench::start::measure(*count)?, json),
        Bench::Boot { json, kernel } => (boot(kernel.as_ref())?, json),
        Bench::Debian { json, stack } => (debian_stacks(*stack)?, json),
    };
    match &arguments.bench {
        Bench::Start { .. } => println!("\n{table}"),
        _ => println!("\nguest instructions, in 10⁹ (G):\n{table}"),
    }
    if let Some(path) = json {
        std::fs::write(path, serde_json::to_vec_pretty(&table.json())?)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(if table.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn boot(choice: Option<&kernel::Choice>) -> Result<Table> {
    let paths = Paths::find()?;
    inputs::ensure(&[inputs::IMAGE, inputs::BOOT])?;
    image::build(&paths, choice, &[])?;
    let step = Step::start("counting instructions");
    let program = debian::unpack("docker-registry", &paths, &step)?.root.join("usr/bin/docker-registry");
    let data = tempfile::Builder::new().prefix("berth-registry-").tempdir()?;
    let registry = Registry::start_program(&program, data.path())?;
    let reference = registry.push("demo:latest", &demo::image(&paths, &step)?)?;
    let unit = format!("[[container]]\nname = \"web\"\nimage = \"{reference}\"\nports = [\"8080:80\"]\n");
    let config = scenario::machine_file(&Pki::generate()?, &registry.guest_name(), &unit);
    let artifacts = Artifacts::create(&paths.output, "bench-boot")?.kept();
    let machine = Machine::new("bench-boot").config(config).forward(PAGE).count_instructions();
    let guest = machine.boot_in(&BootImage::in_folder(&paths.output)?, artifacts)?;
    let table = phases(&guest, &step);
    step.done("");
    table
}

/// The same container under Debian and systemd, with the same flags and the same way of counting.
fn debian_stacks(only: Option<Stack>) -> Result<Table> {
    let paths = Paths::find()?;
    inputs::ensure(&[inputs::BOOT, inputs::DEBIAN])?;
    let mut table = Table::default();
    for stack in Stack::ALL.into_iter().filter(|stack| only.is_none_or(|only| only == *stack)) {
        let disk = bench::debian::obtain(stack, &paths)?;
        let figures = bench::debian::measure(stack, &disk, &paths)?;
        let name = |phase: &str| format!("Debian with {}: {phase}", stack.name());
        table.add(&name("kernel to initramfs"), figures.to_initramfs, "G");
        table.add(&name("kernel to systemd"), figures.to_systemd, "G");
        table.add(&name("kernel to container answering"), figures.to_answer, "G");
        table.add(&name("of it the processor idle"), figures.idle_s, "G");
    }
    Ok(table)
}

fn phases(guest: &Guest, step: &Step) -> Result<Table> {
    let mut table = Table::default();
    let mut before = 0.0;
    for (name, needle, bar) in PHASES {
        step.message(name);
        let at = instructions(&guest.wait_for_line(needle, DEADLINE)?)?;
        match bar {
            Some(most) => table.add_with_bar(name, at - before, "G", *most),
            None => table.add(name, at - before, "G"),
        }
        before = at;
    }
    step.message("container answering");
    let answered = answering(guest)?;
    table.add("container started to answering", answered - before, "G");
    table.add_with_bar("kernel's start to container answering", answered, "G", WHOLE_BAR);
    Ok(table)
}

/// When the container answered on its published port, by the uptime its page shows: the guest's clock counts
/// instructions, so this includes what the machine idled while the question was on its way.
fn answering(guest: &Guest) -> Result<f64> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match http::get(guest.address(PAGE)?, "/").and_then(|page| checks::uptime_s(&page.text())) {
            Ok(uptime_s) => return Ok(uptime_s),
            Err(error) if Instant::now() > deadline => return Err(error),
            // Not up yet: only asking again can tell.
            Err(_) => std::thread::yield_now(),
        }
    }
}

fn instructions(line: &Line) -> Result<f64> {
    let stamp =
        line.kernel_time().with_context(|| format!("a console line without time stamp: {}", line.text))?;
    Ok(stamp.as_secs_f64())
}
