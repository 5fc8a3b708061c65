//! Which devices a container may open: Docker's default set, what was asked for, everything when privileged.
//!
//! The user namespace already forbids making nodes, and only chosen nodes are bound into `/dev`; the filter on the
//! control group is the second lock, and the only one for a container with the host's user namespace.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use berth_runtime::cgroup::devices::{ALL, Access, DEFAULT, Kind, Rule, restrict};

use super::StartError;
use crate::store::Record;

/// Puts the filter on a container's group, before anything runs in it.
pub(super) fn confine(group: BorrowedFd<'_>, record: &Record) -> Result<(), StartError> {
    if record.host_config.privileged {
        return Ok(());
    }
    let rules = rules(record).map_err(StartError::failed)?;
    restrict(group, &rules).map_err(StartError::io("device filter"))
}

/// Directories of `/dev` that a container has of its own.
const OWN_FOLDERS: [&str; 4] = ["pts", "shm", "mqueue", "fd"];
/// Nodes that every container has already, or has its own of.
const OWN_NODES: [&str; 8] = ["console", "ptmx", "null", "zero", "full", "random", "urandom", "tty"];
/// Folders of `/dev` above one another.
const DEPTH_MAX: usize = 4;
/// Most nodes given to a privileged container: each is a descriptor sent to the launcher.
const NODES_MAX: usize = 80;

/// Lets a container's root open a node it was given: the node's owner, the host's root, is nobody there, and no file
/// system for nodes can shift owners. Which containers may open it is decided by the filter on their control groups;
/// nobody but containers and the machine itself is there.
pub(super) fn unlock(node: &OwnedFd, permissions: &str) -> std::io::Result<()> {
    let wants = |letter: char| permissions.is_empty() || permissions.contains(letter);
    let bits = if wants('r') { 0o444 } else { 0 } | if wants('w') { 0o222 } else { 0 };
    let mode = rustix::fs::fstat(node)?.st_mode & 0o7777;
    if mode & bits != bits {
        // A descriptor for looking only cannot change a mode, its name in procfs can.
        let path = format!("/proc/self/fd/{}", node.as_raw_fd());
        rustix::fs::chmod(path, rustix::fs::Mode::from_raw_mode(mode | bits))?;
    }
    Ok(())
}

/// The machine's devices, for a privileged container. Without those of virtual terminals, which are many and show
/// nothing on a machine without a screen.
pub(super) fn of_the_machine() -> Vec<PathBuf> {
    let mut found = Vec::new();
    collect(Path::new("/dev"), 0, &mut found);
    found.sort();
    found.truncate(NODES_MAX);
    found
}

fn collect(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let name = name.to_string_lossy();
        let Ok(kind) = entry.file_type() else { continue };
        let own = depth == 0 && (OWN_FOLDERS.contains(&&*name) || OWN_NODES.contains(&&*name));
        if own || is_virtual_terminal(&name) {
            continue;
        }
        if kind.is_dir() && depth < DEPTH_MAX {
            collect(&path, depth + 1, found);
        } else if kind.is_char_device() || kind.is_block_device() {
            found.push(path);
        }
    }
}

/// `tty7`, `vcs1`, `vcsa`; not `ttyS0`.
fn is_virtual_terminal(name: &str) -> bool {
    let number = |rest: &str| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit());
    name.starts_with("vcs") || name.strip_prefix("tty").is_some_and(number)
}

fn rules(record: &Record) -> Result<Vec<Rule>, String> {
    let host = &record.host_config;
    let mut rules = DEFAULT.to_vec();
    for device in host.devices.iter().flatten() {
        rules.push(node(Path::new(&device.path_on_host), &device.cgroup_permissions)?);
    }
    for text in host.device_cgroup_rules.iter().flatten() {
        rules.push(parse(text)?);
    }
    Ok(rules)
}

/// The rule that opens one node of the host.
fn node(path: &Path, permissions: &str) -> Result<Rule, String> {
    let shown = path.display();
    let metadata = std::fs::symlink_metadata(path).map_err(|error| {
        format!("error gathering device information while adding custom device \"{shown}\": {error}")
    })?;
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => Kind::Character,
        kind if kind.is_block_device() => Kind::Block,
        _ => return Err(format!("error gathering device information: \"{shown}\" is not a device node")),
    };
    let (major, minor) = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
    let permissions = if permissions.is_empty() { "rwm" } else { permissions };
    let access = access(permissions).ok_or_else(|| format!("invalid device mode: {permissions}"))?;
    Ok(Rule { allow: true, kind, major: Some(major), minor: Some(minor), access })
}

/// Docker's `TYPE MAJOR:MINOR ACCESS`, such as `c 189:* rwm`.
fn parse(text: &str) -> Result<Rule, String> {
    let refuse = || format!("invalid device cgroup rule format: '{text}'");
    let mut words = text.split_ascii_whitespace();
    let (Some(kind), Some(numbers), Some(permissions), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(refuse());
    };
    let kind = match kind {
        "a" => Kind::Any,
        "b" => Kind::Block,
        "c" => Kind::Character,
        _ => return Err(refuse()),
    };
    let number = |text: &str| match text {
        "*" => Ok(None),
        text => text.parse::<u32>().map(Some).map_err(|_| refuse()),
    };
    let (major, minor) = numbers.split_once(':').ok_or_else(refuse)?;
    let access = access(permissions).ok_or_else(refuse)?;
    Ok(Rule { kind, major: number(major)?, minor: number(minor)?, access, ..ALL })
}

/// One to three of `r`, `w`, `m`.
fn access(text: &str) -> Option<Access> {
    let legal = !text.is_empty() && text.len() <= 3 && text.bytes().all(|byte| b"rwm".contains(&byte));
    legal.then(|| Access { read: text.contains('r'), write: text.contains('w'), mknod: text.contains('m') })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn screens_that_are_not_there_are_left_out() {
        for (name, left_out) in [
            ("tty1", true),
            ("tty63", true),
            ("vcsa1", true),
            ("tty", false),
            ("ttyS0", false),
            ("loop0", false),
        ] {
            assert_eq!(is_virtual_terminal(name), left_out, "{name}");
        }
        let found = of_the_machine();
        assert!(!found.contains(&PathBuf::from("/dev/null")) && found.len() <= NODES_MAX);
    }

    #[test]
    fn rules_are_read_as_docker_writes_them() {
        let rule = parse("c 189:* rw").expect("a rule");
        assert_eq!((rule.kind, rule.major, rule.minor), (Kind::Character, Some(189), None));
        assert_eq!(rule.access, Access { read: true, write: true, mknod: false });
        assert_eq!(parse("a *:* rwm"), Ok(ALL));
        for text in
            ["", "c", "c 1:3", "d 1:3 r", "c 1 r", "c x:3 r", "c 1:3 rx", "c 1:3 rwmr", "c 1:3 r more"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_node_of_the_host_gives_its_numbers() {
        let rule = node(Path::new("/dev/null"), "").expect("a device");
        assert_eq!((rule.kind, rule.major, rule.minor), (Kind::Character, Some(1), Some(3)));
        assert_eq!(rule.access, Access::ALL);
        assert!(node(Path::new("/"), "rwm").is_err());
        assert!(node(Path::new("/dev/null"), "x").is_err());
    }
}
