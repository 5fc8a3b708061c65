//! What is measured, and what Berth is measured against: Debian with systemd and the usual engines.

pub(crate) mod boot;
pub(crate) mod debian;
pub(crate) mod idle;
mod stack;
pub(crate) mod start;

pub(crate) use stack::Stack;
