//! Containers that come and go: names stay right under a load of questions while the agent is killed, and nothing of a
//! container that ended is left.

use anyhow::{Context, Result, ensure};
use qemu_test::Machine;
use qemu_test::scenario::{Cases, Site};
use std::time::{Duration, Instant};

const PROBE: &str = env!("CARGO_BIN_EXE_probe");

/// Containers that come and go, in waves of ten, and kills of the agent meanwhile.
const WAVES: usize = 5;
const WAVE: usize = 10;
const KILLS_A_WAVE: usize = 2;

/// Cycles of the leak test and containers in each; more by BERTH_CYCLES.
const CYCLES: usize = 5;
const CONTAINERS: usize = 20;

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

#[test]
#[ignore = "boots a machine: cargo berth test"]
fn nothing_is_left_of_containers_that_ended() -> Result<()> {
    let site = Site::prepare(PROBE)?;
    let mut guest = site.boot(&Machine::new("churn-leaks").config(site.machine_file("")).memory_mib(1024))?;
    let docker = site.docker(&guest)?;
    let image = site.image.as_str();
    docker.ok(&["pull", "-q", image])?;
    // A small subnet: an address that is not given back is missed soon.
    let create = ["network", "create", "--ipv6", "--subnet", "10.40.0.0/26", "--subnet", "fd40::/64", "busy"];
    docker.ok(&create)?;
    let agent = "for p in /proc/[0-9]*; do [ \"$(cat $p/comm 2>/dev/null)\" = agent ] && ls $p/fd | wc -l; done; true";
    let look = format!(
        "ls /sys/class/net | wc -l; cat /proc/net/tcp /proc/net/udp /proc/net/tcp6 /proc/net/udp6 | wc -l; {agent}"
    );
    let watch = ["run", "-d", "--name", "watch", "--privileged", "--network", "host", "--pid", "host"];
    docker.ok(&[&watch[..], &[image, "sleep", "100000"]].concat())?;
    let left = || docker.ok(&["exec", "watch", "sh", "-c", &look]);
    let names: Vec<String> = (0..CONTAINERS).map(|number| format!("c{number}")).collect();
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    for (number, name) in names.iter().enumerate() {
        let (tcp, udp) = (format!("{}:80", 9000 + number), format!("{}:80/udp", 9000 + number));
        let create = ["create", "--name", name, "--network", "busy", "-p", &tcp, "-p", &udp];
        docker.ok(&[&create[..], &[image, "/probe", "serve", "80"]].concat())?;
    }
    let cycle = || -> Result<()> {
        docker.ok(&[&["start"][..], &all].concat())?;
        docker.ok(&[&["stop", "-t", "0"][..], &all].concat()).map(drop)
    };
    // The first one fills pools and caches.
    cycle()?;
    let within = guest.within(20);
    let quiet = |wanted: Option<&str>| {
        let mut former = String::new();
        guest.until("all to be gone", within, |_| {
            let now = left()?;
            let done = wanted.map_or(now == former, |wanted| now == wanted);
            former.clone_from(&now);
            Ok(done.then_some(now))
        })
    };
    let before = quiet(None)?;
    let cycles = std::env::var("BERTH_CYCLES").ok().and_then(|text| text.parse().ok()).unwrap_or(CYCLES);
    for _ in 0..cycles {
        cycle()?;
    }
    let mut cases = Cases::default();
    cases.case("interfaces, sockets and the agent's descriptors are as many as before", || {
        let after = quiet(Some(&before)).with_context(|| format!("before: {before}; now: {:?}", left()))?;
        ensure!(before == after);
        Ok(())
    });
    cases.case("every address is free again", || {
        let mut last = String::new();
        // As many as the subnet has, less the gateway.
        for number in 0..61 {
            last = docker.ok(&[
                "run",
                "-d",
                "--name",
                &format!("a{number}"),
                "--network",
                "busy",
                image,
                "sleep",
                "1000",
            ])?;
        }
        ensure!(!last.is_empty());
        Ok(())
    });
    cases.finish(&mut guest)
}
