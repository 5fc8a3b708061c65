//! What travels: the JSON of the Docker Engine API and of the host API as types, and a small client.
//!
//! Principles:
//! - Own types, not generated ones, because clients compare what they sent with what they get back: `null`, `[]` and
//!   absent are three things, and each field here serialises as the reference engine does it.
//! - Decoding is as forgiving as the reference engine's ([`decode`]): keys in any case, `null` for any value, unknown
//!   keys ignored.
//! - This crate knows what is said, never how it is done.

pub mod client;
pub mod decode;
pub mod docker;
pub mod error;
pub mod host;
pub mod version;
