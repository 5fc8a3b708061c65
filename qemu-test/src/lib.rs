//! Boots the real image under QEMU and drives it from outside: through its API, its console and QMP.
//!
//! Principles: nothing waits without a deadline; events are waited for, never a fixed time; what a failed case needs
//! for understanding (console, machine file, disk) is kept and its place printed; nothing outlives its case.
//!
//! In reading order:

pub mod accel;
pub mod artifacts;
pub mod console;
pub mod disk;
pub mod docker;
pub mod guest;
pub mod http;
pub mod machine;
pub mod oci;
pub mod pki;
pub mod ports;
pub mod qmp;
pub mod registry;
pub mod scenario;
pub mod session;

pub use accel::{Accel, Choice};
pub use guest::Guest;
pub use machine::{BootImage, Machine};
