//! Containers that try to get out, on the image as it is released: each case is an attack that worked on some engine.
//!
//! `docs/security-tests.md` says which defence each case stands for and how it was seen to fail without it.

use anyhow::{Context, Result, ensure};
use qemu_test::Machine;
use qemu_test::docker::{Docker, Done};
use qemu_test::oci::{Builder, Layer};
use qemu_test::scenario::{Cases, Site};
use std::fs;

const PROBE: &str = env!("CARGO_BIN_EXE_probe");

/// A program of 96 bytes for the 32-bit ABI: `exit(7)` through `int 0x80`.
const FOREIGN: &[u8] = &[
    0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 3, 0, 1, 0, 0, 0, 0x54, 0x80, 4, 8,
    0x34, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x34, 0, 0x20, 0, 1, 0, 0, 0, 0, 0, 0, 0, // program header
    1, 0, 0, 0, 0, 0, 0, 0, 0, 0x80, 4, 8, 0, 0x80, 4, 8, 0x60, 0, 0, 0, 0x60, 0, 0, 0, 5, 0, 0, 0, 0, 0x10,
    0, 0, // mov eax, 1; mov ebx, 7; int 0x80
    0xb8, 1, 0, 0, 0, 0xbb, 7, 0, 0, 0, 0xcd, 0x80,
];

/// Places where an image may put something else than the folder that is expected, and what it may put there.
const PLACES: [&str; 5] = ["dev", "proc", "sys", "etc", "tmp"];
const TARGETS: [&str; 4] = ["/bin", "../../../../..", "/no/such/place", "SELF"];

/// How often a start races with somebody who swaps a folder for a link.
const RACES: usize = 6;

struct Yard<'a> {
    site: &'a Site,
    docker: Docker,
}

impl Yard<'_> {
    /// `docker run --rm OPTIONS IMAGE WORDS`.
    fn run(&self, options: &[&str], words: &[&str]) -> Result<Done> {
        self.docker.run(&[&["run", "--rm"], options, &[self.site.image.as_str()], words].concat())
    }

    fn probe(&self, options: &[&str], words: &[&str]) -> Result<String> {
        let done = self.run(options, &[&["/probe"], words].concat())?;
        ensure!(done.code == 0, "{words:?} gave {}: {}{}", done.code, done.stdout, done.stderr);
        Ok(done.stdout.trim_end().to_owned())
    }
}

#[test]
#[ignore = "boots a machine: cargo berth test"]
fn what_containers_try_fails() -> Result<()> {
    let site = Site::prepare(PROBE)?;
    let machine = Machine::new("adversary").config(site.machine_file(""));
    let mut guest = site.boot(&machine)?;
    let yard = Yard { site: &site, docker: site.docker(&guest)? };
    yard.docker.ok(&["pull", "-q", &site.image])?;
    yard.docker.ok(&["run", "-d", "--name", "steady", &site.image, "/probe", "sleep", "100000"])?;
    let mut cases = Cases::default();
    cases.case("T1 no descriptor of the host comes along", || descriptors(&yard));
    cases.case("T2 a user that only looks like a number is nobody", || users(&yard));
    cases.case("T3 inheritable and ambient capabilities are empty", || capabilities(&yard));
    cases.case("T4 a program that is its own interpreter harms nobody", || own_interpreter(&yard));
    cases.case("T5 a volume over /proc redirects no parameter", || fake_proc(&yard));
    cases.case("T6 a folder swapped for a link while a start mounts on it", || swapped(&yard));
    cases.case("T7 an image whose folders are links", || links(&yard));
    cases.case("T8 a working directory outside", || outside(&yard));
    cases.case("T9 control groups cannot be written, and bound", || control_groups(&yard));
    cases.case("T10 parameters of the host cannot be set", || parameters(&yard));
    cases.case("T35 sockets of rare families and foreign system calls", || families(&yard));
    cases.case("T36 no user namespace, no mount", || nested(&yard));
    cases.case("without the defences the same attacks get through", || defenceless(&yard));
    cases.case("the machine starts containers as ever", || {
        ensure!(yard.probe(&[], &["print", "fine"])? == "fine");
        Ok(())
    });
    cases.finish(&mut guest)
}

