//! Attached clients, logs, terminal sizes.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use bytes::Bytes;
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};

use super::container::Input;
use super::{Happening, Owner};
use crate::command::{AttachRequest, Attachment, LogLine, LogRequest, Refusal};
use crate::logs;
use crate::phase::Phase;
use crate::start;

/// Chunks of input waiting: a program that does not read makes its client wait.
const INPUT_QUEUE: usize = 16;

impl Owner {
    pub(super) fn attach(&mut self, id: &str, request: AttachRequest) -> Result<Attachment, Refusal> {
        let happenings = self.happenings.clone();
        let container = self.get(id)?;
        let record = &container.record;
        let run = match record.phase() {
            Phase::Paused => {
                return Err(Refusal::Conflict(format!(
                    "container {} is paused, unpause the container before attach",
                    record.id
                )));
            }
            Phase::Removing => {
                return Err(Refusal::Conflict(format!("container {} is being removed", record.id)));
            }
            Phase::Running | Phase::Starting => record.run,
            // Attached before the start: to the run that comes.
            Phase::Created | Phase::Exited | Phase::Restarting => record.run.saturating_add(1),
        };
        let failed = |error: std::io::Error| Refusal::Failed(format!("attach: {error}"));
        let output = logs::output(&container.log, request, run).map_err(failed)?;
        let input = (request.stdin && record.config.open_stdin || request.stdin && record.config.tty).then(|| {
            let (sender, receiver) = mpsc::channel(INPUT_QUEUE);
            let done = (record.config.stdin_once && !record.config.tty).then(|| {
                let id = record.id.clone();
                async move { drop(happenings.send(Happening::InputDone(id, run)).await) }
            });
            let input = container.input.subscribe();
            tokio::spawn(async move {
                feed(input, receiver).await;
                if let Some(done) = done {
                    done.await;
                }
            });
            sender
        });
        let attachment = Attachment { tty: record.config.tty, output, input };
        let id = record.id.clone();
        self.announce(&id, "attach", &[]);
        Ok(attachment)
    }

    /// Closes standard input, as `StdinOnce` wants when its client is done.
    pub(super) fn input_done(&mut self, id: &str, run: u32) {
        let machinery = self.machinery.clone();
        let Some(container) = self.containers.get_mut(id).filter(|container| container.record.run == run) else {
            return;
        };
        container.input.send_replace(None);
        // init keeps the write end as well.
        machinery.init.remove(&start::input_name(id, run));
    }

    pub(super) fn logs(&mut self, id: &str, request: LogRequest) -> Result<mpsc::Receiver<LogLine>, Refusal> {
        let container = self.get(id)?;
        Ok(logs::follow(container.log.clone(), request))
    }

    pub(super) fn resize(&mut self, id: &str, rows: u16, columns: u16) -> Result<(), Refusal> {
        let container = self.get(id)?;
        let master = container.input.borrow().clone();
        match master {
            Some(master) if container.record.config.tty => set_size(master.get_ref(), rows, columns),
            // Docker resizes nothing and says so only for a container that does not run.
            Some(_) => Ok(()),
            None if container.live.is_some() => Ok(()),
            None => Err(Refusal::Conflict(format!("container {} is not running", container.record.id))),
        }
    }
}

/// Sets a terminal's size.
pub(super) fn set_size(master: &OwnedFd, rows: u16, columns: u16) -> Result<(), Refusal> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(master.as_fd(), size).map_err(|error| Refusal::Failed(format!("resize: {error}")))
}

/// Writes what a client sends to the container, from the time it runs, until one of them is done.
async fn feed(mut input: watch::Receiver<Input>, mut chunks: mpsc::Receiver<Bytes>) {
    let Ok(target) = input.wait_for(Option::is_some).await.map(|input| input.clone()) else { return };
    let Some(target) = target else { return };
    loop {
        let chunk = tokio::select! {
            chunk = chunks.recv() => chunk,
            // The run ended, or somebody closed its input.
            _ = input.wait_for(Option::is_none) => return,
        };
        let Some(chunk) = chunk else { return };
        if write_all(&target, &chunk).await.is_err() {
            return;
        }
    }
}

/// Writes everything, however slow the reader.
pub(super) async fn write_all(target: &Arc<AsyncFd<OwnedFd>>, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let mut ready = target.writable().await?;
        let written = ready.try_io(|target| Ok(rustix::io::write(target.get_ref(), bytes)?));
        if let Ok(written) = written {
            bytes = bytes.get(written?..).unwrap_or_default();
        }
    }
    Ok(())
}
