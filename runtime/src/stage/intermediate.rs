//! The process between launcher and container: does what still needs the host's privileges, joins namespaces, drops
//! into the container's user namespace and makes the container's first process from there.
//!
//! It is needed because a process keeps its pid namespace for life, and because new namespaces shall be owned by the
//! container's user namespace. Both processes are children of init (`CLONE_PARENT`), which reaps them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_sys::clone::{Options, SingleThreaded, spawn};
use berth_sys::tuning::{Scheduling, set_io_priority, set_scheduling};
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
};

use super::failure::Step;
use super::limits;
use super::sources::Fds;
use super::sync::{Report, report};
use crate::plan::{
    ExecPlan, Failure, Namespace, Namespaces, Plan, Process, TimeNamespace, TimeOffset, UserNamespace,
};

/// What every process in set-up has at hand.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    /// The process has one thread.
    pub(crate) single: SingleThreaded,
    /// Its end of the connection to the launcher.
    pub(crate) sync: BorrowedFd<'a>,
    /// The plan's descriptors.
    pub(crate) fds: Fds<'a>,
    /// Where the process waits between set-up and program, and what else happens on the way; none to go on at once.
    pub(crate) gate: Option<&'a dyn Gate>,
}

/// The stops of a container that is created first and started later (OCI).
pub(crate) trait Gate {
    /// In the container's namespaces, before its root is the root.
    fn before_pivot(&self) -> Result<(), Failure>;

    /// Waits to be let through; gives the connection on which the rest is reported. In the container's root.
    fn wait(&self) -> Result<OwnedFd, Failure>;
}

/// Makes the first process of a container; its exit code is the intermediate's own.
pub(crate) fn launch(context: Context<'_>, plan: &Plan, child: impl FnOnce() -> i32) -> i32 {
    finish(context, try_launch(context, plan, child))
}

/// Makes a further process of a running container.
pub(crate) fn exec(
    context: Context<'_>,
    plan: &ExecPlan,
    cgroup: BorrowedFd<'_>,
    child: impl FnOnce() -> i32,
) -> i32 {
    finish(context, try_exec(context, plan, cgroup, child))
}

fn finish(context: Context<'_>, result: Result<(), Failure>) -> i32 {
    let Err(failure) = result else { return 0 };
    // Without a launcher there is nobody to tell, and the exit code says it all.
    let _ = report(context.sync, &Report::Failed(failure), &[]);
    1
}

fn try_launch(context: Context<'_>, plan: &Plan, child: impl FnOnce() -> i32) -> Result<(), Failure> {
    prepare_process(&plan.process)?;
    join_shared(&plan.namespaces, context.fds)?;
    if let Some(fd) = plan.special.mount_namespace {
        let kind = Some(LinkNameSpaceType::Mount);
        move_into_link_name_space(context.fds.get(fd)?, kind).step("namespaces", "mount")?;
    }
    if let Some(TimeNamespace::Join(fd)) = plan.special.time {
        let kind = Some(LinkNameSpaceType::Time);
        move_into_link_name_space(context.fds.get(fd)?, kind).step("namespaces", "time")?;
    }
    if let UserNamespace::Own { fd, .. } = plan.namespaces.user {
        let user = context.fds.get(fd)?;
        move_into_link_name_space(user, Some(LinkNameSpaceType::User)).step("user namespace", "join")?;
    }
    if let Some(TimeNamespace::New(offsets)) = &plan.special.time {
        new_time_namespace(offsets)?;
    }
    let mut namespaces = new_namespaces(&plan.namespaces);
    if plan.special.mount_namespace.is_some() {
        namespaces &= !u64::from(libc::CLONE_NEWNS.unsigned_abs());
    }
    let options = Options { namespaces, sibling: true, cgroup: Some(context.fds.get(plan.cgroup)?) };
    clone_and_report(context, options, child)
}

/// The next process made lives in it: its offsets can be set only as long as none does.
fn new_time_namespace(offsets: &[TimeOffset]) -> Result<(), Failure> {
    // libc has the flag, nix does not.
    let flag = nix::sched::CloneFlags::from_bits_retain(libc::CLONE_NEWTIME);
    nix::sched::unshare(flag).step("namespaces", "time")?;
    for one in offsets {
        let line = format!("{} {} {}\n", one.clock, one.seconds, one.nanoseconds);
        std::fs::write("/proc/self/timens_offsets", &line).step("time offsets", line.trim_end())?;
    }
    Ok(())
}

