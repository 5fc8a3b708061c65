//! Container output, kept: bounded files that never lose or double a byte when the agent is killed.
//!
//! A log is a row of segments. `<n>.log` holds the bytes exactly as written; `<n>.idx` says, in entries of 16 bytes,
//! from which offset on bytes came from which stream and when ([`segment`]). The kernel moves bytes from a
//! container's pipe into the file by `splice`, so at any instant each byte is in the pipe or in the file and nowhere
//! else; the entry is written first. Whoever wants output, live or old, reads the files ([`cursor`]): a slow reader
//! of old lines holds up nobody, an attached one only a container that is far ahead ([`hold`]).

mod attach;
mod copy;
mod cursor;
mod hold;
mod lines;
mod log;
mod segment;

pub(crate) use attach::output;
pub(crate) use copy::{Copier, Source, now_ns};
pub(crate) use lines::follow;
pub(crate) use log::{Limits, Log};
