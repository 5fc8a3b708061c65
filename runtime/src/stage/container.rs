//! The container's first process from its birth to `execve`, as a list of named steps.
//!
//! It holds every capability in its own user namespace and none outside, so a step that an image tricks into
//! touching the wrong file finds the host's files closed. Only a container in the host's user namespace differs.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_sys::clone::{Options, spawn};
use berth_sys::mount::{Change, set_attributes};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, UnmountFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::failure::{Step, failure};
use super::intermediate::{Context, Gate};
use super::passwd::Identity;
use super::sources::{Sources, kernel_propagation, streams};
use super::sync::{Go, Report, report};
use super::{
    devices, identity, limits, masks, mounts, program, reaper, resolve, scratch, streams, sysctl, terminal,
};
use crate::plan::{ExecPlan, Failure, Namespace, Plan, Process, Stdio, UserNamespace};
use crate::seccomp::Filter;
use crate::wire;

/// Exit code of a process whose set-up failed.
const FAILED: i32 = 127;

/// What the launcher made ready for a container.
pub(crate) struct Ready {
    /// The root file system, detached.
    pub(crate) root: OwnedFd,
    /// Binds and devices, detached.
    pub(crate) sources: Sources,
    /// The compiled system call filter.
    pub(crate) filter: Filter,
}

/// Which part the process plays.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// The container's first process.
    First,
    /// The container's first process, staying as its init with the program as its child.
    Init,
    /// A further process.
    Exec,
}

/// Sets up a container and runs its program; returns only on failure, with the exit code.
pub(crate) fn launch(context: Context<'_>, plan: &Plan, ready: &Ready) -> i32 {
    let result = wait_for_go(context.sync).and_then(|()| {
        let root = stage(context, plan, ready)?;
        let role = if plan.init { Role::Init } else { Role::First };
        run(context, &plan.process, &ready.filter, root.as_fd(), role)
    });
    fail(context.sync, result)
}

/// Runs a further program in a running container; `cgroup` is the control group namespace to join.
pub(crate) fn exec(context: Context<'_>, plan: &ExecPlan, filter: &Filter, cgroup: BorrowedFd<'_>) -> i32 {
    let result = wait_for_go(context.sync).and_then(|()| {
        begin_session(plan.user_namespace)?;
        let kind = Some(LinkNameSpaceType::ControlGroup);
        move_into_link_name_space(cgroup, kind).step("namespaces", "cgroup")?;
        let root = scratch::open("/")?;
        run(context, &plan.process, filter, root.as_fd(), Role::Exec)
    });
    fail(context.sync, result)
}

fn fail(sync: BorrowedFd<'_>, result: Result<(), Failure>) -> i32 {
    if let Err(failure) = result {
        // Without a launcher there is nobody to tell, and the exit code says it all.
        let _ = report(sync, &Report::Failed(failure), &[]);
    }
    FAILED
}

fn wait_for_go(sync: BorrowedFd<'_>) -> Result<(), Failure> {
    wire::receive::<Go>(sync).step("start", "launcher")?;
    Ok(())
}

/// A session of its own without terminal and keyring of another, and ids of the user namespace: until now the
/// process still was the host's root, without its capabilities but as the owner of its files.
fn begin_session(user_namespace: bool) -> Result<(), Failure> {
    rustix::process::setsid().step("session", "setsid")?;
    if user_namespace {
        identity::become_root()?;
    }
    match berth_sys::process::new_session_keyring() {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        result => result.step("session", "keyring"),
    }
}

