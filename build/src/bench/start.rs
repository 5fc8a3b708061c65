//! How long it takes to start a container, each way in turn in one machine, back to back and at a pace.
//!
//! At a pace because what waits for the kernel's grace periods hides in a tight loop. Instructions are counted, as for
//! a boot: one is a nanosecond of the machine's clock, and while nothing runs the clock jumps to the next timer, so the
//! figures are the same at any load, in millions of instructions, and ratios are what counts.

use crate::conformance::{LIBRARIES, Runtime};
use crate::lab::{self, Lab};
use crate::paths::Paths;
use crate::progress::Step;
use crate::table::Table;
use crate::{inputs, process};
use anyhow::{Context, Result};
use qemu_test::disk::Disk;
use std::collections::BTreeMap;
use std::time::Duration;

/// Room for the writable layers of some thousand containers; unit: bytes. The file is sparse.
const DISK_BYTES: u64 = 1 << 30;

/// Pause before each start in the paced run; unit: milliseconds.
const PACE_MS: u32 = 100;

/// Two times `count` rounds, of which runc takes most.
const DEADLINE: Duration = Duration::from_secs(7200);

/// What the machine needs beside the kernel itself.
const MODULES: &[&str] = &["virtio_pci", "virtio_blk", "ext4", "overlay"];

/// At most this many times the floor, with the user namespace and the log that the floor does not have.
const FLOOR_BAR: f64 = 1.5;
/// The launcher's part of crun's `create` and `start`.
const CRUN_BAR: f64 = 1.0 / 5.0;
/// The launcher's part of runc's.
const RUNC_BAR: f64 = 1.0 / 12.0;
/// A slow start beside an ordinary one.
const TAIL_BAR: f64 = 3.0;

/// Median and 99th percentile by contender and step; unit: 10⁶ instructions.
type Figures = BTreeMap<(String, String), [f64; 2]>;

/// Boots the machine and measures.
pub(crate) fn measure(count: u32) -> Result<Table> {
    let paths = Paths::find()?;
    inputs::ensure(&[inputs::IMAGE, inputs::BOOT])?;
    let step = Step::start("compiling what is measured");
    lab::compile(
        &["-p", "berth-runtime", "--bin", "berth-runtime", "--example", "start_bench"],
        &paths,
        &step,
    )?;
    step.done("");
    let step = Step::start("measuring starts");
    let mut lab = Lab::new(&paths, &step)?;
    lab.libraries(LIBRARIES, &paths, &step)?;
    lab.modules(MODULES);
    lab.file(&paths.binaries.join("examples/start_bench"), "usr/bin/start_bench")?;
    let mut names = Vec::new();
    for runtime in Runtime::ALL {
        runtime.install(&mut lab, &paths, &step)?;
        names.push(runtime.name());
    }
    let folder = paths.output.join("bench-start-lab");
    std::fs::create_dir_all(&folder)?;
    let script = format!(
        "mount -t ext4 /dev/vda /var || exit 1\nmkdir /var/0 /var/{PACE_MS}\n\
         for pace in 0 {PACE_MS}; do\n\
         echo \"@@ pace $pace\"\nstart_bench /bin/busybox /var/$pace {count} $pace {} || exit 1\ndone\n",
        names.join(" ")
    );
    let image = lab.write(&folder, &script, &paths, &step)?;
    let disk = folder.join("disk");
    if disk.exists() {
        std::fs::remove_file(&disk).context("removing the old disk")?;
    }
    let disk = Disk::create_or_open(&disk, DISK_BYTES)?;
    process::run(process::command("mke2fs").args(["-q", "-t", "ext4"]).arg(&disk.path), &step)?;
    let lines = lab::run(
        "bench-start",
        &image,
        |machine| machine.disk(disk).count_instructions(),
        &paths,
        DEADLINE,
        |line| {
            if line.starts_with("@@") {
                step.milestone(line);
            }
        },
    )?;
    step.done("");
    let mut table = Table::default();
    for (pace, title) in [("0", "back to back"), ("100", "one per 100 ms")] {
        fill(&mut table, &read(&lines, pace), title)?;
    }
    Ok(table)
}

/// The figures of one pace: the lines after its own.
fn read(lines: &[String], pace: &str) -> Figures {
    let mut figures = Figures::new();
    let mut ours = false;
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["@@", "pace", which] => ours = *which == pace,
            ["@@", name, step, p50, p99] if ours => {
                if let (Ok(p50), Ok(p99)) = (p50.parse::<f64>(), p99.parse::<f64>()) {
                    figures.insert(((*name).to_owned(), (*step).to_owned()), [p50 / 1000.0, p99 / 1000.0]);
                }
            }
            _ => {}
        }
    }
    figures
}

fn fill(table: &mut Table, figures: &Figures, title: &str) -> Result<()> {
    let of = |name: &str, step: &str| {
        let found = figures.get(&(name.to_owned(), step.to_owned())).copied();
        found.with_context(|| format!("{name} gave no figure of {step}"))
    };
    // Until all is gone the processor mostly waits for grace periods, of which its jumping clock says nothing; and
    // `run` is over when the container is.
    let told = |name: &str, step: &str| match step {
        "gone" => !["floor", "launcher"].contains(&name),
        _ => !name.ends_with("-run"),
    };
    for ((name, step), [p50, p99]) in figures.iter().filter(|((name, step), _)| told(name, step)) {
        table.add(&format!("{title}: {name} {step}, median"), *p50, "M");
        table.add(&format!("{title}: {name} {step}, p99"), *p99, "M");
    }
    let [launcher, slow] = of("launcher", "started")?;
    let part = |name: &str| Ok::<f64, anyhow::Error>(launcher / of(name, "started")?[0]);
    let whole = of("berth-runtime-run", "gone")?[0] / of("crun-run", "gone")?[0];
    table.add_with_bar(&format!("{title}: launcher by floor"), part("floor")?, "", FLOOR_BAR);
    table.add_with_bar(
        &format!("{title}: launcher by crun create and start"),
        part("crun-create-start")?,
        "",
        CRUN_BAR,
    );
    table.add_with_bar(
        &format!("{title}: launcher by runc create and start"),
        part("runc-create-start")?,
        "",
        RUNC_BAR,
    );
    table.add_with_bar(&format!("{title}: berth-runtime run by crun run"), whole, "", 1.0);
    table.add_with_bar(&format!("{title}: launcher p99 by median"), slow / launcher, "", TAIL_BAR);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_held_against_their_bars() {
        let text = "@@ pace 0\n@@ floor started 1000 1100\n@@ launcher started 1400 5000\n@@ pace 100\n\
            @@ launcher started 9 9\n@@ crun-create-start started 8000 9000\n";
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let mut figures = read(&lines, "0");
        assert_eq!(figures.len(), 2);
        assert!(fill(&mut Table::default(), &figures, "x").is_err(), "crun is missing");
        for (name, step) in [
            ("crun-create-start", "started"),
            ("runc-create-start", "started"),
            ("crun-run", "gone"),
            ("berth-runtime-run", "gone"),
        ] {
            figures.insert((name.to_owned(), step.to_owned()), [20.0, 20.0]);
        }
        let mut table = Table::default();
        fill(&mut table, &figures, "x").expect("all there");
        assert!(!table.holds(), "p99 is more than three times the median");
        figures.insert(("launcher".to_owned(), "started".to_owned()), [1.4, 2.0]);
        let mut table = Table::default();
        fill(&mut table, &figures, "x").expect("all there");
        assert!(table.holds(), "{table}");
    }
}
