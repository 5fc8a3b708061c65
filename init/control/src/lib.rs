//! What init, the agent and the launcher say to each other over `SOCK_SEQPACKET` sockets.
//!
//! - init ↔ agent: descriptor 3 of the agent ([`ToInit`], [`FromInit`]). One message is one packet of at most
//!   [`MESSAGE_MAX`] bytes with at most [`FDS_MAX`] descriptors.
//! - launcher → init: descriptor 3 of the launcher; it sends only [`ToInit::Register`].
//! - agent → launcher: a connection to [`LAUNCHER_SOCKET`]; its protocol belongs to `berth-runtime`.
//!
//! **Ordering.** The launcher sends `Register` before it releases the child into its program, and init drains
//! every control socket before it reaps. So no exit can precede its registration, without a round trip.
//!
//! Nothing here panics, whatever arrives: PID 1 is one of the readers.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

mod codec;
mod message;
mod socket;

pub use codec::{DecodeError, EncodeError};
pub use message::{Exit, FromInit, Name, NameError, PowerAction, ServiceHealth, ToInit};
pub use socket::Channel;

/// Longest message in bytes.
pub const MESSAGE_MAX: usize = 4096;
/// Most descriptors in one message (the kernel's own limit is 253, `SCM_MAX_FD`).
pub const FDS_MAX: usize = 16;
/// Longest name of a service in [`ServiceHealth`], in bytes.
pub const SERVICE_NAME_MAX: usize = 64;
/// The descriptor number of the control socket in agent and launcher.
pub const CONTROL_FD: i32 = 3;
/// The descriptor number of the launcher's listening socket, held open by init over restarts.
pub const LAUNCHER_LISTEN_FD: i32 = 4;
/// Where the launcher listens; only host root reaches it.
pub const LAUNCHER_SOCKET: &str = "/run/berth/launcher.sock";
