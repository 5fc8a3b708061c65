//! Containers that come and go: names stay right under a load of questions while the agent is killed.

use anyhow::{Context, Result, ensure};
use qemu_test::Machine;
use qemu_test::scenario::{Cases, Site};
use std::time::{Duration, Instant};

const PROBE: &str = env!("CARGO_BIN_EXE_probe");

/// Containers that come and go, in waves of ten, and kills of the agent meanwhile.
const WAVES: usize = 5;
const WAVE: usize = 10;
const KILLS_A_WAVE: usize = 1;

#[test]
#[ignore = "boots a machine: cargo berth test"]
fn names_stay_right_while_containers_come_and_go_and_the_agent_is_killed() -> Result<()> {
    let site = Site::prepare(PROBE)?;
    let mut guest = site.boot(&Machine::new("churn-names").config(site.machine_file("")))?;
    let docker = site.docker(&guest)?;
    let image = site.image.as_str();
    docker.ok(&["pull", "-q", image])?;
    docker.ok(&["network", "create", "--ipv6", "busy"])?;
    docker.ok(&["run", "-d", "--name", "live", "--network", "busy", image, "sleep", "100000"])?;
    docker.ok(&[
        "run",
        "-d",
        "--name",
        "asker",
        "--network",
        "busy",
        image,
        "/probe",
        "keep-asking",
        "live",
    ])?;
    let mut cases = Cases::default();
    let mut worst = Duration::ZERO;
    for wave in 0..WAVES {
        let names: Vec<String> = (0..WAVE).map(|number| format!("c{wave}-{number}")).collect();
        for name in &names {
            docker.ok(&["run", "-d", "--name", name, "--network", "busy", image, "sleep", "100000"])?;
        }
        let known = |name: &str| docker.run(&["exec", "live", "/probe", "resolve", name]);
        for kill in 0..KILLS_A_WAVE {
            site.crash_agent(&mut guest)?;
            let name = names.get(kill).context("a name")?;
            cases.case(&format!("{name} is known after a kill"), || {
                let done = known(name)?;
                ensure!(done.code == 0, "{}{}", done.stdout, done.stderr);
                Ok(())
            });
        }
        for name in &names {
            docker.ok(&["rm", "-f", name])?;
            let gone = Instant::now();
            cases.case(&format!("{name} is forgotten"), || {
                let done = known(name)?;
                worst = worst.max(gone.elapsed());
                ensure!(done.code != 0, "still at {}", done.stdout);
                Ok(())
            });
        }
    }
    cases.case("no question for a live name failed", || {
        docker.ok(&["kill", "-s", "TERM", "asker"])?;
        docker.ok(&["wait", "asker"])?;
        let text = docker.ok(&["logs", "asker"])?;
        eprintln!("          {text}; the slowest check of a removed name took {worst:?}");
        ensure!(text.contains(" 0 failed"), "{text}");
        Ok(())
    });
    cases.finish(&mut guest)
}