fn only_streams(text: &str) -> Result<()> {
    // The folder that is being read has a descriptor too.
    let own = |line: &str| line.contains(" /proc/") && line.ends_with("/fd");
    let stream = |line: &str| ["0 ", "1 ", "2 "].iter().any(|number| line.starts_with(number));
    let strange = text.lines().find(|line| !stream(line) && !own(line));
    ensure!(strange.is_none(), "{text}");
    Ok(())
}

fn descriptors(yard: &Yard<'_>) -> Result<()> {
    only_streams(&yard.probe(&[], &["fds"])?)?;
    only_streams(&yard.docker.ok(&["exec", "steady", "/probe", "fds"])?)
}

fn users(yard: &Yard<'_>) -> Result<()> {
    for user in ["0day", "+0", "0x0", "-1", "4294967296", "4294967295", "00000000000000000000x"] {
        let done = yard.run(&["--user", user], &["/probe", "id"])?;
        ensure!(done.code != 0, "{user} ran as {}", done.stdout);
    }
    let text = yard.probe(&["--user", "1000:1000"], &["id"])?;
    ensure!(text.starts_with("Uid: 1000 1000 1000 1000\nGid: 1000 1000 1000 1000"), "{text}");
    ensure!(!text.contains("Groups: 0"), "{text}");
    Ok(())
}

fn capabilities(yard: &Yard<'_>) -> Result<()> {
    let empty = |text: &str| {
        for key in ["CapInh: 0000000000000000", "CapAmb: 0000000000000000"] {
            ensure!(text.contains(key), "{text}");
        }
        Ok(())
    };
    for options in [&[][..], &["--user", "user"], &["--cap-add", "NET_RAW"]] {
        empty(&yard.probe(options, &["status"])?)?;
    }
    for options in [&[][..], &["--user", "user"]] {
        let words = [&["exec"], options, &["steady", "/probe", "status"]].concat();
        empty(&yard.docker.ok(&words)?)?;
    }
    Ok(())
}

fn own_interpreter(yard: &Yard<'_>) -> Result<()> {
    let layer = Layer::default().file("loop", 0o755, b"#!/proc/self/exe\n")?;
    let image = Builder::default().layer(layer)?.build()?;
    let name = yard.site.registry.push("loop:latest", &image)?;
    for _ in 0..5 {
        let done = yard.docker.run(&["run", "--rm", &name, "/loop"])?;
        ensure!(done.code != 0, "it ran");
    }
    // The program of the machine that is still there while a container is set up can be read by nobody.
    let script = "for n in $(seq 1 20); do (: > /proc/self/exe); done 2>&1 | grep -c 'Text file busy\\|denied\\|Read-only'";
    let done = yard.run(&[], &["sh", "-c", script])?;
    ensure!(done.stdout.trim() == "20", "{}", done.stdout);
    Ok(())
}

fn fake_proc(yard: &Yard<'_>) -> Result<()> {
    let before = yard.probe(&[], &["cat", "/proc/sys/net/ipv4/ip_default_ttl"])?;
    yard.docker.ok(&["volume", "create", "fake"])?;
    let make = "mkdir -p /v/sys/net/ipv4 && ln -s /dev/console /v/sys/net/ipv4/ip_default_ttl";
    ensure!(yard.run(&["-v", "fake:/v"], &["sh", "-c", make])?.code == 0);
    let options = ["-v", "fake:/proc", "--sysctl", "net.ipv4.ip_default_ttl=77"];
    let done = yard.run(&options, &["/probe", "print", "started"])?;
    // Either it is refused, or the parameter is that of the container's own namespace.
    ensure!(done.code != 0 || done.stdout.contains("started"), "{}{}", done.stdout, done.stderr);
    let set = yard
        .probe(&["--sysctl", "net.ipv4.ip_default_ttl=77"], &["cat", "/proc/sys/net/ipv4/ip_default_ttl"])?;
    ensure!(set == "77", "{set}");
    let after = yard.probe(&[], &["cat", "/proc/sys/net/ipv4/ip_default_ttl"])?;
    ensure!(before == after, "{before} became {after}");
    Ok(())
}

