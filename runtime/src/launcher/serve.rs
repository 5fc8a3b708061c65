//! The loop: connections come, each brings one request at a time, starts are waited for side by side.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use berth_sys::clone::SingleThreaded;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{SocketFlags, accept_with, sockopt};

use super::Host;
use super::start::{Begun, Starter};
use crate::plan::{Failure, Reply, Request};
use crate::stage::starting::{Running, Starting};
use crate::stage::sync::timespec;
use crate::wire::{self, Incoming, Progress};

/// Most connections at a time. The agent uses a handful; more are not accepted until one closes.
const CONNECTIONS_MAX: usize = 64;

/// The launcher cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The process has threads, so a child of it could not run ordinary code.
    #[error("the launcher must have one thread")]
    Threads(#[source] io::Error),
    /// The private mount namespace could not be made.
    #[error("preparing the mount namespace")]
    Prepare(#[source] Failure),
    /// The listening socket or `poll` failed.
    #[error("waiting for requests")]
    Wait(#[source] io::Error),
}

/// One connection and what it waits for.
struct Connection {
    socket: OwnedFd,
    incoming: Incoming,
    starting: Option<Box<Starting>>,
    /// Nobody reads the answer any more, or the protocol was broken.
    closed: bool,
}

/// Serves requests on `listener` (`SOCK_SEQPACKET`, listening); returns only when it cannot go on.
///
/// The calling process must have one thread. It is moved into a mount namespace of its own.
///
/// # Errors
/// See [`ServeError`]. The caller ends, and init starts it anew; containers that run do not notice.
pub fn serve(listener: &OwnedFd, host: &mut dyn Host) -> Result<(), ServeError> {
    let single = SingleThreaded::check().map_err(ServeError::Threads)?;
    let mut starter = Starter::new(single).map_err(ServeError::Prepare)?;
    let mut connections: Vec<Connection> = Vec::new();
    loop {
        let (accept, ready) = wait(listener, &connections).map_err(ServeError::Wait)?;
        for (connection, ready) in connections.iter_mut().zip(ready) {
            connection.turn(ready, &mut starter, host);
        }
        connections.retain(|connection| !connection.closed || connection.starting.is_some());
        if accept {
            match accept_one(listener) {
                Ok(connection) => connections.push(connection),
                Err(error) => host.log(&format!("connection refused: {error}, continuing")),
            }
        }
    }
}

/// Waits for a connection, a request, a report of a process in set-up, or a deadline.
fn wait(listener: &OwnedFd, connections: &[Connection]) -> io::Result<(bool, Vec<bool>)> {
    let mut fds: Vec<PollFd<'_>> =
        connections.iter().map(|one| PollFd::from_borrowed_fd(one.waits_on(), PollFlags::IN)).collect();
    if connections.len() < CONNECTIONS_MAX {
        fds.push(PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN));
    }
    let deadlines = connections.iter().filter_map(|one| one.starting.as_ref()).map(|one| one.deadline());
    let timeout = deadlines.min().map(|at| timespec(at.saturating_duration_since(Instant::now())));
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let mut ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
    let accept = ready.len() > connections.len() && ready.pop() == Some(true);
    Ok((accept, ready))
}

/// Accepts a connection of the host's root; file permissions say the same, this says it again.
fn accept_one(listener: &OwnedFd) -> io::Result<Connection> {
    let socket = accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    if !sockopt::socket_peercred(&socket)?.uid.is_root() {
        return Err(io::Error::from(io::ErrorKind::PermissionDenied));
    }
    Ok(Connection { socket, incoming: Incoming::default(), starting: None, closed: false })
}

impl Connection {
    fn waits_on(&self) -> BorrowedFd<'_> {
        match &self.starting {
            Some(starting) => starting.socket(),
            None => self.socket.as_fd(),
        }
    }

    fn turn(&mut self, ready: bool, starter: &mut Starter, host: &mut dyn Host) {
        match &mut self.starting {
            None if ready => self.take_packet(starter, host),
            None => {}
            Some(starting) => {
                let outcome = if ready {
                    starting.advance()
                } else {
                    (starting.deadline() <= Instant::now()).then(|| Err(starting.expire()))
                };
                if let Some(outcome) = outcome {
                    self.starting = None;
                    self.answer(outcome, host);
                }
            }
        }
    }

    fn take_packet(&mut self, starter: &mut Starter, host: &mut dyn Host) {
        match self.incoming.receive::<Request>(self.socket.as_fd()) {
            Ok(Progress::Whole(request, fds)) => match starter.begin(&request, &fds, host) {
                Ok(Begun::Starting(starting)) => self.starting = Some(starting),
                Ok(Begun::Slot(slot)) => self.send(&Reply::Slot, &slot, host),
                Err(failure) => self.answer(Err(failure), host),
            },
            Ok(Progress::Partial) => {}
            Ok(Progress::Closed) => self.closed = true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                host.log(&format!("request: {error}, continuing"));
                self.closed = true;
            }
        }
    }

    fn answer(&mut self, outcome: Result<Running, Failure>, host: &mut dyn Host) {
        match outcome {
            Ok(running) => self.send(&Reply::Started { pid: running.pid }, &running.fds, host),
            Err(failure) => {
                host.log(&format!("start failed: {failure}, continuing"));
                self.send(&Reply::Failed(failure), &[], host);
            }
        }
    }

    fn send(&mut self, reply: &Reply, fds: &[OwnedFd], host: &mut dyn Host) {
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        if let Err(error) = wire::send(self.socket.as_fd(), reply, &fds) {
            host.log(&format!("answer: {error}, continuing"));
            self.closed = true;
        }
    }
}
