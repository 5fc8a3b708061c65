//! Who reaches whom: two machines on a cable, containers in several networks of one of them, every pair asked by TCP and
//! UDP over IPv4 and IPv6, before and after a crash of the agent. `docs/networking.md` shows the table this must give.

use anyhow::{Context, Result, ensure};
use qemu_test::docker::Docker;
use qemu_test::machine::Cable;
use qemu_test::scenario::{Cases, Site};
use qemu_test::{Guest, Machine};
use std::collections::BTreeMap;
use std::fmt::Write as _;

const PROBE: &str = env!("CARGO_BIN_EXE_probe");
const DOCS: &str = include_str!("../../docs/networking.md");

/// Both machines' ends of the cable. The second is where a cloud's metadata service would be.
const HERE: &str =
    "address = [\"198.51.100.1/24\", \"2001:db8:c::1/64\", \"169.254.1.1/16\", \"fd00:ec2::1/64\"]";
const FAR: &str =
    "address = [\"198.51.100.2/24\", \"2001:db8:c::2/64\", \"169.254.169.254/16\", \"fd00:ec2::254/64\"]";

/// Networks: name, number in the subnets, options.
const NETWORKS: [(&str, u8, &[&str]); 4] = [
    ("front", 1, &[]),
    ("back", 2, &[]),
    ("inner", 3, &["--internal"]),
    ("quiet", 4, &["-o", "com.docker.network.bridge.enable_icc=false"]),
];

/// Containers: name, network, last part of the addresses, published ports. All serve 80 and 81.
const CONTAINERS: [(&str, &str, u8, &[&str]); 7] = [
    ("web", "front", 10, &["8080:80", "127.0.0.1:8070:80", "198.51.100.1:8060:80"]),
    ("peer", "front", 11, &[]),
    ("other", "back", 10, &[]),
    ("in1", "inner", 10, &["8050:80"]),
    ("in2", "inner", 11, &[]),
    ("q1", "quiet", 10, &["8090:80"]),
    ("q2", "quiet", 11, &[]),
];

/// Who asks, and what the table calls it.
const ASKERS: [(&str, &str); 8] = [
    ("here", "the machine"),
    ("far", "a neighbour"),
    ("web", "the container itself"),
    ("peer", "a peer of its network"),
    ("other", "another network"),
    ("in2", "an internal network"),
    ("q2", "a network without icc"),
    ("old", "the default network"),
];

/// What is asked for: the table's name and the addresses of IPv4 and IPv6 with port; TCP alone for the API.
const TARGETS: [(&str, &str, &str, bool); 12] = [
    ("the container", "10.20.1.10:80", "[fd20:1::10]:80", true),
    ("published", "198.51.100.1:8080", "[2001:db8:c::1]:8080", true),
    ("published at one address", "198.51.100.1:8060", "", true),
    ("published at 127.0.0.1", "127.0.0.1:8070", "", true),
    ("the same by the machine's address", "198.51.100.1:8070", "", true),
    ("not published", "198.51.100.1:81", "[2001:db8:c::1]:81", true),
    ("a container of an internal network", "10.20.3.10:80", "[fd20:3::10]:80", true),
    ("published there", "198.51.100.1:8050", "[2001:db8:c::1]:8050", true),
    ("a container without icc", "10.20.4.10:80", "[fd20:4::10]:80", true),
    ("published there", "198.51.100.1:8090", "[2001:db8:c::1]:8090", true),
    ("the API", "198.51.100.1:2376", "", false),
    ("the metadata address", "169.254.169.254:80", "[fd00:ec2::254]:80", true),
];

/// Also asked, by containers and the machine: the neighbour.
const OUTSIDE: (&str, &str, &str, bool) = ("outside", "198.51.100.2:80", "[2001:db8:c::2]:80", true);

struct Lab {
    site: Site,
    here: Guest,
    /// Kept running.
    _far: Guest,
    docker: Docker,
    far_docker: Docker,
}