fn swapped(yard: &Yard<'_>) -> Result<()> {
    for volume in ["swap", "inner"] {
        yard.docker.ok(&["volume", "create", volume])?;
    }
    let script =
        "mkdir /v/a; ln -s /etc /v/b; while :; do mv /v/a /v/c; mv /v/b /v/a; mv /v/c /v/b; done 2>/dev/null";
    let image = yard.site.image.as_str();
    yard.docker.ok(&["run", "-d", "--name", "swapper", "-v", "swap:/v", image, "sh", "-c", script])?;
    let mut started = 0;
    for _ in 0..RACES {
        let options = ["-v", "swap:/v", "-v", "inner:/v/a"];
        let done = yard.run(&options, &["sh", "-c", "cat /proc/self/mountinfo"])?;
        if done.code == 0 {
            started += 1;
            // Wherever the link led, it led to a place inside.
            let points = done.stdout.lines().filter_map(|line| line.split(' ').nth(4));
            let strange = points.filter(|point| point.starts_with("/var/lib") || point.contains("/rw/fs"));
            ensure!(strange.count() == 0, "{}", done.stdout);
        }
        let masked = yard.run(&[], &["sh", "-c", "wc -c < /proc/kcore; wc -c < /proc/keys"])?;
        ensure!(masked.stdout.split_whitespace().all(|size| size == "0"), "{}", masked.stdout);
    }
    yard.docker.ok(&["rm", "-f", "swapper"])?;
    ensure!(started > 0, "not one of {RACES} starts came through");
    ensure!(
        yard.docker.ok(&["exec", "steady", "cat", "/etc/passwd"])?.contains("root"),
        "steady was touched"
    );
    Ok(())
}

fn links(yard: &Yard<'_>) -> Result<()> {
    let busybox = std::env::var_os("BERTH_BUSYBOX").context("BERTH_BUSYBOX is not set")?;
    let (busybox, probe) = (fs::read(busybox)?, fs::read(PROBE)?);
    for (number, place) in PLACES.iter().enumerate() {
        for (other, target) in TARGETS.iter().enumerate() {
            let target = if *target == "SELF" { place } else { target };
            let layer = Layer::default().folder("bin", 0o755)?.file("bin/busybox", 0o755, &busybox)?;
            let layer =
                layer.symlink("bin/sh", "busybox")?.file("probe", 0o755, &probe)?.symlink(place, target)?;
            let image = Builder::default().layer(layer)?.build()?;
            let name = yard.site.registry.push(&format!("links:{number}-{other}"), &image)?;
            let done = yard.docker.run(&["run", "--rm", &name, "/probe", "print", "started"])?;
            ensure!(
                done.stdout.contains("started") || !done.stderr.trim().is_empty(),
                "{place} -> {target}: neither started nor refused"
            );
        }
    }
    // What an ordinary container has is where it belongs.
    let mounts = yard.probe(&[], &["mounts"])?;
    for point in ["/proc", "/dev", "/sys", "/dev/pts", "/sys/fs/cgroup"] {
        ensure!(
            mounts.lines().any(|line| line.split(' ').nth(4) == Some(point)),
            "{point} is missing:\n{mounts}"
        );
    }
    Ok(())
}

fn outside(yard: &Yard<'_>) -> Result<()> {
    let mut places: Vec<String> = (3..=24).map(|number| format!("/proc/self/fd/{number}")).collect();
    places.extend(["/proc/1/cwd", "/proc/self/root/../.."].map(str::to_owned));
    let script = "pwd; ls -a . | head -n 40";
    for place in &places {
        let image = yard.site.image.as_str();
        let run = yard.docker.run(&["run", "--rm", "-w", place, image, "/bin/sh", "-c", script])?;
        let exec = yard.docker.run(&["exec", "-w", place, "steady", "/bin/sh", "-c", script])?;
        for done in [run, exec] {
            let text = format!("{}{}", done.stdout, done.stderr);
            ensure!(!text.contains("(unreachable)") && !done.stdout.contains("sbin"), "{place}: {text}");
            ensure!(!place.contains("/fd/") || done.code != 0, "{place}: {text}");
        }
    }
    Ok(())
}

