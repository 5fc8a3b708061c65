//! The end: kill, save, unmount, sync, and the last system call.
//!
//! Every step has a limit. What may hang (a dying disk, the kernel's own power-off) runs in a child, because PID 1
//! stuck in the kernel could not even feed the watchdog.

use std::fmt::Write as _;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use berth_control::PowerAction;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{MountFlags, UnmountFlags, mount_remount, unmount};
use rustix::system::{RebootCommand, reboot};

use crate::kmsg::{error, note, warn};
use crate::signals::Signals;
use crate::watchdog::Watchdog;
use crate::{cgroups, children, settings};

/// For the agent, after SIGTERM.
const TERM_LIMIT: Duration = Duration::from_secs(5);
/// For everything, after SIGKILL.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// For unmounting and syncing; below the watchdog's patience.
const STORAGE_LIMIT: Duration = Duration::from_secs(45);
/// For the kernel to end.
const POWER_LIMIT: Duration = Duration::from_secs(20);
/// The longest wait without a look at the watchdog.
const TICK: Duration = Duration::from_secs(5);
/// Passes over the mount table; each must free something.
const PASSES_MAX: usize = 16;
/// Mounts that stay: what the kernel keeps in memory and the last steps need.
const KEPT: &[&str] = &["/", "/proc", "/sys", "/dev", "/run"];

/// Ends the machine. Comes back only when the kernel refuses to.
pub(crate) fn finish(action: PowerAction, signals: &Signals, mut watchdog: Option<&mut Watchdog>) {
    let mut waiter = Waiter { signals, watchdog: watchdog.take() };
    if let Err(error) = cgroups::kill(cgroups::CONTAINERS) {
        warn!("containers are not killed: {error}, continuing");
    }
    signal_all(Signal::SIGTERM);
    if !waiter.all_gone(TERM_LIMIT) {
        signal_all(Signal::SIGKILL);
        if !waiter.all_gone(KILL_LIMIT) {
            warn!("some processes do not end, continuing");
        }
    }
    settings::save_seed();
    waiter.in_child("storage", STORAGE_LIMIT, || {
        rustix::fs::sync();
        let left = unmount_all();
        rustix::fs::sync();
        if !left.is_empty() {
            warn!("still mounted:{left}, continuing");
        }
        0
    });
    let (command, text) = match action {
        PowerAction::Off => (RebootCommand::PowerOff, "power off"),
        PowerAction::Reboot => (RebootCommand::Restart, "reboot"),
    };
    note!("{text}");
    // The caller of reboot(2) exits when the kernel cannot do it, and PID 1 may not.
    waiter.in_child("the kernel", POWER_LIMIT, || match reboot(command) {
        Ok(()) => 0,
        Err(error) => {
            error!("{text} fails: {error}");
            1
        }
    });
    error!("the machine is still running after {text}");
}

fn signal_all(signal: Signal) {
    // -1: everybody but PID 1. ESRCH when nobody is left.
    match kill(Pid::from_raw(-1), signal) {
        Ok(()) | Err(nix::Error::ESRCH) => {}
        Err(error) => warn!("{signal} is not sent: {error}, continuing"),
    }
}

struct Waiter<'a> {
    signals: &'a Signals,
    watchdog: Option<&'a mut Watchdog>,
}

impl Waiter<'_> {
    /// Reaps until no child is left or the time is over.
    fn all_gone(&mut self, limit: Duration) -> bool {
        self.wait(limit, |_| false)
    }

    /// Runs `work` in a child and waits for it, at most `limit`.
    fn in_child(&mut self, what: &str, limit: Duration, work: impl FnOnce() -> i32) {
        let child = match children::run(work) {
            Ok(child) => child,
            Err(error) => return warn!("no child for {what}: {error}, continuing"),
        };
        if !self.wait(limit, |pid| pid == child.pid) {
            warn!("{what} does not end, continuing");
        }
    }

    /// Reaps until `found` says so or no child is left (true), or until the time is over (false).
    fn wait(&mut self, limit: Duration, found: impl Fn(i32) -> bool) -> bool {
        let start = Instant::now();
        loop {
            loop {
                match berth_sys::signals::peek_ended() {
                    Ok(Some(ended)) => {
                        let _ = berth_sys::signals::reap(ended.pid);
                        if found(ended.pid) {
                            return true;
                        }
                    }
                    Ok(None) => break,
                    Err(_) => return true,
                }
            }
            let now = Instant::now();
            if let Some(watchdog) = &mut self.watchdog {
                watchdog.feed_if_due(now);
            }
            let left = limit.saturating_sub(now.saturating_duration_since(start));
            if left.is_zero() {
                return false;
            }
            let timeout = Timespec::try_from(left.min(TICK)).ok();
            let _ = poll(&mut [PollFd::new(&self.signals.as_fd(), PollFlags::IN)], timeout.as_ref());
            while self.signals.next().is_some() {}
        }
    }
}

/// Unmounts deepest first until nothing changes; what stays is made read-only. Gives what is still writable.
fn unmount_all() -> String {
    let mut targets = Vec::new();
    for _ in 0..PASSES_MAX {
        targets = mount_points(&std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default());
        let before = targets.len();
        // The table is in order of mounting: later ones may lie on earlier ones.
        targets.reverse();
        targets.retain(|target| unmount(target.as_str(), UnmountFlags::NOFOLLOW).is_err());
        if targets.is_empty() || targets.len() == before {
            break;
        }
    }
    let mut left = String::new();
    for target in targets {
        if mount_remount(target.as_str(), MountFlags::RDONLY, c"").is_err() {
            let _ = write!(left, " {target}");
        }
    }
    left
}

/// The mount points of a mountinfo (proc(5)) that are to be unmounted, in its order.
fn mount_points(mountinfo: &str) -> Vec<String> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    points.filter(|point| !is_kept(point)).collect()
}

fn is_kept(point: &str) -> bool {
    KEPT.contains(&point) || ["/proc/", "/sys/", "/dev/"].iter().any(|kept| point.starts_with(kept))
}

/// Space, tab, newline and backslash stand as three octal digits.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let (Some(code), Some(rest)) = (code, part.get(3..)) {
            plain.push(char::from(code));
            plain.push_str(rest);
        } else {
            plain.push('\\');
            plain.push_str(part);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_and_containers_are_unmounted_and_kernel_file_systems_stay() {
        let table = "1 0 7:0 / / ro - erofs /dev/loop0 ro\n\
            2 1 0:1 / /proc rw shared:1 - proc proc rw\n\
            3 1 0:2 / /sys rw - sysfs sysfs rw\n\
            4 3 0:3 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n\
            5 1 0:4 / /run rw - tmpfs tmpfs rw\n\
            6 1 254:0 / /var rw - ext4 /dev/vda rw\n\
            7 6 0:5 / /var/lib/berth/a\\040b rw - overlay overlay rw\n\
            8 5 0:6 net:[1] /run/berth/netns/x rw - nsfs nsfs rw\n\
            broken\n";
        assert_eq!(mount_points(table), ["/var", "/var/lib/berth/a b", "/run/berth/netns/x"]);
    }

    #[test]
    fn escapes_are_undone() {
        for (text, plain) in [
            ("/a\\040b", "/a b"),
            ("/a\\134040", "/a\\040"),
            ("/\\", "/\\"),
            ("/\\9", "/\\9"),
            ("/\\04é", "/\\04é"),
        ] {
            assert_eq!(unescape(text), plain);
        }
    }
}
