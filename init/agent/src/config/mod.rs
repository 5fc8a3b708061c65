//! The machine file: one TOML that says what this machine is. Where it comes from, what it may say, what it means.
//!
//! A broken file never stops the machine: [`load`] falls back to the last good file or to what can be read of the broken
//! one, which keeps the network and the API reachable, and carries the error for the console and the host status.

mod fallback;
mod file;
mod source;
mod units;

pub(crate) use file::{Machine, Registries};
pub(crate) use source::{Loaded, load};
pub(crate) use units::{DEFINITION_LABEL, Unit, legal_name};
