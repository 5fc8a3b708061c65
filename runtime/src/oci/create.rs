//! `create`: everything up to the program, which waits at its gate.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_sys::clone::SingleThreaded;
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::mounts::Fds as Collected;
use super::plan::{Users, build, users};
use super::spec::{Hook, Linux, Resources, Spec};
use super::state::{Container, GATE, Shown, Status};
use super::{OciError, file, hooks, resources, special, system};
use crate::cgroup::{Group, devices};
use crate::launcher::make_user;
use crate::plan::{Failure, Plan, UserNamespace};
use crate::seccomp::Filter;
use crate::stage::container::{self, Ready};
use crate::stage::failure::{Step, failure};
use crate::stage::intermediate::{self, Context, Gate};
use crate::stage::sources::{self, Fds, MountNamespaces, Owners};
use crate::stage::starting::{Parentage, Running, Starting, clone_through};
use crate::stage::sync::{Go, wait_readable};
use crate::stage::{overlay, scratch};
use crate::wire;

/// Mount point of cgroup2.
const CGROUPS: &str = "/sys/fs/cgroup";
/// `CGROUP2_SUPER_MAGIC`.
const CGROUP2_MAGIC: i64 = 0x6367_7270;
/// How long set-up may take, hooks aside.
const SETUP_DEADLINE: Duration = Duration::from_secs(120);

/// What `create` is given.
#[derive(Clone, Debug)]
pub struct Create {
    /// Where records are kept.
    pub root: PathBuf,
    /// Container id.
    pub id: String,
    /// Bundle directory.
    pub bundle: PathBuf,
    /// Socket that gets the terminal's master side.
    pub console_socket: Option<PathBuf>,
    /// File that gets the pid.
    pub pid_file: Option<PathBuf>,
}

/// Creates a container, a child of this process; gives its pidfd.
///
/// # Errors
/// Everything made is undone.
pub fn create(single: SingleThreaded, wanted: &Create) -> Result<OwnedFd, OciError> {
    let bundle = wanted.bundle.canonicalize().map_err(file("find", &wanted.bundle))?;
    let spec = Spec::load(&bundle)?;
    super::refuse::check(&spec)?;
    let terminal = spec.process.as_ref().is_some_and(|process| process.terminal);
    if terminal != wanted.console_socket.is_some() {
        return Err(OciError::Spec("process.terminal and a console socket go together".to_owned()));
    }
    let mut container = Container::reserve(&wanted.root, &wanted.id, &bundle, spec)?;
    let mut group = None;
    let created = set_up(single, &mut container, &mut group).and_then(|running| {
        if let Some(path) = &wanted.pid_file {
            std::fs::write(path, running.pid.to_string()).map_err(file("write", path))?;
        }
        let mut fds = running.fds.into_iter();
        let pidfd = fds.next().ok_or_else(|| failure("create", "pidfd", rustix::io::Errno::BADF))?;
        if let (Some(path), Some(master)) = (&wanted.console_socket, fds.next()) {
            hand_over(path, master.as_fd())?;
        }
        Ok(pidfd)
    });
    if created.is_err() {
        if let Some(group) = group {
            super::end::empty(&group);
        }
        super::end::unmount_root(&container);
        let _ = container.remove();
    }
    created
}

fn set_up(
    single: SingleThreaded,
    container: &mut Container,
    made: &mut Option<Group>,
) -> Result<Running, OciError> {
    let spec = container.spec.clone();
    let linux = spec.linux.clone().unwrap_or_default();
    let mut fds = Collected::default();
    container.record.cgroup = cgroup_path(&linux, &container.record.id);
    let group = made.insert(make_group(&container.record.cgroup, &linux)?);
    let cgroup = fds.add(group.dir().try_clone_to_owned().map_err(system("control group"))?)?;
    let mut make_users = |uid: &str, gid: &str| Ok(make_user(single, [uid, gid])?);
    // The files of a bundle have the owners they shall have, so where the range begins does not matter here.
    let (base, count) = (0, 0);
    let user = match users(&linux)? {
        Users::Host => UserNamespace::Host,
        Users::New { uid_map, gid_map } => {
            UserNamespace::Own { fd: fds.add(make_user(single, [&uid_map, &gid_map])?)?, base, count }
        }
        Users::Join(path) => {
            let opened = std::fs::File::open(&path).map_err(file("open", &path))?;
            UserNamespace::Own { fd: fds.add(opened.into())?, base, count }
        }
    };
    container.record.user_namespace = !matches!(user, UserNamespace::Host);
    let bundle = container.record.bundle.clone();
    let mut plan = build(&spec, &bundle, user, cgroup, &mut fds, &mut make_users)?;
    plan.name.clone_from(&container.record.id);
    if let Some(seccomp) = &linux.seccomp {
        let state = state_of(container, Status::Creating)?;
        plan.process.special.seccomp_listener = special::listener(seccomp, &state, &mut fds)?;
    }
    let gate = Stops::new(container)?;
    if plan.special.host_mounts {
        let opened = std::fs::File::open("/proc/self/ns/mnt").map_err(system("mount namespace"))?;
        plan.special.mount_namespace = Some(fds.add(opened.into())?);
    }
    let starting = clone(single, &plan, &fds, &gate, container)?;
    let running = wait(starting)?;
    Ok(running)
}

