//! Container networks: which there are ([`registry`]), and a container's place in one ([`connect`]).
//!
//! The firewall always gets the rules of all containers at once, computed from what is here, so nothing can be
//! forgotten in it. All calls block on the kernel and belong on a blocking thread.

mod connect;
mod publish;
mod registry;

pub(crate) use connect::Wanted;
pub(crate) use publish::wanted_ports;
pub(crate) use registry::{DEFAULT, Networks};
