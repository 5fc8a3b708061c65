//! The machine file: one TOML that says what this machine is. Where it comes from, what it may say, what it means.
//!
//! A broken file never stops the machine: [`load`] falls back to the defaults, which keep the network and the API
//! reachable, and carries the error for the console and the host status.

mod file;
mod source;
mod units;

pub(crate) use file::{Api, FileError, Interface, Machine, Network, Registries, parse};
pub(crate) use source::{Loaded, load};
pub(crate) use units::Unit;