fn clone(
    single: SingleThreaded,
    plan: &Plan,
    fds: &Collected,
    gate: &Stops,
    container: &mut Container,
) -> Result<Starting, OciError> {
    let filter = Filter::new(&plan.process.seccomp, plan.process.capabilities)
        .map_err(|error| OciError::Spec(error.to_string()))?;
    let fds = Fds(&fds.0);
    let namespaces = own_mounts()?;
    let mut sources = sources::detach(plan, fds, &namespaces, Owners::Unchanged)?;
    let root = overlay::assemble(&mut sources, 0)?;
    let ready = Ready { root, sources, filter };
    let mut hooks_failed = None;
    let starting = clone_through(
        Parentage::Child,
        |sync| {
            let context = Context { single, sync, fds, gate: Some(gate) };
            intermediate::launch(context, plan, || container::launch(context, plan, &ready))
        },
        single,
        |pid, _pidfd| {
            let result = container.set_process(pid).and_then(|()| run_early_hooks(container));
            result.map_err(|error| {
                let text = error.to_string();
                hooks_failed = Some(error);
                failure("hooks", &text, rustix::io::Errno::CANCELED)
            })
        },
        SETUP_DEADLINE,
    );
    match hooks_failed {
        Some(error) => Err(error),
        None => Ok(starting?),
    }
}

fn run_early_hooks(container: &Container) -> Result<(), OciError> {
    let Some(wanted) = &container.spec.hooks else { return Ok(()) };
    let state = container.shown(Status::Creating);
    // The older kind counts as what comes between `create` and `start`.
    hooks::run(&wanted.prestart, &Shown { status: Status::Created, ..state.clone() })?;
    hooks::run(&wanted.create_runtime, &state)
}

/// Waits for a process in set-up until it runs, waits at its gate or fails.
pub(super) fn wait(mut starting: Starting) -> Result<Running, OciError> {
    loop {
        if wait_readable(starting.socket(), starting.deadline()).is_err() {
            return Err(starting.expire().into());
        }
        if let Some(outcome) = starting.advance() {
            return Ok(outcome?);
        }
    }
}

/// A mount namespace of this command's own with its scratch directory.
fn own_mounts() -> Result<MountNamespaces, OciError> {
    use rustix::mount::{MountPropagationFlags, mount_change};
    let open = || {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::open("/proc/self/ns/mnt", flags, Mode::empty()).map_err(system("mount namespace"))
    };
    let host = open()?;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).map_err(system("mount namespace"))?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(system("mount namespace"))?;
    scratch::prepare()?;
    Ok(MountNamespaces { host, own: open()? })
}

/// The control group below the mount point: what the bundle says, or one by id.
fn cgroup_path(linux: &Linux, id: &str) -> PathBuf {
    let wanted = linux.cgroups_path.trim_start_matches('/');
    if wanted.is_empty() { Path::new("berth").join(id) } else { PathBuf::from(wanted) }
}

fn make_group(path: &Path, linux: &Linux) -> Result<Group, OciError> {
    let names: Option<Vec<&str>> = path.iter().map(|part| part.to_str()).collect();
    let names = names.ok_or_else(|| OciError::Spec("cgroupsPath".to_owned()))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut parent = rustix::fs::open(CGROUPS, flags, Mode::empty()).map_err(file("open", CGROUPS))?;
    let kind = rustix::fs::fstatfs(&parent).map_err(file("open", CGROUPS))?.f_type;
    if kind != CGROUP2_MAGIC {
        return Err(OciError::Spec(format!("{CGROUPS} is not cgroup2")));
    }
    let Some((last, above)) = names.split_last() else {
        return Err(OciError::Spec("cgroupsPath".to_owned()));
    };
    enable_controllers(parent.as_fd());
    for name in above {
        let group = Group::ensure(parent.as_fd(), name).map_err(file("make", path))?;
        enable_controllers(group.dir());
        parent = group.dir().try_clone_to_owned().map_err(system("control group"))?;
    }
    let group = Group::create(parent.as_fd(), last).map_err(file("make", path))?;
    let bounded = bound(&group, linux);
    if bounded.is_err() {
        super::end::empty(&group);
    }
    bounded.map(|()| group)
}