fn control_groups(yard: &Yard<'_>) -> Result<()> {
    let text = yard.probe(&[], &["write-all", "/sys/fs/cgroup"])?;
    ensure!(text.contains("writable 0:") && !text.starts_with("tried 0"), "{text}");
    let text = yard.probe(&[], &["cat", "/proc/self/cgroup"])?;
    ensure!(text == "0::/", "{text}");
    let text = yard.probe(&["--pids-limit", "20"], &["fork", "64"])?;
    ensure!(text.contains("refused"), "{text}");
    Ok(())
}

fn parameters(yard: &Yard<'_>) -> Result<()> {
    let pattern = || yard.docker.ok(&["exec", "steady", "/probe", "cat", "/proc/sys/kernel/core_pattern"]);
    let before = pattern()?;
    for parameter in [
        "kernel.core_pattern=|/evil",
        "kernel/core_pattern=|/evil",
        "vm.swappiness=1",
        "user.max_user_namespaces=99",
        "net.ipv4/../../kernel/core_pattern=|/evil",
        "net/../kernel/core_pattern=|/evil",
        "kernel.shmmax.=1",
        "net.ipv4.ip_forward\n.x=1",
        "net.ipv4.ip_forward=1\nkernel.core_pattern=x",
    ] {
        let done = yard.run(&["--sysctl", parameter], &["/probe", "print", "started"])?;
        ensure!(done.code != 0, "{parameter:?} was taken");
    }
    let after = pattern()?;
    ensure!(before == after, "{before} became {after}");
    Ok(())
}

fn families(yard: &Yard<'_>) -> Result<()> {
    // AF_ALG, AF_RXRPC, AF_KEY, AF_VSOCK, NETLINK_XFRM, NETLINK_NETFILTER, AF_PACKET, AF_XDP
    for words in ["38 5 0", "33 2 0", "15 3 2", "40 1 0", "16 3 6", "16 3 12", "17 3 0", "44 3 0"] {
        let list: Vec<&str> = words.split(' ').collect();
        let text = yard.probe(&[], &[&["socket"], list.as_slice()].concat())?;
        ensure!(text.starts_with("refused"), "{words}: {text}");
    }
    ensure!(yard.probe(&[], &["socket", "2", "1", "0"])? == "made");
    let layer = Layer::default().file("foreign", 0o755, FOREIGN)?;
    let image = Builder::default().layer(layer)?.build()?;
    let name = yard.site.registry.push("foreign:latest", &image)?;
    let done = yard.docker.run(&["run", "--rm", &name, "/foreign"])?;
    ensure!(done.code != 7 && done.code != 0, "a system call of the 32-bit ABI went through");
    Ok(())
}

fn nested(yard: &Yard<'_>) -> Result<()> {
    for words in
        [&["unshare", "-U", "true"][..], &["unshare", "-m", "true"], &["mount", "-t", "tmpfs", "x", "/tmp"]]
    {
        let done = yard.run(&[], words)?;
        ensure!(done.code != 0, "{words:?} went through");
    }
    // Without the filter and with power over mounts there still is no user namespace below.
    let options = ["--security-opt", "seccomp=unconfined", "--cap-add", "SYS_ADMIN"];
    let done = yard.run(&options, &["unshare", "-U", "true"])?;
    ensure!(done.code != 0, "a nested user namespace was made");
    let done =
        yard.run(&options, &["sh", "-c", "echo 9 > /proc/sys/user/max_user_namespaces; unshare -U true"])?;
    ensure!(done.code != 0, "the bound on user namespaces was lifted");
    let done = yard.docker.run(&["exec", "steady", "unshare", "-U", "true"])?;
    ensure!(done.code != 0, "exec made a user namespace");
    Ok(())
}

/// Where filter, capabilities and user namespace are switched off by name, what fails above succeeds: so the cases see
/// a difference.
fn defenceless(yard: &Yard<'_>) -> Result<()> {
    ensure!(yard.probe(&["--privileged"], &["socket", "17", "3", "0"])? == "made", "T35");
    for words in [&["unshare", "-U", "true"][..], &["unshare", "-m", "true"]] {
        ensure!(yard.run(&["--privileged"], words)?.code == 0, "T36: {words:?} failed even then");
    }
    Ok(())
}
