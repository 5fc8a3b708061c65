//! From containers' pipes and terminals into their logs, on one thread of its own: a disk that stalls stalls logs and
//! nothing else.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use tokio::runtime::{Builder, Handle};

use super::log::Log;
use crate::command::Stream;
use crate::readiness::register;

/// Bytes read from a terminal or thrown away at a time.
const READ_MAX: usize = 64 << 10;
/// Stack of the thread in bytes: it calls no deep code.
const STACK: usize = 256 << 10;

/// Where a run's output comes from.
#[derive(Debug)]
pub(crate) enum Source {
    /// Read ends of two pipes.
    Pipes(OwnedFd, OwnedFd),
    /// The master of a terminal.
    Terminal(Arc<AsyncFd<OwnedFd>>),
}

/// The thread that copies.
#[derive(Clone, Debug)]
pub(crate) struct Copier {
    runtime: Handle,
}

impl Copier {
    /// Starts the thread.
    pub(crate) fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let thread = std::thread::Builder::new().name("logs".to_owned()).stack_size(STACK);
        thread.spawn(move || runtime.block_on(std::future::pending::<()>()))?;
        Ok(Self { runtime: handle })
    }

    /// Copies until every writer is gone, then calls `drained`.
    pub(crate) fn copy(&self, source: Source, log: Arc<Log>, drained: impl FnOnce() + Send + 'static) {
        self.runtime.spawn(async move {
            let outcome = match source {
                Source::Pipes(out, err) => pipes(out, err, &log).await,
                Source::Terminal(master) => terminal(&master, &log).await,
            };
            if let Err(error) = outcome {
                crate::log::warning!("copying a container's output failed: {error}, continuing");
            }
            drained();
        });
    }
}

/// What of a run's output could not be logged. One line says that it begins, one that it ended: a full disk must not
/// fill the kernel's ring as well.
#[derive(Debug, Default)]
struct Lost(usize);

impl Lost {
    fn more(&mut self, bytes: usize, error: &io::Error) {
        if self.0 == 0 {
            crate::log::warning!("a log cannot be written, output is lost: {error}, continuing");
        }
        self.0 = self.0.saturating_add(bytes.max(1));
    }

    fn over(&mut self) {
        if self.0 > 0 {
            crate::log::info!("the log is written again, {} bytes were lost", self.0);
            self.0 = 0;
        }
    }
}

async fn pipes(out: OwnedFd, err: OwnedFd, log: &Log) -> io::Result<()> {
    let mut lost = Lost::default();
    let (out, err) = (register(out)?, register(err)?);
    let (mut out_open, mut err_open) = (true, true);
    while out_open || err_open {
        log.room().await;
        tokio::select! {
            ready = out.readable(), if out_open => out_open = pump(ready?, Stream::Out, log, &mut lost),
            ready = err.readable(), if err_open => err_open = pump(ready?, Stream::Err, log, &mut lost),
        }
    }
    Ok(())
}

/// Moves what is there; whether more may come.
fn pump(mut ready: AsyncFdReadyGuard<'_, OwnedFd>, stream: Stream, log: &Log, lost: &mut Lost) -> bool {
    match ready.try_io(|pipe| move_or_drop(pipe.get_ref(), stream, log, lost)) {
        Ok(Ok(moved)) => moved > 0,
        Ok(Err(error)) => {
            crate::log::warning!("a container's output pipe failed: {error}, continuing");
            false
        }
        Err(_would_block) => true,
    }
}

/// A log that cannot be written must not stop the container: its output is then thrown away.
fn move_or_drop(pipe: &OwnedFd, stream: Stream, log: &Log, lost: &mut Lost) -> io::Result<usize> {
    match log.splice(stream, pipe.as_fd(), now_ns()) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
        Err(error) => {
            let mut bytes = vec![0; READ_MAX];
            let read = rustix::io::retry_on_intr(|| rustix::io::read(pipe, &mut bytes))?;
            lost.more(read, &error);
            Ok(read)
        }
        Ok(moved) => {
            lost.over();
            Ok(moved)
        }
    }
}

async fn terminal(master: &AsyncFd<OwnedFd>, log: &Log) -> io::Result<()> {
    // The descriptor was registered with the main runtime, whose driver wakes this task as well.
    let mut lost = Lost::default();
    let mut bytes = vec![0; READ_MAX];
    loop {
        log.room().await;
        let mut ready = master.readable().await?;
        let read = ready.try_io(|master| Ok(rustix::io::read(master.get_ref(), &mut bytes)?));
        match read {
            Err(_would_block) => {}
            Ok(Ok(0)) => return Ok(()),
            Ok(Ok(length)) => {
                let written = log.append(Stream::Out, bytes.get(..length).unwrap_or_default(), now_ns());
                match written {
                    Ok(()) => lost.over(),
                    Err(error) => lost.more(length, &error),
                }
            }
            // What a master says once the last user of the other side is gone.
            Ok(Err(error)) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                return Ok(());
            }
            Ok(Err(error)) => return Err(error),
        }
    }
}

/// Nanoseconds since the epoch.
pub(crate) fn now_ns() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec)
}
