//! Installing a system call filter.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// One instruction of classic BPF.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Jump when true.
    pub jt: u8,
    /// Jump when false.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// Longest program the kernel takes (`BPF_MAXINSNS`).
pub const PROGRAM_MAX: usize = 4096;

/// `SECCOMP_FILTER_FLAG_NEW_LISTENER`.
pub const NEW_LISTENER: u32 = 1 << 3;

/// Installs `program` on the calling thread, for good.
///
/// # Errors
/// `EACCES` without both `CAP_SYS_ADMIN` and `no_new_privs`, `EINVAL` when the program is not valid.
pub fn install(program: &[Instruction]) -> io::Result<()> {
    install_with(program, 0).map(drop)
}

/// Installs `program` with `SECCOMP_FILTER_FLAG_*`; gives the listener that `NEW_LISTENER` makes.
///
/// # Errors
/// As [`install`]; `EINVAL` for flags the kernel does not know.
pub fn install_with(program: &[Instruction], flags: u32) -> io::Result<Option<OwnedFd>> {
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let fprog =
        libc::sock_fprog { len: length, filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut() };
    // SAFETY: `Instruction` has the layout of `sock_filter`; the kernel copies the program and writes nothing.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const fprog) };
    let made = crate::checked(result)?;
    if flags & NEW_LISTENER == 0 {
        return Ok(None);
    }
    let fd = i32::try_from(made).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // SAFETY: with NEW_LISTENER the result is a new descriptor, close-on-exec, that nobody else knows.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_has_the_kernels_layout() {
        assert_eq!(size_of::<Instruction>(), size_of::<libc::sock_filter>());
        assert_eq!(std::mem::offset_of!(Instruction, k), 4);
    }

    #[test]
    fn an_empty_program_is_refused() {
        assert_eq!(install(&[]).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
