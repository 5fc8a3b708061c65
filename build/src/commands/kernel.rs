//! `cargo berth kernel`: builds our own kernel from Debian's source and keeps it in the cache.

use crate::inputs;
use crate::kernel::own::{self, Built};
use crate::paths::Paths;
use crate::progress::size;
use anyhow::Result;
use std::fs;
use std::process::ExitCode;
use std::thread;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Compilers at a time [default: one per processor]
    #[arg(long, short)]
    jobs: Option<usize>,
    /// Build again although the cache has it
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    inputs::ensure(&[inputs::KERNEL])?;
    let jobs = arguments.jobs.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    let built = own::obtain(own::Options { jobs, force: arguments.force }, &Paths::find()?)?;
    print(&built)?;
    Ok(ExitCode::SUCCESS)
}

fn print(built: &Built) -> Result<()> {
    println!("release     {} (source {}, {} options)", built.release, built.version, built.options);
    for (what, file) in [("compressed", &built.bzimage), ("PVH ELF", &built.vmlinux)] {
        println!("{what:<11} {:>8}  {}", size(fs::metadata(file)?.len()), file.display());
    }
    println!("options              {}", built.config.display());
    Ok(())
}