/// Mounts and names; afterwards the process stands in the container's root.
fn stage(context: Context<'_>, plan: &Plan, ready: &Ready) -> Result<OwnedFd, Failure> {
    begin_session(matches!(plan.namespaces.user, UserNamespace::Own { .. }))?;
    match plan.namespaces.cgroup {
        Namespace::New => {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP).step("namespaces", "cgroup")?;
        }
        Namespace::Join(fd) => {
            let kind = Some(LinkNameSpaceType::ControlGroup);
            move_into_link_name_space(context.fds.get(fd)?, kind).step("namespaces", "cgroup")?;
        }
        Namespace::Host => {}
    }
    let root = if plan.special.host_mounts {
        attach_in_host(context, plan, ready)?
    } else {
        if plan.special.mount_namespace.is_some() {
            scratch::prepare_joined()?;
        }
        attach_root(ready)?
    };
    let sysctls = mounts::attach_all(plan, ready, root.as_fd())?;
    devices::attach_all(plan, ready, root.as_fd())?;
    sysctl::apply(&plan.sysctls, sysctls)?;
    masks::apply(plan, root.as_fd())?;
    if plan.namespaces.uts == Namespace::New {
        rustix::system::sethostname(plan.hostname.as_bytes()).step("hostname", &plan.hostname)?;
        if !plan.domainname.is_empty() {
            rustix::system::setdomainname(plan.domainname.as_bytes())
                .step("domain name", &plan.domainname)?;
        }
    }
    if let Some(gate) = context.gate {
        gate.before_pivot()?;
    }
    if plan.special.host_mounts {
        change_root(root.as_fd())?;
    } else {
        pivot(root.as_fd())?;
    }
    if plan.root.readonly {
        masks::make_readonly(root.as_fd(), false).step("root", "read-only")?;
    }
    if let Some(propagation) = plan.special.root_propagation {
        let change = Change { propagation: kernel_propagation(propagation), ..Change::NONE };
        set_attributes(root.as_fd(), &change).step("root", "propagation")?;
    }
    Ok(root)
}

fn attach_root(ready: &Ready) -> Result<OwnedFd, Failure> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&ready.root, "", rustix::fs::CWD, scratch::ROOT, flags)
        .step("root", "attach")?;
    scratch::open(scratch::ROOT)
}

/// The root on its own directory, in a mount namespace that is not the container's alone.
fn attach_in_host(context: Context<'_>, plan: &Plan, ready: &Ready) -> Result<OwnedFd, Failure> {
    let place = plan.root.layers.first().ok_or_else(|| failure("root", "no directory", Errno::NOENT))?;
    mounts::move_to(ready.root.as_fd(), context.fds.get(*place)?).step("root", "attach")?;
    ready.root.try_clone().step("root", "attach")
}

/// The old root stays reachable to whoever has power over the host's mounts, which is what was asked for.
fn change_root(root: BorrowedFd<'_>) -> Result<(), Failure> {
    rustix::process::fchdir(root).step("root", "chdir")?;
    rustix::process::chroot(".").step("root", "chroot")?;
    rustix::process::chdir("/").step("root", "chdir")
}

