//! The system calls that need unsafe, each behind a safe function.

pub mod clock;
pub mod packet;