fn lab(name: &str) -> Result<Lab> {
    let site = Site::prepare(PROBE)?;
    let ends = ["here", "far"].map(|end| site.data.path().join(end));
    let machine = |number: usize, address: &str| {
        let mac = format!("52:54:00:12:34:a{number}");
        let config = format!(
            "[[network.interface]]\nmatch = \"{mac}\"\n{address}\n[[network.interface]]\nmatch = \"*\"\ndhcp = true\n"
        );
        let [own, other] = if number == 0 { [&ends[0], &ends[1]] } else { [&ends[1], &ends[0]] };
        let cable = Cable { own: own.clone(), other: other.clone(), mac };
        Machine::new(&format!("{name}-{number}")).config(site.machine_file(&config)).cable(cable)
    };
    let here = site.boot(&machine(0, HERE))?;
    let far_guest = site.boot(&machine(1, FAR))?;
    let (docker, far_docker) = (site.docker(&here)?, site.docker(&far_guest)?);
    for docker in [&docker, &far_docker] {
        docker.ok(&["pull", "-q", &site.image])?;
    }
    let image = site.image.as_str();
    // A port below 1024 of the machine is for its own root alone.
    let far =
        ["run", "-d", "--name", "far", "--privileged", "--network", "host", image, "/probe", "serve", "80"];
    far_docker.ok(&far)?;
    // The neighbour aims at containers directly.
    for route in [
        "ip route add 10.20.0.0/16 via 198.51.100.1",
        "ip -6 route add fd20::/16 via 2001:db8:c::1",
        "ip route add 172.16.0.0/12 via 198.51.100.1",
    ] {
        let run = ["run", "--rm", "--privileged", "--network", "host", image, "sh", "-c", route];
        far_docker.ok(&run)?;
    }
    Ok(Lab { site, here, _far: far_guest, docker, far_docker })
}

impl Lab {
    /// Makes the networks and the containers.
    fn fill(&self) -> Result<()> {
        for (name, number, options) in NETWORKS {
            let (v4, v6) = (format!("10.20.{number}.0/24"), format!("fd20:{number}::/64"));
            let mut create = vec!["network", "create", "--ipv6", "--subnet", &v4, "--subnet", &v6];
            create.extend(options);
            create.push(name);
            self.docker.ok(&create)?;
        }
        let image = self.site.image.as_str();
        for (name, network, last, ports) in CONTAINERS {
            let number = NETWORKS.iter().find(|it| it.0 == network).context("a network")?.1;
            let (ip, ip6) = (format!("10.20.{number}.{last}"), format!("fd20:{number}::{last}"));
            let mut run = vec!["run", "-d", "--name", name, "--hostname", name, "--network", network];
            run.extend(["--ip", &ip, "--ip6", &ip6]);
            let ports: Vec<String> =
                ports.iter().flat_map(|port| [(*port).to_owned(), format!("{port}/udp")]).collect();
            run.extend(ports.iter().flat_map(|port| ["-p", port]));
            run.extend([image, "/probe", "serve", "80", "81"]);
            self.docker.ok(&run)?;
        }
        self.docker.ok(&["run", "-d", "--name", "here", "--network", "host", image, "sleep", "100000"])?;
        self.docker.ok(&["run", "-d", "--name", "old", image, "sleep", "100000"])?;
        Ok(())
    }

    /// Asks and gives what each said, `-` for nobody.
    fn ask(&self, asker: &str, targets: &[String]) -> Result<BTreeMap<String, String>> {
        let docker = if asker == "far" { &self.far_docker } else { &self.docker };
        let mut words = vec!["exec", asker, "/probe", "reach"];
        words.extend(targets.iter().map(String::as_str));
        let said = docker.ok(&words)?;
        let pairs = said.lines().filter_map(|line| line.split_once(' '));
        Ok(pairs.map(|(target, answer)| (target.to_owned(), answer.to_owned())).collect())
    }

    /// The table as it is.
    fn matrix(&self) -> Result<String> {
        let all: Vec<_> = TARGETS.iter().chain([&OUTSIDE]).collect();
        let mut rows = Vec::new();
        let mut columns: Vec<Vec<String>> = Vec::new();
        for (asker, _) in ASKERS {
            let targets: Vec<String> = all.iter().flat_map(|target| ways(target)).collect();
            let said = self.ask(asker, &targets)?;
            let mut ways: Vec<Vec<String>> = all.iter().map(|target| ways(target)).collect();
            if asker == "old" {
                // The default network has no IPv6.
                for ways in &mut ways {
                    ways.retain(|way| !way.contains('['));
                }
            }
            let verdicts = ways.iter().map(|ways| verdict(ways, &said));
            columns.push(verdicts.collect());
        }
        for (at, target) in all.iter().enumerate() {
            let cells = columns.iter().filter_map(|column| column.get(at)).map(String::as_str);
            rows.push(format!("| {} | {} |", target.0, cells.collect::<Vec<_>>().join(" | ")));
        }
        let names = ASKERS.map(|(_, name)| name).join(" | ");
        let mut table = format!("| to, from | {names} |\n|---|{}\n", "---|".repeat(ASKERS.len()));
        for row in rows {
            let _ = writeln!(table, "{row}");
        }
        Ok(table)
    }
}

fn ways((_, v4, v6, udp): &(&str, &str, &str, bool)) -> Vec<String> {
    let protocols = if *udp { &["tcp", "udp"][..] } else { &["tcp"] };
    let addresses = [v4, v6].into_iter().filter(|address| !address.is_empty());
    addresses.flat_map(|address| protocols.iter().map(move |it| format!("{it}/{address}"))).collect()
}

