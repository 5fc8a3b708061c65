//! `start`: opens the gate of a created container and waits until its program runs.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::create::gate_address;
use super::state::{Container, GATE, Status};
use super::{OciError, file, hooks, system};
use crate::stage::sync::{Go, Report};
use crate::wire::{self, Incoming, Progress};

/// Starts a created container.
///
/// # Errors
/// `Status` when it is not created; the step that failed on the way to its program.
pub fn start(root: &Path, id: &str) -> Result<(), OciError> {
    let container = Container::open(root, id)?;
    let status = container.status();
    if status != Status::Created {
        return Err(OciError::Status { id: id.to_owned(), status });
    }
    if container.spec.process.is_none() {
        super::end::kill_all(&container);
        return Err(OciError::Spec("process is not set".to_owned()));
    }
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(system("gate"))?;
    let (_dir, address) = gate_address(&container.dir)?;
    rustix::net::connect(&socket, &address).map_err(system("gate"))?;
    wire::send(socket.as_fd(), &Go, &[]).map_err(system("gate"))?;
    let gate = container.dir.join(GATE);
    std::fs::remove_file(&gate).map_err(file("remove", &gate))?;
    wait_for_program(socket.as_fd())?;
    if let Some(wanted) = &container.spec.hooks {
        let result = hooks::run(&wanted.poststart, &container.shown(Status::Running));
        if result.is_err() {
            super::end::kill_all(&container);
        }
        result?;
    }
    Ok(())
}

fn wait_for_program(socket: std::os::fd::BorrowedFd<'_>) -> Result<(), OciError> {
    let mut incoming = Incoming::default();
    let mut executing = false;
    loop {
        match incoming.receive::<Report>(socket).map_err(system("gate"))? {
            Progress::Whole(Report::Executing, _) => executing = true,
            Progress::Whole(Report::Failed(failure), _) => return Err(failure.into()),
            Progress::Whole(..) | Progress::Partial => {}
            Progress::Closed if executing => return Ok(()),
            Progress::Closed => {
                let text = "ended before its program".to_owned();
                return Err(OciError::System { what: "start", source: std::io::Error::other(text) });
            }
        }
    }
}
