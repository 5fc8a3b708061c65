//! Live output of a container for those attached: the log, read from now on (or from its begin), chunk by chunk.

use std::io;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::cursor::Cursor;
use super::log::Log;
use crate::command::{AttachRequest, Chunk, Stream};

/// Chunks ready for a reader; a slow one makes only itself wait.
const QUEUE: usize = 16;

/// Output as asked for; it ends when run `run` ended and everything it wrote was given out.
pub(crate) fn output(log: &Arc<Log>, request: AttachRequest, run: u32) -> io::Result<mpsc::Receiver<Chunk>> {
    let mut cursor = if request.logs { Cursor::at_start(log)? } else { Cursor::at_end(log)? };
    if request.stream {
        cursor.hold();
    }
    let (sender, receiver) = mpsc::channel(QUEUE);
    let log = log.clone();
    tokio::spawn(async move {
        if let Err(error) = copy(&log, cursor, request, run, &sender).await {
            crate::log::warning!("reading output for an attached client failed: {error}, continuing");
        }
    });
    Ok(receiver)
}

async fn copy(
    log: &Log,
    mut cursor: Cursor,
    request: AttachRequest,
    run: u32,
    sender: &mpsc::Sender<Chunk>,
) -> io::Result<()> {
    let mut progress = log.watch();
    loop {
        // Asked before reading: what was written before the end is then read for certain.
        let ended = progress.borrow_and_update().ended >= run;
        while let Some(piece) = cursor.next()? {
            let wanted = match piece.stream {
                Stream::Out => request.stdout,
                Stream::Err => request.stderr,
            };
            let chunk = Chunk { stream: piece.stream, bytes: piece.bytes };
            if wanted && sender.send(chunk).await.is_err() || cursor.is_given_up() {
                return Ok(());
            }
        }
        if ended || !request.stream {
            return Ok(());
        }
        tokio::select! {
            changed = progress.changed() => if changed.is_err() { return Ok(()) },
            () = sender.closed() => return Ok(()),
        }
    }
}
