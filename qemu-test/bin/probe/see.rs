//! Verbs that show what a container sees of itself.

use super::work::print;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

/// The lines of /proc/self/status that say what a process may do.
const STATUS_KEYS: [&str; 12] = [
    "Uid",
    "Gid",
    "Groups",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
    "NSpid",
];

fn read(path: &str) -> Result<String, String> {
    let bytes = fs::read(path).map_err(|error| format!("{path}: {error}"))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

pub(crate) fn files(paths: &[&str]) -> Result<u8, String> {
    for path in paths {
        print(read(path)?.trim_end())?;
    }
    Ok(0)
}

fn status_lines(keys: &[&str]) -> Result<Vec<String>, String> {
    let text = read("/proc/self/status")?;
    let wanted = |line: &&str| line.split_once(':').is_some_and(|(key, _)| keys.contains(&key));
    Ok(text
        .lines()
        .filter(wanted)
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect())
}

pub(crate) fn status() -> Result<u8, String> {
    print(&status_lines(&STATUS_KEYS)?.join("\n"))
}

pub(crate) fn identity() -> Result<u8, String> {
    print(&status_lines(&["Uid", "Gid", "Groups"])?.join("\n"))
}

pub(crate) fn environment() -> Result<u8, String> {
    let mut variables: Vec<String> = std::env::vars_os()
        .map(|(name, value)| format!("{}={}", name.to_string_lossy(), value.to_string_lossy()))
        .collect();
    variables.sort();
    print(&variables.join("\n"))
}

/// One argument a line, so that spaces inside show.
pub(crate) fn arguments(words: &[&str]) -> Result<u8, String> {
    print(&words.join("\n"))
}

pub(crate) fn working_directory() -> Result<u8, String> {
    let folder = std::env::current_dir().map_err(|error| error.to_string())?;
    print(&folder.display().to_string())
}

/// `/dev` with kind, numbers and mode.
pub(crate) fn devices() -> Result<u8, String> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/dev").map_err(|error| error.to_string())?.flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        let kind = match metadata.file_type() {
            kind if kind.is_char_device() => "c",
            kind if kind.is_block_device() => "b",
            kind if kind.is_dir() => "d",
            kind if kind.is_symlink() => "l",
            _ => "-",
        };
        let (major, minor) = (metadata.rdev() >> 8 & 0xfff, metadata.rdev() & 0xff);
        all.push(format!(
            "{} {kind} {major}:{minor} {:o}",
            entry.file_name().to_string_lossy(),
            metadata.mode() & 0o7777
        ));
    }
    all.sort();
    print(&all.join("\n"))
}

/// Names with mode, owner and size.
pub(crate) fn list(path: &str) -> Result<u8, String> {
    let mut all = Vec::new();
    for entry in fs::read_dir(path).map_err(|error| format!("{path}: {error}"))?.flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        let (mode, uid, gid) = (metadata.mode(), metadata.uid(), metadata.gid());
        all.push(format!(
            "{:o} {uid}:{gid} {} {}",
            mode,
            metadata.size(),
            entry.file_name().to_string_lossy()
        ));
    }
    all.sort();
    print(&all.join("\n"))
}

/// Sockets of this network namespace, and interfaces with their addresses' files.
pub(crate) fn sockets() -> Result<u8, String> {
    for path in ["/proc/net/dev", "/proc/net/tcp", "/proc/net/tcp6", "/proc/net/udp", "/proc/net/route"] {
        print(path)?;
        // A kernel without IPv6 has no tcp6.
        print(read(path).unwrap_or_default().trim_end())?;
    }
    Ok(0)
}
