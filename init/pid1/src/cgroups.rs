//! The control groups below which everything runs: `/init`, `/agent`, `/launcher` and `/docker/<id>`.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use crate::kmsg::warn;
use crate::mounts::make_folder;

const ROOT: &str = "/sys/fs/cgroup";
/// What containers are limited by.
const CONTROLLERS: &[&str] = &["cpu", "memory", "io", "pids", "cpuset"];
/// Memory the agent keeps however tight it gets, so that the API answers. Unit: bytes.
const AGENT_MEMORY_MIN: &str = "33554432";
/// The group of all containers.
pub(crate) const CONTAINERS: &str = "docker";

/// Makes the groups and moves this process to its own.
pub(crate) fn set_up() {
    delegate(ROOT);
    for name in ["init", "agent", "launcher", CONTAINERS] {
        if let Err(error) = make_folder(&format!("{ROOT}/{name}"), 0o755) {
            warn!("no control group {name}: {error}, continuing");
        }
    }
    delegate(&format!("{ROOT}/{CONTAINERS}"));
    write("init/cgroup.procs", "1");
    write("agent/memory.min", AGENT_MEMORY_MIN);
}

/// One controller at a time: a kernel that lacks one shall still give the others.
fn delegate(folder: &str) {
    for controller in CONTROLLERS {
        if let Err(error) =
            std::fs::write(format!("{folder}/cgroup.subtree_control"), format!("+{controller}"))
        {
            warn!("no controller {controller} in {folder}: {error}, continuing");
        }
    }
}

fn write(file: &str, value: &str) {
    if let Err(error) = std::fs::write(format!("{ROOT}/{file}"), value) {
        warn!("{file} does not become {value}: {error}, continuing");
    }
}

/// The folder of a service's group, for `CLONE_INTO_CGROUP`.
pub(crate) fn open(name: &str) -> io::Result<OwnedFd> {
    Ok(File::open(format!("{ROOT}/{name}"))?.into())
}

/// Kills every process in a group and below it.
pub(crate) fn kill(name: &str) -> io::Result<()> {
    std::fs::write(format!("{ROOT}/{name}/cgroup.kill"), "1")
}