fn bound(group: &Group, linux: &Linux) -> Result<(), OciError> {
    let Some(wanted) = &linux.resources else { return Ok(()) };
    group.set(&resources::limits(wanted)?).map_err(system("limits"))?;
    set_files(group, wanted)?;
    if !wanted.devices.is_empty() {
        let rules = resources::device_rules(&wanted.devices)?;
        devices::restrict(group.dir(), &rules).map_err(system("device rules"))?;
    }
    Ok(())
}

/// Sets what [`crate::cgroup::Limits`] has no name for.
pub(super) fn set_files(group: &Group, wanted: &Resources) -> Result<(), OciError> {
    for (name, value) in resources::files(wanted)? {
        match group.set_file(&name, &value) {
            // Reservations of huge pages can be bounded since Linux 5.7, and not of every size.
            Err(error) if name.ends_with(".rsvd.max") && error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                let text = format!("{name} = {value}: {error}");
                let source = std::io::Error::new(error.kind(), text);
                return Err(OciError::System { what: "limits", source });
            }
            Ok(()) => {}
        }
    }
    Ok(())
}

/// State as a JSON value, for others.
pub(super) fn state_of(container: &Container, status: Status) -> Result<serde_json::Value, OciError> {
    serde_json::to_value(container.shown(status))
        .map_err(|source| OciError::Json { path: "state".into(), source })
}

/// Passes on every controller that is there. One that cannot be passed on shows when a limit of it is set.
fn enable_controllers(dir: BorrowedFd<'_>) {
    if let Ok(group) = Group::open_at(dir) {
        for name in group.controllers().unwrap_or_default() {
            let _ = group.enable(&[name.as_str()]);
        }
    }
}

/// Sends the terminal's master side, as `--console-socket` wants it: one message with one descriptor.
fn hand_over(path: &Path, master: BorrowedFd<'_>) -> Result<(), OciError> {
    use std::mem::MaybeUninit;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(system("console socket"))?;
    let address = SocketAddrUnix::new(path).map_err(system("console socket"))?;
    rustix::net::connect(&socket, &address).map_err(file("connect to", path))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    let fds = [master];
    control.push(rustix::net::SendAncillaryMessage::ScmRights(&fds));
    let name = [std::io::IoSlice::new(b"/dev/ptmx")];
    rustix::net::sendmsg(&socket, &name, &mut control, rustix::net::SendFlags::NOSIGNAL)
        .map_err(system("console socket"))?;
    Ok(())
}

/// Where a created container stops: hooks inside, and the socket `start` connects to.
struct Stops {
    listener: OwnedFd,
    create_container: Vec<Hook>,
    start_container: Vec<Hook>,
    state: Shown,
}

impl Stops {
    fn new(container: &Container) -> Result<Self, OciError> {
        let listener =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(system("gate"))?;
        let address = gate_address(&container.dir)?;
        rustix::net::bind(&listener, &address.1).map_err(system("gate"))?;
        rustix::net::listen(&listener, 1).map_err(system("gate"))?;
        let wanted = container.spec.hooks.clone().unwrap_or_default();
        Ok(Self {
            listener,
            create_container: wanted.create_container,
            start_container: wanted.start_container,
            state: container.shown(Status::Created),
        })
    }

    /// Hooks in the container see the first process under the number it has there.
    fn run(&self, hooks: &[Hook], status: Status) -> Result<(), Failure> {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let state = Shown { status, pid, ..self.state.clone() };
        hooks::run(hooks, &state)
            .map_err(|error| failure("hooks", &error.to_string(), rustix::io::Errno::CANCELED))
    }
}

impl Gate for Stops {
    fn before_pivot(&self) -> Result<(), Failure> {
        self.run(&self.create_container, Status::Creating)
    }

    fn wait(&self) -> Result<OwnedFd, Failure> {
        let opener =
            rustix::io::retry_on_intr(|| rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC))
                .step("start", "gate")?;
        wire::receive::<Go>(opener.as_fd()).step("start", "gate")?;
        self.run(&self.start_container, Status::Created)?;
        Ok(opener)
    }
}

/// Address of the gate by way of its open directory, for a socket's path must be short.
pub(super) fn gate_address(dir: &Path) -> Result<(OwnedFd, SocketAddrUnix), OciError> {
    use std::os::fd::AsRawFd;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(dir, flags, Mode::empty()).map_err(file("open", dir))?;
    let path = format!("/proc/self/fd/{}/{GATE}", opened.as_raw_fd());
    let address = SocketAddrUnix::new(path).map_err(system("gate"))?;
    Ok((opened, address))
}
