//! System call filters: what is allowed ([`profile`]), and how it becomes a fast program ([`compile`]).
//!
//! Principles: foreign ABIs are killed, not filtered (a filter cannot see through `int 0x80`); what is not named is
//! refused; the program is a binary tree over intervals, so that each call costs about eight comparisons.

pub mod calls;
pub mod compile;
pub mod profile;

#[cfg(test)]
pub(crate) mod interpret;

use std::io;
use std::os::fd::OwnedFd;

use berth_sys::seccomp::Instruction;

use crate::plan::Seccomp;

/// A compiled filter, or none for an unconfined process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(Option<Vec<Instruction>>);

impl Filter {
    /// The filter a plan asks for. `capabilities` decide which calls the default profile opens.
    ///
    /// # Errors
    /// When the profile does not fit the kernel's limit of a program.
    pub fn new(wanted: &Seccomp, capabilities: u64) -> Result<Self, compile::CompileError> {
        match wanted {
            Seccomp::Unconfined => Ok(Self(None)),
            Seccomp::Default => {
                compile::compile(&profile::default(capabilities)).map(|code| Self(Some(code)))
            }
            Seccomp::Program(program) => {
                let instruction = |(code, jt, jf, k): &(u16, u8, u8, u32)| Instruction {
                    code: *code,
                    jt: *jt,
                    jf: *jf,
                    k: *k,
                };
                Ok(Self(Some(program.iter().map(instruction).collect())))
            }
        }
    }

    /// Installs the filter on this process, for good, with `SECCOMP_FILTER_FLAG_*`; gives the listener when the
    /// flags ask for one.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn install(&self, flags: u32) -> io::Result<Option<OwnedFd>> {
        match &self.0 {
            Some(program) => berth_sys::seccomp::install_with(program, flags),
            None => Ok(None),
        }
    }
}
