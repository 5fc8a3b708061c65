//! The stage: the steps that turn a plan and descriptors into a running program.
//!
//! ```text
//! launcher (host root)          sources, overlay: detached mounts, owners shifted
//!   └─ intermediate             privileged odds and ends, joins namespaces, drops into the user namespace
//!        └─ container           mounts, devices, masks, pivot_root │ user, terminal, capabilities, filter, exec
//! ```
//!
//! Everything in the container's tree is done by the last process, which has no power outside the container's user
//! namespace. Each step has a name; the first that fails is reported by it ([`failure`], [`sync`]).

pub(crate) mod failure;
pub(crate) mod sync;

pub(crate) mod overlay;
pub(crate) mod scratch;
pub(crate) mod sources;

pub(crate) mod container;
pub(crate) mod intermediate;
pub(crate) mod starting;

mod copy_up;
mod devices;
mod identity;
mod limits;
mod masks;
mod mounts;
mod nodes;
pub mod passwd;
mod program;
mod reaper;
mod resolve;
pub(crate) mod streams;
pub(crate) mod sysctl;
mod terminal;
