//! What the kernel is told once: limits, sysctls, and the secrets of this machine kept on its disk.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::process::{Resource, Rlimit, setrlimit};

use crate::kmsg::warn;

/// Folder of what init keeps on the state disk.
const FOLDER: &str = "/var/lib/berth";
const SEED: &str = "/var/lib/berth/random-seed";
const MACHINE_ID: &str = "/var/lib/berth/machine-id";
/// The same for everybody to read, also when the state is in memory only.
const MACHINE_ID_COPY: &str = "/run/berth/machine-id";

/// Descriptors of init and of what it starts: log pipes of thousands of containers.
const OPEN_FILES: u64 = 1_048_576;

const SYSCTLS: &[(&str, &str)] = &[
    // The worst case of a machine without anybody at the console is a reboot.
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/pid_max", "4194304"),
    ("kernel/kptr_restrict", "1"),
    ("kernel/dmesg_restrict", "1"),
    ("kernel/unprivileged_bpf_disabled", "1"),
    ("kernel/sysrq", "0"),
    // Groups by session would undo nice values and know nothing of containers.
    ("kernel/sched_autogroup_enabled", "0"),
    ("kernel/keys/maxkeys", "20000"),
    ("kernel/keys/maxbytes", "2000000"),
    ("fs/inotify/max_user_instances", "8192"),
    ("fs/inotify/max_user_watches", "1048576"),
    ("fs/file-max", "9223372036854775807"),
    ("fs/nr_open", "1073741816"),
    ("fs/aio-max-nr", "1048576"),
    ("fs/protected_hardlinks", "1"),
    ("fs/protected_symlinks", "1"),
    ("fs/protected_fifos", "2"),
    ("fs/protected_regular", "2"),
    ("vm/max_map_count", "262144"),
    ("vm/overcommit_memory", "1"),
    ("net/ipv4/neigh/default/gc_thresh1", "1024"),
    ("net/ipv4/neigh/default/gc_thresh2", "8192"),
    ("net/ipv4/neigh/default/gc_thresh3", "16384"),
    ("net/ipv6/neigh/default/gc_thresh1", "1024"),
    ("net/ipv6/neigh/default/gc_thresh2", "8192"),
    ("net/ipv6/neigh/default/gc_thresh3", "16384"),
    ("net/core/somaxconn", "4096"),
];

/// Limits and sysctls.
pub(crate) fn apply() {
    for (name, value) in SYSCTLS {
        if let Err(error) = sysctl(name, value)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!("sysctl {name} does not become {value}: {error}, continuing");
        }
    }
    let both = |value| Rlimit { current: value, maximum: value };
    for (resource, limit) in [
        (Resource::Nofile, both(Some(OPEN_FILES))),
        (Resource::Nproc, both(None)),
        (Resource::Memlock, both(None)),
        (Resource::Core, Rlimit { current: Some(0), maximum: None }),
    ] {
        if let Err(error) = setrlimit(resource, limit) {
            warn!("limit {resource:?} is not set: {error}, continuing");
        }
    }
}

/// Sets one; `name` is a path below `/proc/sys`.
pub(crate) fn sysctl(name: &str, value: &str) -> io::Result<()> {
    fs::write(format!("/proc/sys/{name}"), value)
}

/// Folders, machine id and entropy, once the state is mounted on `/var`.
pub(crate) fn identity() {
    for folder in ["/var/lib", FOLDER] {
        if let Err(error) = crate::mounts::make_folder(folder, 0o711) {
            warn!("no folder {folder}: {error}, continuing");
        }
    }
    if let Err(error) = machine_id() {
        warn!("no machine id: {error}, continuing");
    }
    if let Err(error) = credit_seed() {
        warn!("the saved random seed is not used: {error}, continuing");
    }
    save_seed();
}

fn machine_id() -> io::Result<()> {
    let id = match fs::read_to_string(MACHINE_ID) {
        Ok(text) if text.trim().len() == 32 => text,
        _ => {
            let text = format!("{:032x}\n", u128::from_ne_bytes(random()?));
            replace(MACHINE_ID, text.as_bytes(), 0o444)?;
            text
        }
    };
    fs::write(MACHINE_ID_COPY, id)
}

/// A seed counts only once: it is gone from the disk for certain before the kernel believes it.
fn credit_seed() -> io::Result<()> {
    let mut seed = Vec::new();
    match File::open(SEED) {
        Ok(file) => file.take(berth_sys::devices::SEED_MAX as u64).read_to_end(&mut seed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    fs::remove_file(SEED)?;
    File::open(FOLDER)?.sync_all()?;
    berth_sys::devices::add_entropy(File::options().write(true).open("/dev/urandom")?.as_fd(), &seed)
}

/// Saves entropy for the next boot; also at shutdown.
pub(crate) fn save_seed() {
    let saved = random::<{ berth_sys::devices::SEED_MAX }>().and_then(|seed| replace(SEED, &seed, 0o600));
    if let Err(error) = saved {
        warn!("no random seed is saved: {error}, continuing");
    }
}

/// Random bytes without waiting for the pool to be ready: nothing that needs secrecy is made here that early.
pub(crate) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::INSECURE)?;
    Ok(bytes)
}

/// Writes aside, syncs, renames.
fn replace(path: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
    let aside = format!("{path}.new");
    let mut file = File::options().write(true).create(true).truncate(true).mode(mode).open(&aside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    match Path::new(path).parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}
