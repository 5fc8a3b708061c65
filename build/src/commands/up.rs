//! `cargo berth up`: a machine that serves a page, from a bare checkout in one command.

use super::image::{self, DOWNLOAD_BAR_BYTES, Image};
use crate::checks::{self, Expected};
use crate::paths::Paths;
use crate::progress::{Step, megabytes};
use crate::table::Table;
use crate::{debian, demo, inputs, interrupt, kernel};
use anyhow::{Context, Result, bail};
use qemu_test::artifacts::Artifacts;
use qemu_test::disk::Disk;
use qemu_test::machine::API_PORT;
use qemu_test::pki::Pki;
use qemu_test::registry::Registry;
use qemu_test::{BootImage, Choice, Guest, Machine, ports, scenario};
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// The demo's port on the machine, and here when it is free.
const PAGE_PORT: u16 = 8080;
/// Name of the demo's unit.
const UNIT: &str = "web";
/// A new state disk; sparse, so it takes only what is used. Unit: bytes.
const DISK_BYTES: u64 = 8 << 30;
/// Between two looks at the page or the interrupt.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// Bars of the table; unit: MB.
const INIT_BAR_MB: f64 = 2.0;
const AGENT_BAR_MB: f64 = 24.0;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Boot, check the page and the API from outside, print the figures, power off; exit 0 or 1
    #[arg(long)]
    once: bool,
    /// Machine file to use instead of the demo's; [api] is added when it has none
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Memory of the machine, in MiB
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(128..))]
    memory: u32,
    /// Processors of the machine
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=255))]
    cpus: u32,
    /// State disk that is kept; made when it is not there. Without it the state is in memory
    #[arg(long, value_name = "FILE")]
    disk: Option<PathBuf>,
    /// Show the machine's console
    #[arg(long)]
    console: bool,
    /// kvm, tcg, or auto: KVM where it really runs a guest
    #[arg(long, default_value = "auto")]
    accel: Choice,
    /// Which kernel boots it [default: our own when it was built, Debian's otherwise]
    #[arg(long, value_name = "own|stock|PATH")]
    kernel: Option<kernel::Choice>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let began = Instant::now();
    let paths = Paths::find()?;
    inputs::ensure(&[inputs::IMAGE, inputs::BOOT])?;
    let image = image::build(&paths, arguments.kernel.as_ref(), &[])?;
    let built = began.elapsed();
    let interrupts = interrupt::watch()?;
    let site = Site::prepare(&paths, &image, arguments)?;
    let mut guest = boot(&paths, arguments, &site)?;
    let times = match wait_until_up(&mut guest, &site, &interrupts) {
        Ok(Some(times)) => times,
        Ok(None) => {
            eprintln!("interrupted; powering off");
            return power_off(guest);
        }
        Err(error) => {
            eprintln!("the machine's console: {}", guest.artifacts().path("console.log").display());
            return Err(error);
        }
    };
    if arguments.once {
        return once(guest, &site, &image, built, &times);
    }
    print_next_steps(&guest, &site)?;
    stay(guest, &interrupts)
}

/// What is around the machine: registry, certificates, machine file.
struct Site {
    _registry: Registry,
    _registry_data: tempfile::TempDir,
    pki: Pki,
    pki_folder: PathBuf,
    config: String,
    /// Absent when the user's own machine file decides what runs.
    expected: Option<Expected>,
}

impl Site {
    fn prepare(paths: &Paths, image: &Image, arguments: &Arguments) -> Result<Self> {
        let step = Step::start("demo image and registry");
        let program = debian::unpack("docker-registry", paths, &step)?.root.join("usr/bin/docker-registry");
        let demo = demo::image(paths, &step)?;
        let registry_data = tempfile::Builder::new().prefix("berth-registry-").tempdir()?;
        let registry = Registry::start_program(&program, registry_data.path())?;
        let reference = registry.push("demo:latest", &demo)?;
        let pki_folder = paths.output.join("pki");
        let pki = Pki::load_or_generate(&pki_folder)?;
        let (config, expected) = if let Some(file) = &arguments.config {
            (own_config(file, &pki)?, None)
        } else {
            let digest = demo.manifest.digest.clone();
            let config = scenario::machine_file(&pki, &registry.guest_name(), &unit(&reference, &digest));
            let kernel = image.kernel_release.clone();
            (config, Some(Expected { kernel, digest, unit: UNIT.to_owned() }))
        };
        step.done(&reference);
        Ok(Self { _registry: registry, _registry_data: registry_data, pki, pki_folder, config, expected })
    }
}

