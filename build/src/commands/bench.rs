//! `cargo berth bench`: figures that are compared, with the bars they must hold.

use crate::bench::{self, Stack};
use crate::kernel;
use crate::table::Table;
use anyhow::Result;
use std::process::ExitCode;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    bench: Bench,
    /// Print {"figures", "bars"} in place of a table
    #[arg(long, global = true)]
    json: bool,
}

#[derive(clap::Subcommand)]
enum Bench {
    /// Guest instructions from the kernel's start to a container answering, by phase; with our own kernel beside
    /// the stock kernel and Debian with Docker and Podman
    Boot {
        /// Which kernel boots it [default: our own when it was built, Debian's otherwise]
        #[arg(long, value_name = "own|stock|PATH")]
        kernel: Option<kernel::Choice>,
    },
    /// Guest instructions a start takes: the launcher, berth-runtime, crun and runc beside bare system calls, in one machine
    Start {
        /// Starts of each; of the command lines a tenth
        #[arg(long, default_value_t = 200)]
        count: u32,
    },
    /// Only the figures of Debian with systemd and Docker or Podman, running the same container
    Debian {
        /// Only this one
        #[arg(long)]
        stack: Option<Stack>,
    },
    /// Memory of a machine with nothing to do, what must be downloaded, and whether 128 MiB are enough
    Idle {
        /// Which kernel boots it [default: our own when it was built, Debian's otherwise]
        #[arg(long, value_name = "own|stock|PATH")]
        kernel: Option<kernel::Choice>,
    },
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let table = match &arguments.bench {
        Bench::Boot { kernel } => bench::boot::run(kernel.as_ref())?,
        Bench::Debian { stack } => debian_stacks(*stack)?,
        Bench::Start { count } => bench::start::measure(*count)?,
        Bench::Idle { kernel } => bench::idle::run(kernel.as_ref())?,
    };
    if arguments.json {
        println!("{:#}", table.json());
    } else {
        println!("\n{table}");
    }
    Ok(if table.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn debian_stacks(only: Option<Stack>) -> Result<Table> {
    let paths = crate::paths::Paths::find()?;
    let mut table = Table::default();
    for stack in Stack::ALL.into_iter().filter(|stack| only.is_none_or(|only| only == *stack)) {
        table.append(bench::debian::table(stack, &paths)?.0);
    }
    Ok(table)
}
