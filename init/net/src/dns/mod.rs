//! Name service for containers: one server on each bridge's gateway address, answering from a table in memory.
//!
//! The table changes while the servers run; nothing is reloaded and no socket is closed for a change. Reading order:
//! [`table`] (what is known), answer (one query, one answer; pure), forward (asking upstream), server (sockets).

mod answer;
mod forward;
mod server;
mod table;
#[cfg(test)]
mod tests;

pub use server::{Server, Sockets};
pub use table::{Host, Table, View};
