//! nf_tables over netlink: an encoder for the part of the protocol the firewall needs.
//!
//! Reading order: encode (attributes, messages, the transaction), expressions (what a rule is made of), socket.

mod encode;
pub mod expression;
mod socket;

pub use encode::{Attributes, Batch, ChainHook, Element, Family, Finished, Set};
pub use socket::{CommitError, Netfilter};
