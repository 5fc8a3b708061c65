//! User, groups and capabilities of the process.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, capabilities, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::failure::{Step, failure};
use super::passwd::{self, Identity, Unknown};
use super::resolve::open_in;
use crate::capability;
use crate::plan::{Failure, Process};

/// Largest `/etc/passwd` or `/etc/group` that is read, in bytes: some 15,000 users.
const FILE_MAX: usize = 1024 * 1024;

/// Becomes id 0 of the user namespace the process is in.
pub(super) fn become_root() -> Result<(), Failure> {
    set_thread_groups(&[]).step("user namespace", "groups")?;
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    set_thread_res_gid(gid, gid, gid).step("user namespace", "gid 0")?;
    set_thread_res_uid(uid, uid, uid).step("user namespace", "uid 0")
}

/// Finds out who the process is to run as, from the container's own files.
pub(super) fn resolve(process: &Process, root: BorrowedFd<'_>) -> Result<Identity, Failure> {
    let passwd = read(root, "/etc/passwd").step("identity", "/etc/passwd")?;
    let group = read(root, "/etc/group").step("identity", "/etc/group")?;
    passwd::resolve(&process.user, &process.groups, &passwd, &group).map_err(|unknown| match unknown {
        Unknown::User(name) => failure("user", &name, Errno::NOENT),
        Unknown::Group(name) => failure("group", &name, Errno::NOENT),
    })
}

/// Reads a file of the image; one that is absent, no regular file or not text counts as empty.
fn read(root: BorrowedFd<'_>, path: &str) -> rustix::io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let Ok(file) = open_in(root, path, flags) else { return Ok(String::new()) };
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let length = rustix::io::retry_on_intr(|| rustix::io::read(file.as_fd(), &mut chunk))?;
        match chunk.get(..length) {
            Some([]) | None => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Some(read) => bytes.extend_from_slice(read),
        }
        if bytes.len() > FILE_MAX {
            return Err(Errno::FBIG);
        }
    }
}

/// Takes on the identity and drops every capability the plan does not give.
pub(super) fn assume(process: &Process, who: &Identity) -> Result<(), Failure> {
    drop_bounding(process.capabilities)?;
    set_keep_capabilities(true).step("capabilities", "keep")?;
    let groups: Vec<Gid> = who.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    set_thread_groups(&groups).step("identity", "groups")?;
    let (uid, gid) = (Uid::from_raw(who.uid), Gid::from_raw(who.gid));
    set_thread_res_gid(gid, gid, gid).step("identity", format!("gid {}", who.gid))?;
    set_thread_res_uid(uid, uid, uid).step("identity", format!("uid {}", who.uid))?;
    set_keep_capabilities(false).step("capabilities", "keep")?;
    // In the host's user namespace the launcher itself may have been given less than all.
    let available = capabilities(None).step("capabilities", "get")?.permitted;
    let given = |set: u64| CapabilitySet::from_bits_retain(set & capability::ALL) & available;
    let Some(wanted) = process.special.capabilities else {
        // execve takes all of them from any user but root, for ambient and inheritable sets are empty; taking them
        // now lets the look-up of the program see what the program will see.
        let set = given(if who.uid == 0 { process.capabilities } else { 0 });
        let sets = CapabilitySets { effective: set, permitted: set, inheritable: CapabilitySet::empty() };
        set_capabilities(None, sets).step("capabilities", "set")?;
        return clear_ambient_capability_set().step("capabilities", "ambient");
    };
    let sets = CapabilitySets {
        effective: given(wanted.effective),
        permitted: given(wanted.permitted),
        inheritable: given(wanted.inheritable),
    };
    set_capabilities(None, sets).step("capabilities", "set")?;
    clear_ambient_capability_set().step("capabilities", "ambient")?;
    for bit in given(wanted.ambient).iter() {
        configure_capability_in_ambient_set(bit, true).step("capabilities", "ambient")?;
    }
    Ok(())
}

fn drop_bounding(keep: u64) -> Result<(), Failure> {
    for (bit, name) in capability::NAMES.iter().enumerate() {
        if keep >> bit & 1 == 1 {
            continue;
        }
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)) {
            // The kernel does not know it, so nobody can have it.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(errno) => return Err(failure("capabilities", name, errno)),
        }
    }
    Ok(())
}
