//! A container's record and descriptors to the launcher's plan: every choice made, every limit set.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use berth_runtime::cgroup::Group;
use berth_runtime::plan::{
    Device, Fd, Mount, MountSource, Namespace, Namespaces, Plan, Process, Root, Seccomp, Stdio, UserNamespace,
};
use berth_runtime::{capability, defaults};
use rustix::fs::{Mode, OFlags, open};

use super::Joined;
use super::bounds::rlimits;
use super::error::StartError;
use super::streams::Streams;
use crate::binds::{self, HostPath};
use crate::launcher::OwnedSlot;
use crate::slots::RANGE;
use crate::store::{MountKind, MountRecord, Record};
use crate::volumes::{Content, Volumes};

/// Docker's default search path.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// File creation mask of containers, as everywhere.
const UMASK: u32 = 0o022;

/// Where the parts of a container are.
pub(super) struct Places<'a> {
    /// Name for init.
    pub(super) name: String,
    /// Its cgroup.
    pub(super) group: &'a Group,
    /// Its namespaces; none for the host's users.
    pub(super) slot: Option<&'a OwnedSlot>,
    /// Its own network namespace.
    pub(super) net: Option<&'a OwnedFd>,
    /// The container whose network it joins.
    pub(super) joined: Option<&'a Joined>,
    /// Layers of its image, lowest first.
    pub(super) layers: &'a [PathBuf],
    /// Its directory.
    pub(super) dir: PathBuf,
    /// Directory of its `/etc` files.
    pub(super) etc: PathBuf,
    /// Volumes.
    pub(super) volumes: &'a Volumes,
}

/// Descriptors in the order the plan counts them.
#[derive(Default)]
struct Fds(Vec<OwnedFd>);

impl Fds {
    fn add(&mut self, fd: OwnedFd) -> Fd {
        let place = u16::try_from(self.0.len()).unwrap_or(u16::MAX);
        self.0.push(fd);
        Fd(place)
    }

    /// Opens a path of ours as a place in the tree.
    fn path(&mut self, path: &Path) -> Result<Fd, StartError> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = open(path, flags, Mode::empty()).map_err(|error| at(path, &error.into()))?;
        Ok(self.add(fd))
    }

    fn dir(&mut self, path: &Path) -> Result<Fd, StartError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = open(path, flags, Mode::empty()).map_err(|error| at(path, &error.into()))?;
        Ok(self.add(fd))
    }
}

fn at(path: &Path, error: &io::Error) -> StartError {
    StartError::failed(format!("failed to create task for container: open {}: {error}", path.display()))
}

/// Whether the container shares the host's users.
pub(super) fn host_users(record: &Record) -> bool {
    record.host_config.privileged || record.host_config.userns_mode == "host"
}

/// The plan and its descriptors.
pub(super) fn build(
    record: &Record,
    places: &Places<'_>,
    streams: &Streams,
) -> Result<(Plan, Vec<OwnedFd>), StartError> {
    let mut fds = Fds::default();
    let host = &record.host_config;
    let io = StartError::io("descriptors");
    let cgroup = fds.add(places.group.dir().try_clone_to_owned().map_err(&io)?);
    let namespaces = namespaces(record, places, &mut fds)?;
    let mut layers = Vec::new();
    for layer in places.layers {
        layers.push(fds.dir(layer)?);
    }
    let writable = Some(fds.dir(&places.dir.join("rw"))?);
    let mounts = mounts(record, places, &mut fds)?;
    let devices = devices(record, &mut fds)?;
    let stdio = match streams.inside() {
        None => {
            let [rows, columns] = host.console_size.map(|size| u16::try_from(size).unwrap_or(0));
            Stdio::Terminal { rows, columns }
        }
        Some(inside) => Stdio::Fds(inside.map_err(&io)?.map(|fd| fds.add(fd))),
    };
    let paths = |wanted: &Option<Vec<String>>, default: &[&str]| match wanted {
        _ if host.privileged => Vec::new(),
        Some(paths) => paths.clone(),
        None => default.iter().map(|path| (*path).to_owned()).collect(),
    };
    let plan = Plan {
        name: places.name.clone(),
        cgroup,
        namespaces,
        hostname: record.config.hostname.clone(),
        domainname: record.config.domainname.clone(),
        root: Root { layers, writable, readonly: host.readonly_rootfs },
        mounts,
        devices,
        masked_paths: paths(&host.masked_paths, &defaults::MASKED_PATHS),
        readonly_paths: paths(&host.readonly_paths, &defaults::READONLY_PATHS),
        sysctls: sysctls(record, places.joined.is_some()),
        process: process(record, stdio)?,
        init: host.init.unwrap_or(false),
        special: berth_runtime::plan::Special::default(),
    };
    Ok((plan, fds.0))
}

