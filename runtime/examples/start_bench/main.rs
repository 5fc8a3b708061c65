//! Starts the same container in several ways, in turn, and prints how long each took: the launcher as the agent uses
//! it, OCI runtimes by their command lines, and bare system calls that make the same namespaces and mounts.
//!
//! For a machine of its own: needs root, cgroup2 and a directory on a file system that can shift owners.
//! `start_bench BUSYBOX DIRECTORY COUNT PACE_MS [RUNTIME]…`; prints `@@ name step p50 p99` in microseconds.

mod berth;
mod floor;
mod oci;

use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use berth_sys::clone::SingleThreaded;

/// Where control groups are.
const GROUPS: &str = "/sys/fs/cgroup";
/// First host id of the containers.
const BASE: u32 = 200_000;
/// How many ids each has.
const COUNT: u32 = 65_536;

/// What one start took: until the program ran, and until it was reaped and all of it gone.
#[derive(Clone, Copy, Debug)]
struct Took {
    started: Duration,
    gone: Duration,
}

/// A way of starting a container.
trait Contender {
    /// As it stands in the output.
    fn name(&self) -> String;

    /// It takes its turn in every so many rounds.
    fn every(&self) -> u32 {
        1
    }

    /// Makes what an engine has ready ahead of a start.
    fn prepare(&mut self, round: u32);

    /// Starts `/bin/true`, waits for its end and removes what is left.
    fn start(&mut self, round: u32) -> Took;
}

fn open_dir(path: &Path) -> OwnedFd {
    use rustix::fs::{Mode, OFlags};
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

/// Two layers, of which the lower holds busybox.
fn make_layers(busybox: &Path, dir: &Path) -> [PathBuf; 2] {
    let layers = [dir.join("layer0"), dir.join("layer1")];
    for sub in ["bin", "etc", "proc", "sys", "dev", "tmp"] {
        std::fs::create_dir_all(layers[0].join(sub)).unwrap();
    }
    std::fs::create_dir_all(&layers[1]).unwrap();
    std::fs::copy(busybox, layers[0].join("bin/busybox")).unwrap();
    std::fs::set_permissions(layers[0].join("bin/busybox"), PermissionsExt::from_mode(0o755)).unwrap();
    symlink("busybox", layers[0].join("bin/true")).unwrap();
    layers
}

/// The launcher's short-lived helpers are children of its maker, as they are init's.
fn reap() {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    while let Ok(Some(_)) = waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {}
}

fn print(name: &str, step: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |part: f64| {
        let last = times.len() - 1;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a few hundred"
        )]
        let place = (last as f64 * part).round() as usize;
        times[place.min(last)].as_micros()
    };
    println!("@@ {name} {step} {} {}", at(0.5), at(0.99));
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, busybox, dir, count, pace, runtimes @ ..] = args.as_slice() else {
        panic!("see the first lines")
    };
    let (count, pace): (u32, u64) = (count.parse().unwrap(), pace.parse().unwrap());
    let dir = PathBuf::from(dir);
    let layers = make_layers(Path::new(busybox), &dir);
    let single = SingleThreaded::check().unwrap();
    let mut contenders: Vec<Box<dyn Contender>> = vec![
        Box::new(floor::Floor::new(single, &dir, &layers)),
        Box::new(berth::Berth::new(single, &dir, &layers)),
    ];
    for runtime in runtimes {
        contenders.push(Box::new(oci::Oci::new(runtime, oci::How::CreateStart, &dir, &layers[0])));
        contenders.push(Box::new(oci::Oci::new(runtime, oci::How::Run, &dir, &layers[0])));
    }
    // A start of each before the count: files come into the page cache.
    let mut all: Vec<Vec<Took>> = contenders.iter().map(|_| Vec::new()).collect();
    for round in 0..=count {
        for (contender, times) in contenders.iter_mut().zip(&mut all) {
            if round % contender.every() != 0 {
                continue;
            }
            contender.prepare(round);
            std::thread::sleep(Duration::from_millis(pace));
            reap();
            let took = contender.start(round);
            if round > 0 {
                times.push(took);
            }
        }
    }
    for (contender, times) in contenders.iter().zip(all) {
        print(&contender.name(), "started", times.iter().map(|took| took.started).collect());
        print(&contender.name(), "gone", times.iter().map(|took| took.gone).collect());
    }
    // The launcher is a child that ends with its maker's socket; nothing else is left.
    berth_sys::process::exit_now(0);
}

/// Time since `begun`.
fn since(begun: Instant) -> Duration {
    begun.elapsed()
}