fn unit(reference: &str, digest: &str) -> String {
    format!(
        "[[container]]\nname = \"{UNIT}\"\nimage = \"{reference}\"\nenv = {{ IMAGE_DIGEST = \"{digest}\" }}\n\
         ports = [\"{PAGE_PORT}:80\"]\nrestart = \"always\"\n"
    )
}

/// The user's machine file as it is, with a way to reach its API when it has none of its own.
fn own_config(file: &std::path::Path, pki: &Pki) -> Result<String> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let has_api = text.lines().any(|line| line.trim_start().starts_with("[api]"));
    Ok(if has_api { text } else { format!("{text}\n{}", pki.machine_table()) })
}

fn boot(paths: &Paths, arguments: &Arguments, site: &Site) -> Result<Guest> {
    let image = BootImage::in_folder(&paths.output)?;
    let mut machine = Machine::new("up")
        .memory_mib(arguments.memory)
        .cpus(arguments.cpus)
        .accel(arguments.accel)
        .config(&site.config)
        .echo_console(arguments.console)
        .forward_from(here(API_PORT)?, API_PORT)
        .forward_from(here(PAGE_PORT)?, PAGE_PORT);
    if let Some(path) = &arguments.disk {
        machine = machine.disk(Disk::create_or_open(path, DISK_BYTES)?);
    }
    let artifacts = Artifacts::create(&paths.output, "up")?.kept();
    site.pki.save(&artifacts.path("pki"))?;
    machine.boot_in(&image, artifacts)
}

/// The same port here as on the machine when it is free, else any.
fn here(port: u16) -> Result<u16> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Ok(_) => Ok(port),
        Err(_) => ports::free(1)?.first().copied().context("no free port"),
    }
}

/// When each stage was reached, seen from outside, since QEMU's start.
struct Times {
    init: Duration,
    agent: Duration,
    answering: Duration,
}

/// Waits for init, the agent and the page. None when the user interrupts.
fn wait_until_up(guest: &mut Guest, site: &Site, interrupts: &Receiver<()>) -> Result<Option<Times>> {
    let step = Step::start(format!("booting ({})", guest.accel().name()));
    let within = guest.within(45);
    let deadline = guest.began() + within;
    let page = guest.address(PAGE_PORT)?;
    let seen =
        |guest: &Guest, needle: &str| Some(guest.console().find(needle)?.at.duration_since(guest.began()));
    loop {
        if interrupts.try_recv().is_ok() {
            return Ok(None);
        }
        if let Some(line) = guest.console().lines().last() {
            step.message(&line.text);
        }
        let (init, agent) = (seen(guest, "init:"), seen(guest, "agent: api ready"));
        if let (Some(init), Some(agent)) = (init, agent)
            && (site.expected.is_none() || checks::page_answers(page))
        {
            let answering = guest.began().elapsed();
            guest.connect_api(&site.pki, within)?;
            step.done("");
            return Ok(Some(Times { init, agent, answering }));
        }
        if !guest.running() {
            bail!("the machine went off while booting");
        }
        if let Some(panic) = guest.console().find("Kernel panic - not syncing") {
            bail!("the machine's kernel stopped: {}", panic.text);
        }
        if Instant::now() > deadline {
            let missing = match (init, agent) {
                (None, _) => "init did not start",
                (_, None) => "the agent did not get ready",
                _ => "the page does not answer",
            };
            bail!("{missing} within {within:?}");
        }
        std::thread::sleep(LOOK_PAUSE);
    }
}

