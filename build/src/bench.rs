//! What Berth is measured against: Debian with systemd and the usual engines, running the same container.

pub(crate) mod debian;
mod stack;
pub(crate) mod start;

pub(crate) use stack::Stack;