/// One word when all ways agree, else those that lead there.
fn verdict(ways: &[String], said: &BTreeMap<String, String>) -> String {
    let reached: Vec<&str> = ways
        .iter()
        .filter(|way| said.get(*way).is_some_and(|answer| answer != "-"))
        .map(String::as_str)
        .collect();
    match reached.len() {
        0 => "–".to_owned(),
        count if count == ways.len() => "yes".to_owned(),
        _ => reached.join(" "),
    }
}

#[test]
#[ignore = "boots a machine: cargo berth test"]
fn every_pair_is_as_documented_before_and_after_a_crash_of_the_agent() -> Result<()> {
    let mut lab = lab("data-path")?;
    lab.fill()?;
    let mut cases = Cases::default();
    for when in ["before", "after"] {
        cases.case(&format!("the table, {when} the crash"), || {
            let table = lab.matrix()?;
            eprintln!("{table}");
            ensure!(DOCS.contains(&table), "docs/networking.md shows another table");
            Ok(())
        });
        cases.case(&format!("source addresses, {when} the crash"), || sources(&lab));
        if when == "before" {
            lab.site.crash_agent(&mut lab.here)?;
        }
    }
    cases.case("containers reach no port of the machine that is not published", || scans(&lab));
    cases.finish(&mut lab.here)
}

/// A published port shows its container the client's own address; containers are seen as the gateway: the answer to a
/// peer would pass the machine by, and the one to another network would be dropped as a direct packet.
fn sources(lab: &Lab) -> Result<()> {
    let saw = |asker: &str, target: &str| -> Result<String> {
        let said = lab.ask(asker, &[target.to_owned()])?;
        let text = said.get(target).cloned().unwrap_or_default();
        Ok(text.strip_prefix("web saw ").unwrap_or(&text).to_owned())
    };
    for (asker, target, expected) in [
        ("far", "tcp/198.51.100.1:8080", "198.51.100.2"),
        ("far", "udp/[2001:db8:c::1]:8080", "2001:db8:c::2"),
        ("other", "tcp/198.51.100.1:8080", "10.20.1.1"),
        ("other", "tcp/[2001:db8:c::1]:8080", "fd20:1::1"),
        ("peer", "udp/198.51.100.1:8080", "10.20.1.1"),
        ("peer", "tcp/10.20.1.10:80", "10.20.1.11"),
    ] {
        let seen = saw(asker, target)?;
        ensure!(seen == expected, "{asker} to {target} is seen as {seen:?}, not {expected}");
    }
    Ok(())
}

/// Ports of one scan: more would take longer than a command may.
const CHUNK: usize = 8192;

/// Every TCP port of the machine at the container's gateway, and those around what is open at other addresses a
/// container might try.
fn scans(lab: &Lab) -> Result<()> {
    for (asker, address, first, last, open) in [
        ("web", "10.20.1.1", 1, 65535, "53 8080 8090"),
        ("web", "198.51.100.1", 2000, 9000, "8060 8080 8090"),
        ("web", "fd20:1::1", 2000, 9000, "8080 8090"),
        ("in2", "10.20.3.1", 2000, 9000, ""),
        ("old", "172.17.0.1", 2000, 9000, "8080 8090"),
        // Another network's gateway: packets to it do not come in by its own bridge.
        ("web", "10.20.2.1", 2000, 9000, ""),
    ] {
        let mut found = Vec::new();
        for from in (first..=last).step_by(CHUNK) {
            let to = (from + CHUNK - 1).min(last);
            let ports = [from.to_string(), to.to_string()];
            let scan = ["exec", asker, "/probe", "scan", address, &ports[0], &ports[1]];
            found.extend(lab.docker.ok(&scan)?.split_whitespace().map(str::to_owned));
        }
        let found = found.join(" ");
        ensure!(found == open, "{asker} finds {found:?} open at {address}, not {open:?}");
    }
    Ok(())
}

const FALSE_V4: &str = "ip addr del 10.20.1.66/24 dev eth0; ip addr add 10.20.1.99/24 dev eth0; \
     ip route replace default via 10.20.1.1";
const TRUE_V4: &str = "ip addr del 10.20.1.99/24 dev eth0; ip addr add 10.20.1.66/24 dev eth0; \
     ip route replace default via 10.20.1.1";
const FALSE_V6: &str = "ip -6 addr del fd20:1::66/64 dev eth0; ip -6 addr add fd20:1::99/64 dev eth0";
const TRUE_V6: &str = "ip -6 addr del fd20:1::99/64 dev eth0; ip -6 addr add fd20:1::66/64 dev eth0";
const FALSE_MAC: &str = "ip link set eth0 address 02:42:0a:14:01:63";
const TRUE_MAC: &str = "ip link set eth0 address 02:42:0a:14:01:42; ip route replace default via 10.20.1.1";
const STEAL: &str = "ip addr add 10.20.1.10/32 dev lo; ip -6 addr add fd20:1::10/128 dev eth0";
const GIVE_BACK: &str = "ip addr del 10.20.1.10/32 dev lo; ip -6 addr del fd20:1::10/128 dev eth0";