/// What was asked for, and what everybody may do in a network namespace of one's own: low ports, `ping`.
fn sysctls(record: &Record, joined: bool) -> Vec<(String, String)> {
    let mut all = record.host_config.sysctls.clone().unwrap_or_default();
    if !joined && record.host_config.network_mode != "host" {
        let groups = format!("0 {}", RANGE - 1);
        for (key, value) in
            [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", groups.as_str())]
        {
            all.entry(key.to_owned()).or_insert_with(|| value.to_owned());
        }
    }
    all.into_iter().collect()
}

fn namespaces(record: &Record, places: &Places<'_>, fds: &mut Fds) -> Result<Namespaces, StartError> {
    let host = &record.host_config;
    let io = StartError::io("namespaces");
    let user = match places.slot {
        Some(slot) => {
            let fd = fds.add(slot.slot.user.as_fd().try_clone_to_owned().map_err(&io)?);
            UserNamespace::Own { fd, base: slot.base, count: RANGE }
        }
        None => UserNamespace::Host,
    };
    let own = places.net.map(OwnedFd::try_clone).transpose().map_err(&io)?;
    let net = match (places.joined, host.network_mode.as_str(), own) {
        (Some(joined), ..) => {
            let path = format!("/proc/{}/ns/net", joined.pid);
            let fd = File::open(&path).map_err(|error| at(Path::new(&path), &error))?;
            // The pid was the container's for certain if its process still lives after the open.
            let gone = || StartError::failed("the container whose network is joined has ended".to_owned());
            if ended(&joined.pidfd).map_err(|_| gone())? {
                return Err(gone());
            }
            Namespace::Join(fds.add(fd.into()))
        }
        (None, "host", _) => Namespace::Host,
        (None, _, Some(net)) => Namespace::Join(fds.add(net)),
        (None, _, None) => Namespace::New,
    };
    let own_or_host = |mode: &str| if mode == "host" { Namespace::Host } else { Namespace::New };
    Ok(Namespaces {
        user,
        net,
        pid: own_or_host(&host.pid_mode),
        ipc: own_or_host(&host.ipc_mode),
        uts: own_or_host(&host.uts_mode),
        cgroup: own_or_host(&host.cgroupns_mode),
    })
}

/// Whether the process of a pidfd has ended.
pub(crate) fn ended(pidfd: &OwnedFd) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    Ok(poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&now))? > 0)
}

fn mounts(record: &Record, places: &Places<'_>, fds: &mut Fds) -> Result<Vec<Mount>, StartError> {
    let host = &record.host_config;
    let shm = u64::try_from(host.shm_size).ok().filter(|size| *size > 0).unwrap_or(defaults::SHM_BYTES);
    let mut all = defaults::mounts(shm, host.privileged);
    // What the user mounts there replaces the default.
    all.retain(|mount| !record.mounts.iter().any(|wanted| wanted.target == mount.target));
    for name in ["hosts", "hostname", "resolv.conf"] {
        let target = format!("/etc/{name}");
        if record.mounts.iter().any(|wanted| wanted.target == target) {
            continue;
        }
        let fd = fds.path(&places.etc.join(name))?;
        all.push(bind(target, fd, false, false, false));
    }
    for wanted in &record.mounts {
        all.push(user_mount(wanted, places.volumes, fds)?);
    }
    Ok(all)
}

fn user_mount(wanted: &MountRecord, volumes: &Volumes, fds: &mut Fds) -> Result<Mount, StartError> {
    match &wanted.kind {
        MountKind::Volume { name, copy_up, subpath, .. } => {
            let content = volumes.content(name).map_err(|refusal| StartError::failed(refusal.to_string()))?;
            let folder = match content {
                Content::Own => HostPath { folder: volumes.data(name), below: String::new() },
                Content::Bind(device) => binds::place(&device),
                Content::Tmpfs(options) => return Ok(memory(wanted, &options)),
            };
            let place = folder.part(subpath);
            let fd = place.open(false).map_err(|error| {
                StartError::failed(format!(
                    "failed to mount volume {name}: cannot access {}{}: {error}",
                    place.folder.display(),
                    place.below
                ))
            })?;
            Ok(shown(wanted, fd, *copy_up, false, fds))
        }
        MountKind::Bind { source, create, slave } => {
            let fd = binds::place(source).open(*create).map_err(|error| at(Path::new(source), &error))?;
            Ok(shown(wanted, fd, false, *slave, fds))
        }
        MountKind::Tmpfs { options } => Ok(memory(wanted, options)),
    }
}

/// A directory or file of the host, with owners shifted where the kernel can.
fn shown(wanted: &MountRecord, fd: OwnedFd, copy_up: bool, slave: bool, fds: &mut Fds) -> Mount {
    let shift = can_shift(&fd);
    let mut mount = bind(wanted.target.clone(), fds.add(fd), wanted.readonly, copy_up, slave);
    if let MountSource::Bind { idmap, .. } = &mut mount.source {
        *idmap = shift;
    }
    mount
}

