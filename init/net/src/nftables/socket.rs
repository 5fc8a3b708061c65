//! Sending a transaction.

use std::io;

use super::encode::Finished;
use crate::netlink::{Failure, Socket};

const NETLINK_NETFILTER: isize = 12;

/// Why a transaction had no effect.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The netlink socket failed.
    #[error("talk to nf_tables")]
    Socket(#[source] io::Error),
    /// The kernel refused a part.
    #[error("nf_tables refused {what}")]
    Refused {
        /// The part: table, chain or set.
        what: String,
        /// The kernel's answer.
        #[source]
        source: Failure,
    },
}

/// A socket to nf_tables.
#[derive(Debug)]
pub struct Netfilter {
    socket: Socket,
}

impl Netfilter {
    /// Opens it in the thread's network namespace.
    pub fn open() -> io::Result<Netfilter> {
        Ok(Netfilter { socket: Socket::open(NETLINK_NETFILTER)? })
    }

    /// Closes the socket without waiting for the kernel ([`Socket::close_aside`]).
    pub fn close_aside(self) {
        self.socket.close_aside();
    }

    /// Sends a transaction and returns once it is in force.
    pub fn commit(&mut self, batch: &Finished) -> Result<(), CommitError> {
        let answers = self.socket.send_framed(&batch.bytes).map_err(CommitError::Socket)?;
        if answers.is_empty() {
            return Err(CommitError::Socket(io::Error::from(io::ErrorKind::UnexpectedEof)));
        }
        for (sequence, answer) in answers {
            if let Err(source) = answer {
                let what = batch.labels.get(sequence as usize).cloned().unwrap_or_default();
                return Err(CommitError::Refused { what, source });
            }
        }
        Ok(())
    }
}
