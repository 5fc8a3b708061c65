//! Resource limits in two strokes: hard limits are raised where the host's privilege is still there, and set exactly
//! right before the program starts, so that a tight limit cannot break the set-up itself.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustix::io::Errno;
use rustix::thread::{CpuSet, sched_setaffinity};

use super::failure::{Step, failure};
use crate::plan::{Failure, Rlimit};

/// `RLIMIT_*` of Linux in the order of their numbers, with the names Docker uses.
const RESOURCES: [(Resource, &str); 16] = [
    (Resource::RLIMIT_CPU, "cpu"),
    (Resource::RLIMIT_FSIZE, "fsize"),
    (Resource::RLIMIT_DATA, "data"),
    (Resource::RLIMIT_STACK, "stack"),
    (Resource::RLIMIT_CORE, "core"),
    (Resource::RLIMIT_RSS, "rss"),
    (Resource::RLIMIT_NPROC, "nproc"),
    (Resource::RLIMIT_NOFILE, "nofile"),
    (Resource::RLIMIT_MEMLOCK, "memlock"),
    (Resource::RLIMIT_AS, "as"),
    (Resource::RLIMIT_LOCKS, "locks"),
    (Resource::RLIMIT_SIGPENDING, "sigpending"),
    (Resource::RLIMIT_MSGQUEUE, "msgqueue"),
    (Resource::RLIMIT_NICE, "nice"),
    (Resource::RLIMIT_RTPRIO, "rtprio"),
    (Resource::RLIMIT_RTTIME, "rttime"),
];

fn resource(number: u32) -> Result<(Resource, &'static str), Failure> {
    let found = usize::try_from(number).ok().and_then(|index| RESOURCES.get(index));
    found.copied().ok_or_else(|| failure("limit", &format!("number {number}"), Errno::INVAL))
}

/// Lets the process run on these processors only; none named leaves them as they are.
pub(super) fn run_on(processors: &[u32]) -> Result<(), Failure> {
    if processors.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    for number in processors {
        let place = usize::try_from(*number).unwrap_or(usize::MAX);
        if place >= CpuSet::MAX_CPU {
            return Err(failure("processors", &number.to_string(), Errno::INVAL));
        }
        set.set(place);
    }
    sched_setaffinity(None, &set).step("processors", format!("{processors:?}"))
}

/// Raises hard limits that are below what is wanted.
pub(super) fn raise_hard(limits: &[Rlimit]) -> Result<(), Failure> {
    for limit in limits {
        let (resource, name) = resource(limit.resource)?;
        let (soft, hard) = getrlimit(resource).step("limit", name)?;
        if limit.hard > hard {
            setrlimit(resource, soft, limit.hard).step("limit", name)?;
        }
    }
    Ok(())
}

/// Sets soft and hard limits to what is wanted.
pub(super) fn set(limits: &[Rlimit]) -> Result<(), Failure> {
    for limit in limits {
        let (resource, name) = resource(limit.resource)?;
        setrlimit(resource, limit.soft.min(limit.hard), limit.hard).step("limit", name)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_kernels() {
        for (number, name) in
            [(0, "cpu"), (4, "core"), (6, "nproc"), (7, "nofile"), (8, "memlock"), (15, "rttime")]
        {
            let (kind, text) = resource(number).unwrap();
            assert_eq!(text, name);
            assert_eq!(kind as u32, number);
        }
        assert!(resource(16).is_err());
    }
}