/// `pivot_root(".", ".")` stacks the old root on the new one; detaching it leaves nothing of the host.
fn pivot(root: BorrowedFd<'_>) -> Result<(), Failure> {
    rustix::process::fchdir(root).step("pivot", "chdir")?;
    rustix::process::pivot_root(".", ".").step("pivot", "pivot_root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).step("pivot", "old root")?;
    rustix::process::chdir("/").step("pivot", "chdir")
}

/// The part that start and exec share: from inside the container's root to its program.
fn run(
    context: Context<'_>,
    process: &Process,
    filter: &Filter,
    root: BorrowedFd<'_>,
    role: Role,
) -> Result<(), Failure> {
    let who = identity::resolve(process, root)?;
    if let Some(fds) = streams(process.stdio, context.fds)? {
        streams::install(fds, who.uid, who.gid)?;
    } else {
        let master = terminal::open(process.stdio, root, who.uid)?;
        report(context.sync, &Report::Terminal, &[master.as_fd()]).step("terminal", "hand over")?;
        if role != Role::Exec {
            terminal::bind_console(root)?;
        }
    }
    enter_cwd(root, &process.cwd)?;
    // Descriptors of the host's are closed by execve; standard streams are the last that stay.
    berth_sys::process::close_on_exec_from(3).step("descriptors", "close on exec")?;
    if let Some(gate) = context.gate {
        return become_program_later(context, gate, process, filter, &who);
    }
    if role != Role::Init {
        return become_program(context, process, filter, &who);
    }
    reaper::block_signals().step("init", "signals")?;
    let program = || fail(context.sync, as_child_of_init(context, process, filter, &who));
    let child = spawn(context.single, Options::default(), program).step("init", "clone")?;
    confine(context, process, filter, &who)?;
    reaper::wait_for(child.pid)
}

/// The program of a container with the built-in init: a process group of its own, in the foreground of the terminal.
fn as_child_of_init(
    context: Context<'_>,
    process: &Process,
    filter: &Filter,
    who: &Identity,
) -> Result<(), Failure> {
    let me = rustix::process::getpid();
    rustix::process::setpgid(None, None).step("init", "process group")?;
    if matches!(process.stdio, Stdio::Terminal { .. }) {
        rustix::termios::tcsetpgrp(rustix::stdio::stdin(), me).step("init", "foreground")?;
    }
    become_program(context, process, filter, who)
}

/// Says that everything is ready, waits at the gate, and reports to whoever opened it from then on.
fn become_program_later(
    context: Context<'_>,
    gate: &dyn Gate,
    process: &Process,
    filter: &Filter,
    who: &Identity,
) -> Result<(), Failure> {
    report(context.sync, &Report::Created, &[]).step("create", "report")?;
    let opener = gate.wait()?;
    let context = Context { sync: opener.as_fd(), gate: None, ..context };
    fail(context.sync, become_program(context, process, filter, who));
    berth_sys::process::exit_now(FAILED)
}

fn become_program(
    context: Context<'_>,
    process: &Process,
    filter: &Filter,
    who: &Identity,
) -> Result<(), Failure> {
    let environment = program::environment(process, who);
    berth_sys::signals::reset().step("signals", "defaults")?;
    limits::run_on(&process.special.processors)?;
    if let Some(persona) = process.special.personality {
        berth_sys::tuning::set_personality(persona).step("personality", persona.to_string())?;
    }
    confine(context, process, filter, who)?;
    let found = program::find(process, &environment)?;
    limits::set(&process.rlimits)?;
    report(context.sync, &Report::Executing, &[]).step("exec", "report")?;
    Err(program::execute(&found, process, &environment))
}

/// User, capabilities and system call filter. Without `no_new_privs` the filter takes `CAP_SYS_ADMIN` to install, so
/// it comes first then.
fn confine(context: Context<'_>, process: &Process, filter: &Filter, who: &Identity) -> Result<(), Failure> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(process.umask & 0o777));
    if process.no_new_privileges {
        identity::assume(process, who)?;
        rustix::thread::set_no_new_privs(true).step("no_new_privs", "set")?;
        install(context, process, filter)
    } else {
        install(context, process, filter)?;
        identity::assume(process, who)
    }
}

/// Installs the filter; whoever answers its questions gets the descriptor on which they come.
fn install(context: Context<'_>, process: &Process, filter: &Filter) -> Result<(), Failure> {
    let special = &process.special;
    let mut flags = special.seccomp_flags;
    if special.seccomp_listener.is_some() {
        flags |= berth_sys::seccomp::NEW_LISTENER;
    }
    let listener = filter.install(flags).step("seccomp", "install")?;
    if let (Some(wanted), Some(listener)) = (&special.seccomp_listener, listener) {
        let pid = rustix::process::getpid().as_raw_nonzero().to_string();
        let state = wanted.state.replace("{pid}", &pid);
        let socket = context.fds.get(wanted.socket)?;
        wire::send_state(socket, state.as_bytes(), listener.as_fd()).step("seccomp", "listener")?;
    }
    Ok(())
}

/// Makes the working directory when it is missing and goes there, inside the root and through no magic link.
fn enter_cwd(root: BorrowedFd<'_>, cwd: &str) -> Result<(), Failure> {
    let path = if cwd.is_empty() { "/" } else { cwd };
    let dir = resolve::open_or_make(root, path, resolve::Kind::Directory).step("cwd", path)?;
    rustix::process::fchdir(&dir).step("cwd", path)
}
