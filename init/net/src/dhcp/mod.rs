//! DHCPv4 client (RFC 2131). Reading order: lease (what a server's answer says), machine (what to do when; pure),
//! options (what of a message is believed), frame (IP and UDP headers for an interface without address), client
//! (sockets and clock around the machine).

mod client;
mod frame;
mod lease;
mod machine;
mod options;

pub use client::{Carrier, Client, Update};
pub use lease::{Lease, Route};
pub use machine::{Action, Identity, Machine};
