//! A container's log: the segments, how far it got, and which run is writing.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::hold::Holds;
use super::segment::{self, Segment};
use crate::command::Stream;

/// How much of a log is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes of one segment.
    pub(crate) segment_bytes: u64,
    /// Segments kept, at least 1.
    pub(crate) segments: usize,
}

impl Default for Limits {
    /// 30 MiB in all: enough to see what happened, little enough for thousands of containers on one disk.
    fn default() -> Self {
        Self { segment_bytes: 10 << 20, segments: 3 }
    }
}

/// Most bytes moved at a time: the size of a container's pipe.
const MOVE_MAX: usize = 1 << 20;

/// How far a log got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Progress {
    /// The segment that is written.
    pub(super) segment: u64,
    /// Its length.
    pub(super) length: u64,
    /// A run is writing.
    pub(super) open: bool,
    /// Runs up to this number have ended and everything they wrote is here.
    pub(super) ended: u32,
}

/// See the module. Cheap to share; lives as long as the container.
#[derive(Debug)]
pub(crate) struct Log {
    dir: PathBuf,
    limits: Limits,
    writer: Mutex<Option<Segment>>,
    progress: watch::Sender<Progress>,
    holds: Arc<Holds>,
}

impl Log {
    /// Opens the log in `dir`, or makes it. `ended` is the number of the container's last run.
    pub(crate) fn open(dir: &Path, limits: Limits, ended: u32) -> io::Result<Arc<Self>> {
        std::fs::create_dir_all(dir)?;
        let newest = segment::numbers(dir)?.last().copied().unwrap_or(0);
        let segment = Segment::open(dir, newest)?;
        let progress = Progress { segment: newest, length: segment.length(), open: false, ended };
        let (progress, _) = watch::channel(progress);
        let holds = Arc::default();
        Ok(Arc::new(Self { dir: dir.to_owned(), limits, writer: Mutex::new(None), progress, holds }))
    }

    /// The directory of the segments.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// How far it got, now and from now on.
    pub(super) fn watch(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Run `run` starts to write, or goes on after a restart of the agent.
    pub(crate) fn begin(&self, run: u32) {
        self.progress.send_modify(|progress| {
            progress.open = true;
            progress.ended = run.saturating_sub(1);
        });
    }

    /// Run `run` ended, or could not be started, and everything it wrote is here.
    pub(crate) fn end(&self, run: u32) {
        self.progress.send_modify(|progress| {
            progress.open = false;
            progress.ended = progress.ended.max(run);
        });
        // Descriptors are kept only while a run writes.
        *self.writer.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The container is gone: all readers come to their end.
    pub(crate) fn close(&self) {
        self.end(u32::MAX);
    }

    /// Where attached clients are.
    pub(super) fn holds(&self) -> &Arc<Holds> {
        &self.holds
    }

    /// Waits until the next write overtakes no attached client.
    pub(super) async fn room(&self) {
        let full = {
            let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
            writer
                .as_ref()
                .filter(|segment| segment.size() >= self.limits.segment_bytes)
                .map(|full| full.number)
        };
        // The segments that the next turn deletes.
        let keep = u64::try_from(self.limits.segments.max(1)).unwrap_or(u64::MAX);
        if let Some(deleted) = full.and_then(|number| (number + 1).checked_sub(keep)) {
            self.holds.released(deleted).await;
        }
    }

    /// Moves what is in a pipe into the log. 0 at the pipe's end, `WouldBlock` when it is empty.
    pub(super) fn splice(&self, stream: Stream, pipe: BorrowedFd<'_>, at_ns: i64) -> io::Result<usize> {
        self.write(stream, at_ns, |segment| segment.splice(pipe, MOVE_MAX))
    }

    /// Writes bytes that were read already.
    pub(super) fn append(&self, stream: Stream, bytes: &[u8], at_ns: i64) -> io::Result<()> {
        self.write(stream, at_ns, |segment| segment.append(bytes).map(|()| bytes.len()))?;
        Ok(())
    }

    fn write(
        &self,
        stream: Stream,
        at_ns: i64,
        write: impl Fn(&mut Segment) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut segment = match writer.take() {
            Some(segment) if segment.size() < self.limits.segment_bytes => segment,
            Some(full) => self.rotate(full.number)?,
            None => self.reopen()?,
        };
        let mut outcome = segment.mark(stream, at_ns).and_then(|()| write(&mut segment));
        let is_full = |error: &io::Error| error.kind() == io::ErrorKind::StorageFull;
        if outcome.as_ref().is_err_and(is_full) && self.shrink(segment.number)? {
            outcome = segment.mark(stream, at_ns).and_then(|()| write(&mut segment));
        }
        let (number, length) = (segment.number, segment.length());
        *writer = Some(segment);
        drop(writer);
        self.progress.send_if_modified(|progress| {
            let changed = (progress.segment, progress.length) != (number, length);
            (progress.segment, progress.length) = (number, length);
            changed
        });
        outcome
    }

    fn reopen(&self) -> io::Result<Segment> {
        let number = self.progress.borrow().segment;
        let segment = Segment::open(&self.dir, number)?;
        if segment.size() < self.limits.segment_bytes { Ok(segment) } else { self.rotate(number) }
    }

    fn rotate(&self, full: u64) -> io::Result<Segment> {
        let next = Segment::open(&self.dir, full + 1)?;
        let keep = self.limits.segments.max(1);
        let numbers = segment::numbers(&self.dir)?;
        for old in numbers.iter().rev().skip(keep) {
            self.delete(*old)?;
        }
        Ok(next)
    }

    /// The disk is full: gives up what is oldest. Whether there was anything to give up.
    fn shrink(&self, current: u64) -> io::Result<bool> {
        match segment::numbers(&self.dir)?.first() {
            Some(oldest) if *oldest < current => self.delete(*oldest).map(|()| true),
            _ => Ok(false),
        }
    }

    fn delete(&self, number: u64) -> io::Result<()> {
        std::fs::remove_file(segment::data_path(&self.dir, number))?;
        std::fs::remove_file(segment::index_path(&self.dir, number))
    }
}