fn print_next_steps(guest: &Guest, site: &Site) -> Result<()> {
    let api = guest.address(API_PORT)?;
    println!();
    if site.expected.is_some() {
        println!("The machine is up. Its page:\n\n  http://{}/\n", guest.address(PAGE_PORT)?);
    } else {
        println!("The machine is up.\n");
    }
    println!("The docker command line, in another terminal:\n");
    println!("  export DOCKER_HOST=tcp://{api}");
    println!("  export DOCKER_TLS_VERIFY=1");
    println!("  export DOCKER_CERT_PATH={}", site.pki_folder.display());
    println!("  docker ps\n");
    println!("Console: {}", guest.artifacts().path("console.log").display());
    println!("Ctrl-c powers the machine off; a second one pulls the plug.");
    Ok(())
}

/// Stays until the user stops the machine or it stops itself.
fn stay(mut guest: Guest, interrupts: &Receiver<()>) -> Result<ExitCode> {
    loop {
        match interrupts.recv_timeout(LOOK_PAUSE) {
            Err(RecvTimeoutError::Timeout) if guest.running() => {}
            Err(RecvTimeoutError::Timeout) => {
                println!("The machine switched itself off.");
                return Ok(ExitCode::SUCCESS);
            }
            Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let step = Step::start("powering off");
    guest.press_power_button()?;
    while guest.running() {
        if interrupts.try_recv().is_ok() {
            guest.kill()?;
            bail!("the plug was pulled");
        }
        if let Some(line) = guest.console().lines().last() {
            step.message(&line.text);
        }
        std::thread::sleep(LOOK_PAUSE);
    }
    step.done("");
    Ok(ExitCode::SUCCESS)
}

fn power_off(mut guest: Guest) -> Result<ExitCode> {
    let within = guest.within(30);
    guest.power_down(within)?;
    Ok(ExitCode::FAILURE)
}

/// The checks and the figures of `--once`.
fn once(mut guest: Guest, site: &Site, image: &Image, built: Duration, times: &Times) -> Result<ExitCode> {
    let mut passed = true;
    let mut check = |name: &str, done: Result<()>| match done {
        Ok(()) => println!("ok      {name}"),
        Err(error) => {
            println!("FAILED  {name}: {error:#}");
            passed = false;
        }
    };
    if let Some(expected) = &site.expected {
        let address = guest.address(PAGE_PORT)?;
        check("the page shows this machine and image", checks::page(address, expected));
        check("the API shows the container and refuses strangers", checks::api(&guest, expected));
        let docker = guest.docker(&site.pki)?;
        if docker.present() {
            check("the docker command line works", checks::docker(&docker, expected));
        } else {
            println!("left out: there is no docker command line on this machine");
        }
    }
    let mut table = Table::default();
    fill(&mut table, image, built, times);
    match checks::status(&guest) {
        Ok(status) => fill_memory(&mut table, &status),
        Err(error) => check("the machine tells its memory", Err(error)),
    }
    let (within, began) = (guest.within(30), Instant::now());
    let off = guest.power_down(within);
    table.add("power off", began.elapsed().as_secs_f64(), "s");
    check("it powers off in order", off);
    println!("\n{table}");
    Ok(if passed && table.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn fill(table: &mut Table, image: &Image, built: Duration, times: &Times) {
    table.add("build", built.as_secs_f64(), "s");
    table.add("boot to init", times.init.as_secs_f64(), "s");
    table.add("boot to agent ready", times.agent.as_secs_f64(), "s");
    table.add("boot to container answering", times.answering.as_secs_f64(), "s");
    table.add("kernel", megabytes(image.kernel_bytes), "MB");
    table.add("initramfs", megabytes(image.initramfs_bytes), "MB");
    let download = megabytes(image.kernel_bytes + image.initramfs_bytes);
    table.add_with_bar("kernel and initramfs", download, "MB", megabytes(DOWNLOAD_BAR_BYTES));
}

fn fill_memory(table: &mut Table, status: &berth_api::host::Status) {
    let used = status.memory_total_bytes.saturating_sub(status.memory_available_bytes);
    table.add("memory of the machine", megabytes(status.memory_total_bytes), "MB");
    table.add("memory in use", megabytes(used), "MB");
    table.add_with_bar("init resident", megabytes(status.init_rss_bytes), "MB", INIT_BAR_MB);
    table.add_with_bar("agent resident", megabytes(status.agent_rss_bytes), "MB", AGENT_BAR_MB);
}
