//! What nothing may be lost by: an agent that dies, a container that keeps crashing, a stranger at the door.

use anyhow::{Context, Result, ensure};
use qemu_test::Machine;
use qemu_test::pki::Pki;
use qemu_test::scenario::{Cases, Site};
use serde_json::Value;
use std::time::Instant;

const PROBE: &str = env!("CARGO_BIN_EXE_probe");

#[test]
#[ignore = "boots a machine: cargo berth test"]
fn a_dead_agent_loses_nothing() -> Result<()> {
    let site = Site::prepare(PROBE)?;
    let machine = Machine::new("survival-agent").config(site.machine_file("")).forward(8080);
    let mut guest = site.boot(&machine)?;
    let docker = site.docker(&guest)?;
    let within = guest.within(20);
    docker.ok(&["pull", "-q", &site.image])?;
    // One that runs on, one that writes and ends while no agent is there.
    docker.ok(&["run", "-d", "--name", "web", "-p", "8080:80", &site.image, "/probe", "http", "80"])?;
    let script = "/probe lines 40 50; exit 7";
    docker.ok(&["run", "-d", "--name", "ends", &site.image, "sh", "-c", script])?;
    let started = |name: &str| docker.ok(&["inspect", "-f", "{{.State.Pid}} {{.State.StartedAt}}", name]);
    let before = started("web")?;
    let mut cases = Cases::default();

    let mark = guest.console().mark();
    guest.post("/host/v1/agent/crash", &Value::Null)?;
    guest.console().wait_for(mark, "agent: api ready", within)?;
    guest.connect_api(&site.pki, within)?;

    cases.case("the container runs on untouched", || {
        let after = started("web")?;
        ensure!(before == after, "{before} became {after}");
        Ok(())
    });
    cases.case("its published port still answers", || {
        let text = qemu_test::http::get(guest.address(8080)?, "/")?.text();
        ensure!(text.contains("request GET /"), "{text}");
        Ok(())
    });
    cases.case("the exit code of the other is kept", || {
        ensure!(docker.ok(&["wait", "ends"])? == "7");
        Ok(())
    });
    cases.case("every line of its log is kept, once and in order", || {
        let lines = docker.ok(&["logs", "ends"])?;
        let expected: Vec<String> = (1..=40).map(|number| format!("line {number}")).collect();
        ensure!(lines.lines().eq(expected.iter().map(String::as_str)), "{lines}");
        Ok(())
    });
    cases.case("it can be stopped and removed as ever", || {
        docker.ok(&["stop", "-t", "1", "web"])?;
        docker.ok(&["rm", "web", "ends"]).map(drop)
    });
    cases.finish(&mut guest)
}

#[test]
#[ignore = "boots a machine: cargo berth test"]
fn a_crashing_container_is_restarted_with_growing_pauses() -> Result<()> {
    let site = Site::prepare(PROBE)?;
    let unit =
        "[[container]]\nname = \"broken\"\nimage = \"{image}\"\ncommand = [\"/probe\", \"exit\", \"3\"]\n";
    let mut guest = site.boot(&Machine::new("survival-restarts").config(site.machine_file(unit)))?;
    let docker = site.docker(&guest)?;
    let within = guest.within(30);
    let count = |format: &str| -> Result<u32> {
        docker.ok(&["inspect", "-f", format, "broken"])?.parse().context("a number")
    };
    let mut cases = Cases::default();
    cases.case("pauses between restarts grow", || {
        let mut times = Vec::new();
        for restarts in 2..=7 {
            guest.until("a restart", within, |_| {
                Ok((count("{{.RestartCount}}")? >= restarts).then_some(()))
            })?;
            times.push(Instant::now());
        }
        let pauses: Vec<_> =
            times.windows(2).filter_map(|pair| Some(pair.last()?.duration_since(*pair.first()?))).collect();
        let (first, last) = (pauses.first().context("a pause")?, pauses.last().context("a pause")?);
        ensure!(*last > *first * 2, "{pauses:?}");
        Ok(())
    });
    cases.case("its exit code shows", || {
        ensure!(count("{{.State.ExitCode}}")? == 3);
        Ok(())
    });
    cases.case("the machine answers meanwhile, and the container can be removed", || {
        docker.ok(&["rm", "-f", "broken"])?;
        ensure!(docker.ok(&["ps", "-aq"])?.is_empty());
        Ok(())
    });
    cases.finish(&mut guest)
}

#[test]
#[ignore = "boots a machine: cargo berth test"]
fn strangers_are_refused_and_the_host_stays_out_of_reach() -> Result<()> {
    let site = Site::prepare(PROBE)?;
    let mut guest = site.boot(&Machine::new("survival-strangers").config(site.machine_file("")))?;
    let docker = site.docker(&guest)?;
    let mut cases = Cases::default();
    cases.case("a client certificate of another authority", || {
        let stranger = Pki { client: Pki::generate()?.client, ..site.pki.clone() };
        let folder = site.data.path().join("stranger");
        stranger.save(&folder)?;
        let done = docker.with_certificates(&folder).run(&["ps"])?;
        ensure!(done.code != 0, "a stranger was let in: {}", done.stdout);
        Ok(())
    });
    cases.case("no TLS at all", || {
        let address = guest.address(qemu_test::machine::API_PORT)?;
        let answer = qemu_test::http::get(address, "/_ping");
        ensure!(!answer.as_ref().is_ok_and(|answer| answer.status == 200), "{answer:?}");
        Ok(())
    });
    cases.case("root inside is nobody outside, with few capabilities and a filter", || {
        let run = |verb: &str| docker.ok(&["run", "--rm", &site.image, "/probe", verb]);
        let map = run("uid-map")?;
        let mut words = map.split_whitespace();
        let (inside, outside) = (words.next(), words.next().and_then(|word| word.parse::<u32>().ok()));
        ensure!(inside == Some("0") && outside.is_some_and(|id| id >= 100_000), "{map}");
        let status = run("status")?;
        ensure!(status.contains("NoNewPrivs: 1") && status.contains("Seccomp: 2"), "{status}");
        ensure!(!status.contains("CapEff: 000001ffffffffff"), "{status}");
        Ok(())
    });
    cases.case("a container costs no process beside its own", || {
        // Kernel threads have no program; the three of the pipeline are there at both counts.
        let count = "ls -l /proc/[0-9]*/exe 2>/dev/null | grep -c -- '->'";
        let processes = || -> Result<usize> {
            let arguments = ["run", "--rm", "--privileged", "--pid", "host", &site.image, "sh", "-c", count];
            docker.ok(&arguments)?.trim().parse().context("a number of processes")
        };
        let before = processes()?;
        ensure!(before >= 3, "the host's processes are seen: {before}");
        for _ in 0..5 {
            docker.ok(&["run", "-d", &site.image, "sleep", "1000"])?;
        }
        let after = processes()?;
        ensure!(after == before + 5, "{before} processes, {after} with five containers");
        Ok(())
    });
    cases.finish(&mut guest)
}
