//! Berth's OCI runtime: a plan becomes a running container.
//!
//! In reading order: [`plan`] is what is asked, [`client`] asks the launcher for it, [`cgroup`] bounds it.

pub mod capability;
pub mod cgroup;
pub mod client;
pub mod defaults;
pub mod launcher;
pub mod oci;
pub mod plan;
pub mod seccomp;
pub mod signal;
mod stage;
pub mod wire;

pub use stage::passwd;