fn try_exec(
    context: Context<'_>,
    plan: &ExecPlan,
    cgroup: BorrowedFd<'_>,
    child: impl FnOnce() -> i32,
) -> Result<(), Failure> {
    prepare_process(&plan.process)?;
    let target = context.fds.get(plan.target)?;
    let shared = ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::PROCESS_ID;
    move_into_thread_name_spaces(target, shared).step("namespaces", "join")?;
    let mut own = ThreadNameSpaceType::MOUNT;
    if plan.user_namespace {
        own |= ThreadNameSpaceType::USER;
    }
    move_into_thread_name_spaces(target, own).step("namespaces", "join")?;
    let options = Options { namespaces: 0, sibling: true, cgroup: Some(cgroup) };
    clone_and_report(context, options, child)
}

fn clone_and_report(
    context: Context<'_>,
    options: Options<'_>,
    child: impl FnOnce() -> i32,
) -> Result<(), Failure> {
    let made = spawn(context.single, options, child).step("clone", "first process")?;
    let told = report(context.sync, &Report::Cloned { pid: made.pid }, &[made.pidfd.as_fd()]);
    told.step("clone", "report")
}

/// What needs the host's `CAP_SYS_RESOURCE`; the children inherit it.
fn prepare_process(process: &Process) -> Result<(), Failure> {
    let score = process.oom_score_adj.clamp(-1000, 1000).to_string();
    std::fs::write("/proc/self/oom_score_adj", &score).step("oom score", &score)?;
    limits::raise_hard(&process.rlimits)?;
    // Places that are better than an ordinary one take the host's privilege.
    let special = &process.special;
    if let Some(wanted) = special.scheduler {
        let mut scheduling = Scheduling::default();
        (scheduling.policy, scheduling.flags, scheduling.nice) = (wanted.policy, wanted.flags, wanted.nice);
        (scheduling.priority, scheduling.runtime) = (wanted.priority, wanted.runtime);
        (scheduling.deadline, scheduling.period) = (wanted.deadline, wanted.period);
        set_scheduling(&scheduling).step("scheduler", format!("policy {}", wanted.policy))?;
    }
    if let Some(priority) = special.io_priority {
        set_io_priority(priority).step("io priority", priority.to_string())?;
    }
    limits::run_on(&special.first_processors)
}

/// Joins namespaces that may belong to another user namespace, which takes the host's privileges.
fn join_shared(namespaces: &Namespaces, fds: Fds<'_>) -> Result<(), Failure> {
    let joined = [
        (namespaces.net, LinkNameSpaceType::Network, "network"),
        (namespaces.ipc, LinkNameSpaceType::InterProcessCommunication, "ipc"),
        (namespaces.uts, LinkNameSpaceType::HostNameAndNISDomainName, "uts"),
        (namespaces.pid, LinkNameSpaceType::ProcessID, "pid"),
    ];
    for (namespace, kind, name) in joined {
        if let Namespace::Join(fd) = namespace {
            move_into_link_name_space(fds.get(fd)?, Some(kind)).step("namespaces", name)?;
        }
    }
    Ok(())
}

/// Flags of the namespaces `clone3` makes. The control group namespace is not among them: it would be rooted at the
/// maker's group, not at the one the child is born into.
fn new_namespaces(namespaces: &Namespaces) -> u64 {
    let choices = [
        (namespaces.net, libc::CLONE_NEWNET),
        (namespaces.pid, libc::CLONE_NEWPID),
        (namespaces.ipc, libc::CLONE_NEWIPC),
        (namespaces.uts, libc::CLONE_NEWUTS),
    ];
    let new = choices.iter().filter(|(namespace, _)| *namespace == Namespace::New);
    new.fold(u64::from(libc::CLONE_NEWNS.unsigned_abs()), |flags, (_, flag)| {
        flags | u64::from(flag.unsigned_abs())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Fd;

    #[test]
    fn only_new_namespaces_are_cloned_and_the_mount_namespace_always() {
        let namespaces = Namespaces {
            user: UserNamespace::Host,
            net: Namespace::Join(Fd(0)),
            pid: Namespace::New,
            ipc: Namespace::Host,
            uts: Namespace::New,
            cgroup: Namespace::New,
        };
        let expected = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWUTS;
        assert_eq!(new_namespaces(&namespaces), u64::from(expected.unsigned_abs()));
    }
}
