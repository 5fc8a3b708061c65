//! System calls that neither rustix nor nix offers safely, each behind a safe function.
//!
//! The only crate with `unsafe`. It knows no policy, no paths, no logging: descriptors in, descriptors out, always
//! close-on-exec.

pub mod bpf;
pub mod clock;
pub mod clone;
pub mod devices;
pub mod doors;
pub mod inherited;
pub mod mount;
pub mod namespace;
pub mod packet;
pub mod process;
pub mod seccomp;
pub mod signals;
pub mod spawn;
pub mod tuning;

use std::io;

/// The result of a raw system call as `io::Result`.
fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
