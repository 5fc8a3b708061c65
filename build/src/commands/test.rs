//! `cargo berth test`: everything that must hold before a change lands, in the order of what fails fastest.

use super::image;
use crate::paths::Paths;
use crate::progress::Step;
use crate::{debian, demo, inputs, kernel, process};
use anyhow::{Context, Result, bail};
use qemu_test::machine::IMAGE_VARIABLE;
use qemu_test::{BootImage, Choice, accel};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

/// Guests at a time: each has two virtual processors, which TCG runs on two threads.
const GUESTS_AT_A_TIME: &str = "2";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only tests whose name contains this; leaves out the checks of the source
    filter: Option<String>,
    /// Leave out the tests that boot machines
    #[arg(long)]
    no_guests: bool,
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
    inputs::ensure(&[inputs::IMAGE, inputs::BOOT, inputs::TEST])?;
    if arguments.filter.is_none() {
        source_checks(&paths)?;
    }
    let runner = Runner { nextest: has_subcommand("nextest"), filter: arguments.filter.clone() };
    runner.unit_tests(&paths)?;
    if !arguments.no_guests {
        guests(&paths, arguments, &runner)?;
    }
    eprintln!("✓ all of it ({:.0} s)", began.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

/// Format and lints, each where the toolchain has it.
fn source_checks(paths: &Paths) -> Result<()> {
    let clippy: &[&str] =
        &["clippy", "--workspace", "--all-targets", "--locked", "--quiet", "--", "-D", "warnings"];
    let deny: &[&str] = &["deny", "--offline", "check", "bans", "sources"];
    // Only the names of files that differ; cargo fmt --all mends them.
    for arguments in [&["fmt", "--all", "--", "--check", "-l"], clippy, deny] {
        let (verb, rest) = arguments.split_first().context("no verb")?;
        if !has_subcommand(verb) {
            eprintln!("· cargo {verb} is not installed, continuing without it");
            continue;
        }
        let step = Step::start(format!("cargo {verb}"));
        process::run(process::cargo().current_dir(&paths.checkout).arg(verb).args(rest), &step)?;
        step.done("");
    }
    Ok(())
}

fn has_subcommand(verb: &str) -> bool {
    let asked =
        process::cargo().args([verb, "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    asked.is_ok_and(|status| status.success())
}

/// The test runner: nextest where it is installed.
struct Runner {
    nextest: bool,
    filter: Option<String>,
}

impl Runner {
    fn unit_tests(&self, paths: &Paths) -> Result<()> {
        eprintln!("· unit tests …");
        let mut command = process::cargo();
        command.current_dir(&paths.checkout);
        if self.nextest {
            command.args(["nextest", "run", "--workspace", "--locked", "--no-fail-fast", "--no-tests=pass"]);
        } else {
            command.args(["test", "--workspace", "--locked", "--no-fail-fast"]);
        }
        command.args(&self.filter);
        passes(&mut command, "the unit tests")
    }

    /// The ignored tests of qemu-test are those that boot machines.
    fn guest_tests(&self, paths: &Paths, variables: &[(&str, String)]) -> Result<()> {
        eprintln!("· tests that boot machines …");
        let mut command = process::cargo();
        command.current_dir(&paths.checkout).envs(variables.iter().cloned());
        if self.nextest {
            command.args([
                "nextest",
                "run",
                "-p",
                "qemu-test",
                "--locked",
                "--run-ignored",
                "only",
                "--no-fail-fast",
            ]);
            command.args([
                "--test-threads",
                GUESTS_AT_A_TIME,
                "--success-output",
                "final",
                "--no-tests=pass",
            ]);
            command.args(&self.filter);
        } else {
            command.args(["test", "-p", "qemu-test", "--locked", "--no-fail-fast"]).args(&self.filter);
            command.args(["--", "--ignored", "--nocapture", "--test-threads", GUESTS_AT_A_TIME]);
        }
        passes(&mut command, "the tests that boot machines")
    }
}

/// Runs a test runner with its output shown as it comes.
fn passes(command: &mut Command, what: &str) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("starting {what}"))?;
    if !status.success() {
        bail!("{what} failed");
    }
    Ok(())
}

fn guests(paths: &Paths, arguments: &Arguments, runner: &Runner) -> Result<()> {
    image::build(paths, arguments.kernel.as_ref(), &[])?;
    let step = Step::start("what the tests use");
    let registry = debian::unpack("docker-registry", paths, &step)?.root.join("usr/bin/docker-registry");
    let busybox = demo::busybox(paths, &step)?;
    let docker = match process::find("docker") {
        Some(program) => program,
        // The command line of Debian's package, without its daemon.
        None => debian::unpack("docker.io", paths, &step)?.root.join("usr/bin/docker"),
    };
    let accel = accel::choose(arguments.accel, &BootImage::in_folder(&paths.output)?.kernel)?;
    step.done(&format!("{}, {}", docker.display(), accel.name()));
    let variables = [
        (IMAGE_VARIABLE, paths.output.display().to_string()),
        ("BERTH_ACCEL", accel.name().to_owned()),
        ("BERTH_BUSYBOX", busybox.display().to_string()),
        ("BERTH_DOCKER", docker.display().to_string()),
        ("BERTH_DOCKER_REGISTRY", registry.display().to_string()),
    ];
    runner.guest_tests(paths, &variables)
}
