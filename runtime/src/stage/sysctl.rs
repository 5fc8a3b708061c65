//! Kernel parameters of the container's own namespaces.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use super::failure::{Step, failure};
use crate::plan::Failure;

/// Longest value in bytes.
const VALUE_MAX: usize = 1024;

/// Whether a parameter belongs to a namespace, so that setting it leaves the host alone.
pub(crate) fn is_namespaced(key: &str) -> bool {
    const EXACT: [&str; 10] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
        "kernel.hostname",
        "kernel.domainname",
    ];
    EXACT.contains(&key) || key.starts_with("net.") || key.starts_with("fs.mqueue.")
}

/// The path below `/proc/sys` of a key; none when the key is not one. A name of an interface may hold a dot, then
/// slashes separate the parts (`net/ipv4/conf/eth0.1/forwarding`).
fn path_of(key: &str) -> Option<String> {
    let path = if key.contains('/') { key.to_owned() } else { key.replace('.', "/") };
    let legal = |part: &str| {
        let bytes = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        !part.is_empty() && part != "." && part != ".." && part.bytes().all(bytes)
    };
    path.split('/').all(legal).then(|| format!("sys/{path}"))
}

/// Writes the parameters below `procfs`, the container's own, without crossing a mount.
pub(super) fn apply(sysctls: &[(String, String)], procfs: Option<OwnedFd>) -> Result<(), Failure> {
    if sysctls.is_empty() {
        return Ok(());
    }
    let procfs = procfs.ok_or_else(|| failure("sysctl", "no /proc", Errno::NOENT))?;
    for (key, value) in sysctls {
        let dotted = key.replace('/', ".");
        let path = path_of(key).filter(|_| is_namespaced(&dotted));
        let path = path.ok_or_else(|| failure("sysctl", key, Errno::PERM))?;
        if value.len() > VALUE_MAX || value.contains(['\n', '\0']) {
            return Err(failure("sysctl", key, Errno::INVAL));
        }
        let how = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = openat2(procfs.as_fd(), &path, flags, Mode::empty(), how).step("sysctl", key)?;
        rustix::io::write(&file, value.as_bytes()).step("sysctl", format!("{key} = {value}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_parameters_of_namespaces_pass() {
        for key in ["net.ipv4.ip_forward", "kernel.shmmax", "fs.mqueue.msg_max"] {
            assert!(is_namespaced(key), "{key}");
        }
        for key in
            ["kernel.core_pattern", "vm.swappiness", "fs.file-max", "user.max_user_namespaces", "net", ""]
        {
            assert!(!is_namespaced(key), "{key}");
        }
    }

    #[test]
    fn keys_become_paths_and_cannot_climb() {
        let cases = [
            ("net.core.somaxconn", Some("sys/net/core/somaxconn")),
            ("net/ipv4/conf/eth0.1/forwarding", Some("sys/net/ipv4/conf/eth0.1/forwarding")),
            ("net/../kernel/core_pattern", None),
            ("net..core", None),
            ("net.core\n.x", None),
            ("net/", None),
            ("", None),
        ];
        for (key, expected) in cases {
            assert_eq!(path_of(key).as_deref(), expected, "{key:?}");
        }
    }

    #[test]
    fn nothing_to_set_needs_no_proc() {
        assert!(apply(&[], None).is_ok());
    }
}