impl Lab {
    fn reaches(&self, asker: &str, target: &str) -> Result<bool> {
        let said = self.ask(asker, &[target.to_owned()])?;
        Ok(said.get(target).is_some_and(|answer| answer != "-"))
    }

    fn attack(&self, script: &str) -> Result<()> {
        self.docker.ok(&["exec", "bad", "sh", "-c", script]).map(drop)
    }

    /// Takes the machine's rules away. The next change of a network or container brings all of them back.
    fn disarm(&self) -> Result<()> {
        for family in ["bridge", "inet"] {
            self.docker.ok(&["exec", "root", "/probe", "defenceless", family])?;
        }
        Ok(())
    }

    /// Asks with the rules in force, or without them.
    fn reaches_when(&self, defended: bool, asker: &str, target: &str) -> Result<bool> {
        if !defended {
            self.disarm()?;
        }
        self.reaches(asker, target)
    }

    /// Whether the attacker reaches a peer while it pretends to be another.
    fn pretend(&self, defended: bool, begin: &str, end: &str, target: &str) -> Result<bool> {
        self.attack(begin)?;
        let reached = self.reaches_when(defended, "bad", target)?;
        self.attack(end)?;
        Ok(reached)
    }

    /// Whether a peer that asks for a container which is away gets the attacker.
    fn steal(&self, defended: bool, target: &str) -> Result<bool> {
        self.attack(STEAL)?;
        self.docker.ok(&["network", "disconnect", "front", "web"])?;
        let stolen = self.reaches_when(defended, "peer", target)?;
        self.docker.ok(&[
            "network",
            "connect",
            "--ip",
            "10.20.1.10",
            "--ip6",
            "fd20:1::10",
            "front",
            "web",
        ])?;
        self.attack(GIVE_BACK)?;
        Ok(stolen)
    }
}

/// Every attack of a container that may do to its own interface what it wants.
fn attacks(lab: &Lab, defended: bool, cases: &mut Cases) {
    let what = if defended { "with the defence" } else { "without it" };
    let mut attack = |name: &str, run: &dyn Fn() -> Result<bool>| {
        cases.case(&format!("{name}, {what}"), || {
            let reached = run()?;
            ensure!(reached != defended, "it {}", if reached { "succeeds" } else { "fails" });
            Ok(())
        });
    };
    let (v4, v6) = ("tcp/10.20.1.11:80", "tcp/[fd20:1::11]:80");
    attack("a false IPv4 sender", &|| lab.pretend(defended, FALSE_V4, TRUE_V4, v4));
    attack("a false IPv6 sender", &|| lab.pretend(defended, FALSE_V6, TRUE_V6, v6));
    attack("a false Ethernet address", &|| lab.pretend(defended, FALSE_MAC, TRUE_MAC, v4));
    attack("an ARP answer for another's address", &|| lab.steal(defended, "tcp/10.20.1.10:80"));
    attack("a neighbour advertisement for another's address", &|| lab.steal(defended, "tcp/[fd20:1::10]:80"));
    attack("the API from a container", &|| lab.reaches_when(defended, "bad", "tcp/10.20.1.1:2376"));
    cases.case(&format!("the attacker under its own addresses, {what}"), || {
        ensure!(lab.reaches("bad", v4)? && lab.reaches("bad", v6)?, "it reaches nobody");
        Ok(())
    });
}

#[test]
#[ignore = "boots a machine: cargo berth test"]
fn false_senders_reach_nobody_and_without_the_defence_they_do() -> Result<()> {
    let mut lab = lab("spoofing")?;
    lab.fill()?;
    let image = lab.site.image.clone();
    let run = [
        "run",
        "-d",
        "--name",
        "bad",
        "--network",
        "front",
        "--cap-add",
        "NET_ADMIN",
        "--cap-add",
        "NET_RAW",
    ];
    let own = ["--ip", "10.20.1.66", "--ip6", "fd20:1::66", &image, "/probe", "serve", "80"];
    lab.docker.ok(&[&run[..], &own[..]].concat())?;
    let root =
        ["run", "-d", "--name", "root", "--privileged", "--network", "host", &image, "sleep", "100000"];
    lab.docker.ok(&root)?;
    let mut cases = Cases::default();
    attacks(&lab, true, &mut cases);
    attacks(&lab, false, &mut cases);
    cases.finish(&mut lab.here)
}
