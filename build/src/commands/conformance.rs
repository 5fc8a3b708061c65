//! `cargo berth conformance`: the runtime specification's own suite, against `berth-runtime`, crun and runc.

use crate::conformance::{self, LIBRARIES, Outcome, Runtime, Verdict, count};
use crate::inputs;
use crate::lab::{self, Lab};
use crate::paths::Paths;
use crate::progress::Step;
use anyhow::Result;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// 58 programs for each runtime, most of which wait seconds for something.
const DEADLINE: Duration = Duration::from_secs(7200);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A checkout of github.com/opencontainers/runtime-tools, with its vendor folder
    checkout: PathBuf,
    /// Only programs whose name contains this
    #[arg(long)]
    only: Option<String>,
    /// Only this runtime: berth-runtime, crun or runc
    #[arg(long)]
    runtime: Option<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let paths = Paths::find()?;
    inputs::ensure(&[inputs::IMAGE, inputs::BOOT, inputs::CONFORMANCE])?;
    let step = Step::start("berth-runtime");
    lab::compile(&["-p", "berth-runtime", "--bin", "berth-runtime"], &paths, &step)?;
    step.done("");
    let step = Step::start("building the suite");
    let (suite, mut programs) = conformance::build(&arguments.checkout, &paths, &step)?;
    programs.retain(|name| arguments.only.as_ref().is_none_or(|only| name.contains(only.as_str())));
    step.done(&format!("{} programs", programs.len()));
    let wanted = |runtime: &Runtime| arguments.runtime.as_deref().is_none_or(|name| name == runtime.name());
    let runtimes: Vec<Runtime> = Runtime::ALL.into_iter().filter(wanted).collect();
    let step = Step::start("running it");
    let mut lab = Lab::new(&paths, &step)?;
    lab.libraries(LIBRARIES, &paths, &step)?;
    let mut versions = Vec::new();
    for runtime in &runtimes {
        versions.push(format!("{} {}", runtime.name(), runtime.install(&mut lab, &paths, &step)?));
    }
    let script = conformance::furnish(&mut lab, &suite, &programs, &runtimes)?;
    let image = lab.write(&paths.output.join("conformance"), &script, &paths, &step)?;
    let lines = lab::run(
        "conformance-run",
        &image,
        |machine| machine,
        &paths,
        DEADLINE,
        |line| {
            if line.starts_with("@@ begin") {
                step.message(line);
            }
        },
    )?;
    step.done(&versions.join(", "));
    let verdicts = conformance::read(&lines)?;
    print(&verdicts, &programs, &runtimes);
    let clean = count(&verdicts, Runtime::Berth)[1] == 0;
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(verdicts: &[Verdict], programs: &[String], runtimes: &[Runtime]) {
    for program in programs {
        let cells = runtimes.iter().map(|runtime| {
            let of = |one: &&Verdict| one.runtime == runtime.name() && one.program == *program;
            let outcome = verdicts.iter().find(of).map(|one| one.outcome);
            match outcome {
                Some(Outcome::Pass) => "pass",
                Some(Outcome::Fail) => "FAIL",
                Some(Outcome::Explained) => "explained",
                None => "not run",
            }
        });
        println!("| {program} | {} |", cells.collect::<Vec<_>>().join(" | "));
    }
    for runtime in runtimes {
        let [pass, fail, explained] = count(verdicts, *runtime);
        println!("{}: {pass} pass, {fail} fail, {explained} explained", runtime.name());
    }
    for verdict in verdicts.iter().filter(|one| one.outcome == Outcome::Fail) {
        println!("{} {}: {}", verdict.runtime, verdict.program, verdict.detail);
    }
}
