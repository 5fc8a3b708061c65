//! How the kernel schedules and counts a process: `sched_setattr`, `ioprio_set`, `personality`.

use std::io;

/// A scheduling policy with its parameters (`struct sched_attr`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scheduling {
    /// Size of the structure; set by [`set_scheduling`].
    size: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// -20 to 19, of the policies that share the processor.
    pub nice: i32,
    /// 1 to 99, of the real-time policies.
    pub priority: u32,
    /// Nanoseconds, of `SCHED_DEADLINE`.
    pub runtime: u64,
    /// Nanoseconds, of `SCHED_DEADLINE`.
    pub deadline: u64,
    /// Nanoseconds, of `SCHED_DEADLINE`.
    pub period: u64,
}

/// Schedules the calling thread, and what it becomes, in this way.
///
/// # Errors
/// `EPERM` without `CAP_SYS_NICE` for a better place than before, `EINVAL` when parameters do not fit the policy.
pub fn set_scheduling(wanted: &Scheduling) -> io::Result<()> {
    let mut attr = *wanted;
    attr.size = u32::try_from(size_of::<Scheduling>()).unwrap_or(0);
    // SAFETY: the structure has the kernel's layout and says its size; the kernel only reads it.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) };
    crate::checked(result).map(drop)
}

/// Sets the priority of the calling thread's input and output: class in the upper three bits of sixteen, level below.
///
/// # Errors
/// `EPERM` without the capability for the class.
pub fn set_io_priority(priority: u16) -> io::Result<()> {
    const WHO_PROCESS: libc::c_int = 1;
    // SAFETY: integers only.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, libc::c_int::from(priority)) };
    crate::checked(result).map(drop)
}

/// Sets the execution domain of the calling thread.
///
/// # Errors
/// What the kernel says.
pub fn set_personality(persona: u32) -> io::Result<()> {
    // SAFETY: changes how later system calls of this process behave, which is what is asked for; no memory.
    let result = unsafe { libc::personality(libc::c_ulong::from(persona)) };
    crate::checked(result.into()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_has_the_first_published_size() {
        assert_eq!(size_of::<Scheduling>(), 48);
    }

    #[test]
    fn a_policy_that_does_not_exist_is_refused() {
        let wanted = Scheduling { policy: 99, ..Scheduling::default() };
        assert_eq!(set_scheduling(&wanted).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
