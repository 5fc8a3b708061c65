//! Networking of the machine and of its containers.
//!
//! Principles: the kernel is asked over netlink only, never by running a program; what belongs together is sent in
//! one message batch; the firewall is rebuilt whole, in one transaction, never patched; names are resolved here,
//! never by the C library (the programs are static). Nothing here logs: functions return errors, long-running parts
//! hand out [`host::Event`]s.
//!
//! In reading order:

pub mod mac;
pub mod pool;
pub mod ports;

pub mod bridge;
pub mod direct;
pub mod netlink;
pub mod sysctl;
pub mod veth;

pub mod conntrack;
pub mod firewall;
pub mod nftables;

pub mod dhcp;
pub mod host;

pub mod dns;
mod exchange;
pub mod resolver;
pub mod sntp;
pub mod upstream;

pub use ipnet::{IpNet, Ipv4Net, Ipv6Net};
pub use mac::Mac;
pub use ports::Protocol;
pub use upstream::Upstreams;