fn memory(wanted: &MountRecord, options: &[String]) -> Mount {
    let has = |flag: &str| options.iter().any(|option| option == flag);
    let flags = ["ro", "rw", "exec", "noexec", "suid", "nosuid", "dev", "nodev"];
    let kernel = options.iter().filter(|option| !flags.contains(&option.as_str()));
    Mount {
        target: wanted.target.clone(),
        source: MountSource::Fs { kind: "tmpfs".to_owned(), options: kernel.cloned().collect() },
        readonly: wanted.readonly,
        nosuid: !has("suid"),
        nodev: !has("dev"),
        noexec: !has("exec"),
        special: berth_runtime::plan::MountSpecial::default(),
    }
}

/// Whether the kernel can shift owners of a mount of this file system: Linux 6.1 knows how for disks, not for memory.
fn can_shift(fd: &OwnedFd) -> bool {
    /// `EXT4_SUPER_MAGIC`, `XFS_SUPER_MAGIC`, `BTRFS_SUPER_MAGIC`, `EROFS_SUPER_MAGIC_V1`, `MSDOS_SUPER_MAGIC`.
    const SHIFTING: [i64; 5] = [0xef53, 0x5846_5342, 0x9123_683e, 0xe0f5_e1e2, 0x4d44];
    rustix::fs::fstatfs(fd).is_ok_and(|fs| SHIFTING.contains(&fs.f_type))
}

fn bind(target: String, fd: Fd, readonly: bool, copy_up: bool, slave: bool) -> Mount {
    let source = MountSource::Bind { fd, idmap: true, recursive: true, copy_up, slave };
    let special = berth_runtime::plan::MountSpecial::default();
    Mount { target, source, readonly, nosuid: false, nodev: false, noexec: false, special }
}

fn devices(record: &Record, fds: &mut Fds) -> Result<Vec<Device>, StartError> {
    let mut all = Vec::new();
    for device in record.host_config.devices.iter().flatten() {
        let path = Path::new(&device.path_on_host);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = open(path, flags, Mode::empty()).map_err(|error| at(path, &error.into()))?;
        let target = match device.path_in_container.as_str() {
            "" => device.path_on_host.clone(),
            target => target.to_owned(),
        };
        all.push(Device { fd: fds.add(fd), target });
    }
    Ok(all)
}

fn process(record: &Record, stdio: Stdio) -> Result<Process, StartError> {
    let config = &record.config;
    let env = environment(record, config.env.as_deref().unwrap_or_default(), config.tty);
    user_process(
        record,
        record.args.clone(),
        env,
        &config.user,
        &config.working_dir,
        record.host_config.privileged,
        stdio,
    )
}

/// A process with a container's confinement: its first one, or an exec session's.
pub(crate) fn user_process(
    record: &Record,
    args: Vec<String>,
    env: Vec<String>,
    user: &str,
    cwd: &str,
    privileged: bool,
    stdio: Stdio,
) -> Result<Process, StartError> {
    let host = &record.host_config;
    let names = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let capabilities = capability::from_add_drop(&names(&host.cap_add), &names(&host.cap_drop), privileged)
        .map_err(|error| StartError::failed(error.to_string()))?;
    let options = host.security_opt.as_deref().unwrap_or_default();
    let unconfined =
        options.iter().any(|option| matches!(option.as_str(), "seccomp=unconfined" | "seccomp:unconfined"));
    let may_gain = options
        .iter()
        .any(|option| matches!(option.as_str(), "no-new-privileges=false" | "no-new-privileges:false"));
    Ok(Process {
        args,
        env,
        cwd: if cwd.is_empty() { "/".to_owned() } else { cwd.to_owned() },
        user: user.to_owned(),
        groups: names(&host.group_add),
        capabilities,
        no_new_privileges: !privileged && !may_gain,
        seccomp: if privileged || unconfined { Seccomp::Unconfined } else { Seccomp::Default },
        rlimits: rlimits(host).map_err(StartError::failed)?,
        oom_score_adj: i32::try_from(host.oom_score_adj).unwrap_or(0).clamp(-1000, 1000),
        umask: UMASK,
        stdio,
        special: berth_runtime::plan::ProcessSpecial::default(),
    })
}

/// The environment: what was asked for, and what Docker adds.
pub(crate) fn environment(record: &Record, wanted: &[String], tty: bool) -> Vec<String> {
    // `NAME` alone means "not set" and removes what the image set.
    let mut env: Vec<String> = wanted.iter().filter(|entry| entry.contains('=')).cloned().collect();
    let has = |env: &[String], name: &str| {
        env.iter().any(|entry| entry.split_once('=').is_some_and(|(key, _)| key == name))
    };
    if !has(&env, "PATH") {
        env.insert(0, PATH.to_owned());
    }
    if !has(&env, "HOSTNAME") {
        env.insert(1, format!("HOSTNAME={}", record.config.hostname));
    }
    if tty && !has(&env, "TERM") {
        env.push("TERM=xterm".to_owned());
    }
    env
}

/// Entrypoint and command joined.
pub(crate) fn program(entrypoint: Option<&[String]>, command: Option<&[String]>) -> Vec<String> {
    let parts = entrypoint.into_iter().chain(command).flatten();
    parts.cloned().collect()
}
