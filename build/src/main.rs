//! The `cargo berth` command: builds the boot image, boots it, tests it and measures it.
//!
//! Rooms in reading order: [`paths`] says where things are, [`progress`] and [`process`] show and run the long
//! steps, [`inputs`] and [`debian`] bring in what the machine lacks, [`kernel`], [`modules`], [`rootfs`],
//! [`state`], [`erofs`] and [`cpio`] each make one part of the image, [`bench`] makes what it is measured against,
//! [`lab`] is a machine for single programs, [`conformance`] runs another project's suite in it, [`commands`] holds one
//! file per verb.

mod bench;
mod checks;
mod commands;
mod conformance;
mod cpio;
mod debian;
mod demo;
mod erofs;
mod inputs;
mod interrupt;
mod kernel;
mod lab;
mod modules;
mod paths;
mod process;
mod progress;
mod rootfs;
mod state;
mod table;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Build, boot and test Berth.
#[derive(Parser)]
#[command(name = "cargo berth", bin_name = "cargo berth", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the kernel and initramfs into target/berth/
    Image(commands::image::Arguments),
    /// Build Berth's own kernel from Debian's source, once
    Kernel(commands::kernel::Arguments),
    /// Check format and lints, run the unit tests, then the tests that boot machines
    Test(commands::test::Arguments),
    /// Run the OCI runtime specification's own suite against berth-runtime, crun and runc
    Conformance(commands::conformance::Arguments),
    /// Measure
    Bench(commands::bench::Arguments),
    /// Build everything, boot a machine and show its page
    Up(commands::up::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.command {
        Command::Image(arguments) => commands::image::run(&arguments),
        Command::Kernel(arguments) => commands::kernel::run(&arguments),
        Command::Test(arguments) => commands::test::run(&arguments),
        Command::Conformance(arguments) => commands::conformance::run(&arguments),
        Command::Bench(arguments) => commands::bench::run(&arguments),
        Command::Up(arguments) => commands::up::run(&arguments),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
