//! Namespaces made ahead of a container: a user namespace with its range of ids, a network namespace owned by it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use berth_sys::clone::{Child, Options, SingleThreaded, spawn};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use crate::plan::Failure;
use crate::stage::failure::{Step, failure};
use crate::stage::sync::{Go, connection, wait_readable};
use crate::wire;

/// How long the short-lived child may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// Makes a slot whose ids `0..count` are `base..base+count` of the host. The host's root is never among them.
pub(crate) fn make(single: SingleThreaded, base: u32, count: u32) -> Result<[OwnedFd; 2], Failure> {
    if base == 0 || count == 0 || base.checked_add(count).is_none() {
        return Err(failure("slot", &format!("ids {base}+{count}"), Errno::INVAL));
    }
    let map = format!("0 {base} {count}\n");
    let (user, net) = make_namespaces(single, libc::CLONE_NEWNET, [&map, &map])?;
    Ok([user, net.ok_or_else(|| failure("slot", "network", Errno::BADF))?])
}

/// Makes a user namespace with these lines of `uid_map` and `gid_map`, and none below it.
pub(crate) fn make_user(single: SingleThreaded, maps: [&str; 2]) -> Result<OwnedFd, Failure> {
    make_namespaces(single, 0, maps).map(|(user, _)| user)
}

/// What a holder leaves behind: a user namespace, and a network namespace when one was asked for.
type Namespaces = (OwnedFd, Option<OwnedFd>);

fn make_namespaces(single: SingleThreaded, beside: i32, maps: [&str; 2]) -> Result<Namespaces, Failure> {
    let (ours, theirs) = connection().step("slot", "connection")?;
    let namespaces = u64::from((libc::CLONE_NEWUSER | beside).unsigned_abs());
    let options = Options { namespaces, ..Options::default() };
    let mut end = Some(ours);
    let child = spawn(single, options, || {
        // Its copy of the launcher's end would hide the launcher's death from it.
        drop(end.take());
        holder(&theirs)
    })
    .step("slot", "clone")?;
    drop(theirs);
    let ours = end.ok_or_else(|| failure("slot", "connection", Errno::BADF))?;
    let result = furnish(&child, beside, maps).and_then(|slot| {
        wire::send(ours.as_fd(), &Go, &[]).step("slot", "child")?;
        wait_readable(ours.as_fd(), Instant::now() + DEADLINE).step("slot", "child")?;
        Ok(slot)
    });
    if result.is_err() {
        // It is our own child, not reaped yet, so this can only fail by its being dead.
        let _ = pidfd_send_signal(&child.pidfd, Signal::KILL);
    }
    match (result, code(&child).step("slot", "wait")?) {
        (Ok(slot), 0) => Ok(slot),
        (Ok(_), errno) => Err(failure("slot", "user.max_user_namespaces", Errno::from_raw_os_error(errno))),
        (Err(failure), _) => Err(failure),
    }
}

/// The child: lives in the new namespaces until they are open elsewhere, and forbids user namespaces below, which
/// only somebody inside can. Gives an error number.
fn holder(theirs: &OwnedFd) -> i32 {
    let result = wire::receive::<Go>(theirs.as_fd())
        .and_then(|_| std::fs::write("/proc/sys/user/max_user_namespaces", "0"));
    match result {
        Ok(()) => 0,
        Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
    }
}

fn furnish(child: &Child, beside: i32, maps: [&str; 2]) -> Result<Namespaces, Failure> {
    for (file, map) in ["uid_map", "gid_map"].iter().zip(maps) {
        std::fs::write(format!("/proc/{}/{file}", child.pid), map).step("slot", file)?;
    }
    let open = |name: &str| {
        let path = format!("/proc/{}/ns/{name}", child.pid);
        rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).step("slot", name)
    };
    let net = if beside == 0 { None } else { Some(open("net")?) };
    Ok((open("user")?, net))
}

/// Reaps the child; its exit code, an error number.
fn code(child: &Child) -> io::Result<i32> {
    let status =
        rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED))?;
    Ok(status.and_then(|status| status.exit_status()).unwrap_or(libc::EIO))
}
