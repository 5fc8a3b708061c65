//! Starts containers through the launcher and checks what they see: this process plays init and agent.
//!
//! Needs root, a static busybox and an empty directory on a file system that can shift owners (ext4).
//! `try_launch BUSYBOX DIRECTORY CGROUP2_DIRECTORY [CASE]`

#![allow(clippy::assigning_clones, reason = "a check is read, not timed")]

mod bench;
mod checks;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use berth_runtime::client::Launcher;
use berth_runtime::launcher::{Host, serve};
use berth_sys::clone::{Options, SingleThreaded, spawn};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use bench::{Bench, open_dir};

struct Quiet;

impl Host for Quiet {
    fn register(&mut self, _name: &str, _pid: i32, _pidfd: BorrowedFd<'_>) -> std::io::Result<()> {
        Ok(())
    }

    fn log(&mut self, line: &str) {
        eprintln!("launcher: {line}");
    }
}

fn make_layers(busybox: &Path, dir: &Path) {
    let lower = dir.join("layer0");
    for sub in ["bin", "etc", "root", "tmp", "home/app", "data/sub"] {
        std::fs::create_dir_all(lower.join(sub)).unwrap();
    }
    std::fs::set_permissions(lower.join("tmp"), PermissionsExt::from_mode(0o1777)).unwrap();
    std::fs::copy(busybox, lower.join("bin/busybox")).unwrap();
    for name in
        "sh ls cat id hostname mount ps sleep echo grep stat wc tr sort touch rm mkdir tty kill ln test \
        readlink cut head unshare nc ulimit sed find dd env dmesg chown umount mknod stty pwd true sync"
            .split_ascii_whitespace()
    {
        symlink("busybox", lower.join("bin").join(name)).unwrap();
    }
    std::fs::write(
        lower.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n",
    )
    .unwrap();
    std::fs::write(lower.join("etc/group"), "root:x:0:\napp:x:1000:\nvideo:x:44:app\n").unwrap();
    std::fs::write(lower.join("data/sub/file"), "from image\n").unwrap();
    std::fs::write(lower.join("below"), "lower\n").unwrap();
    std::fs::write(lower.join("etc/noexec"), "#!/bin/sh\n").unwrap();
    std::fs::write(lower.join("bin/badinterp"), "#!/no/such\n").unwrap();
    std::fs::set_permissions(lower.join("bin/badinterp"), PermissionsExt::from_mode(0o755)).unwrap();
    let upper = dir.join("layer1");
    std::fs::create_dir_all(&upper).unwrap();
    std::fs::write(upper.join("above"), "upper\n").unwrap();
    for (index, layer) in (2..127).map(|index| (index, dir.join(format!("layer{index}")))) {
        std::fs::create_dir_all(&layer).unwrap();
        std::fs::write(layer.join(format!("n{index}")), "").unwrap();
    }
}

fn connect_to_launcher(single: SingleThreaded, dir: &Path) -> (Launcher, Ending) {
    let path = dir.join("launcher.sock");
    let listener =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .unwrap();
    rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&listener, 8).unwrap();
    let child = || {
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable).unwrap();
        let error = serve(&listener, &mut Quiet).unwrap_err();
        eprintln!("launcher ended: {error}: {:?}", std::error::Error::source(&error));
        1
    };
    let child = spawn(single, Options::default(), child).unwrap();
    (Launcher::connect(&path).unwrap(), Ending(child.pidfd))
}

/// The launcher must not outlive its maker, also when that panics.
struct Ending(OwnedFd);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = rustix::process::pidfd_send_signal(&self.0, rustix::process::Signal::KILL);
    }
}

/// A group of checks.
type Checks = fn(&mut Bench);

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, busybox, dir, cgroups, rest @ ..] = args.as_slice() else { panic!("see the first lines") };
    let dir = PathBuf::from(dir);
    make_layers(Path::new(busybox), &dir);
    let single = SingleThreaded::check().unwrap();
    let (launcher, ending) = connect_to_launcher(single, &dir);
    let cgroups = open_dir(Path::new(cgroups));
    let mut bench = Bench { dir, cgroups, launcher, runs: 0, failed: 0 };
    let only = rest.first().map(String::as_str);
    let groups: &[(&str, Checks)] = &[
        ("view", checks::view),
        ("security", checks::security),
        ("users", checks::users),
        ("failures", checks::failures),
        ("hostile", checks::hostile),
        ("devices", checks::device_rules),
        ("mounts", checks::mounts),
        ("terminal", checks::terminal),
        ("exec", checks::exec),
        ("speed", checks::speed),
    ];
    for (name, run) in groups {
        if only.is_none_or(|only| only == *name) {
            println!("-- {name}");
            run(&mut bench);
        }
    }
    println!("{} wrong", bench.failed);
    drop(ending);
    std::process::exit(i32::from(bench.failed > 0));
}
