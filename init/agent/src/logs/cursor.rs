//! Reading a log from a place on: chunks of bytes with stream and time, over all segments.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

use super::hold::Held;
use super::log::Log;
use super::segment::{self, read_entry};
use crate::command::Stream;

/// Most bytes read at a time.
const READ_MAX: u64 = 64 << 10;

/// Bytes of one stream with the time they came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) stream: Stream,
    pub(super) at_ns: i64,
    pub(super) bytes: Bytes,
}

/// A place in a log.
#[derive(Debug)]
pub(super) struct Cursor {
    log: Arc<Log>,
    number: u64,
    data: File,
    index: File,
    entry: u64,
    offset: u64,
    held: Option<Held>,
}

impl Cursor {
    /// At the oldest byte there is.
    pub(super) fn at_start(log: &Arc<Log>) -> io::Result<Self> {
        // The oldest segment may be deleted between listing and opening: then the next is the oldest.
        for _ in 0..8 {
            let oldest = segment::numbers(log.dir())?.first().copied().unwrap_or(0);
            match Self::open(log, oldest) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => return other,
            }
        }
        Self::at_end(log)
    }

    /// Behind the newest byte.
    pub(super) fn at_end(log: &Arc<Log>) -> io::Result<Self> {
        let progress = *log.watch().borrow();
        let mut cursor = Self::open(log, progress.segment)?;
        cursor.offset = progress.length;
        // The last entry that begins at or before the place; its bytes may still grow.
        let (mut low, mut high) = (0, cursor.index.metadata()?.len() / segment::ENTRY);
        while low < high {
            let middle = low.midpoint(high);
            match read_entry(&cursor.index, middle)? {
                Some(entry) if entry.offset <= cursor.offset => low = middle + 1,
                _ => high = middle,
            }
        }
        cursor.entry = low.saturating_sub(1);
        Ok(cursor)
    }

    fn open(log: &Arc<Log>, number: u64) -> io::Result<Self> {
        let data = File::open(segment::data_path(log.dir(), number))?;
        let index = File::open(segment::index_path(log.dir(), number))?;
        Ok(Self { log: log.clone(), number, data, index, entry: 0, offset: 0, held: None })
    }

    /// Keeps the log from turning over what is not read yet.
    pub(super) fn hold(&mut self) {
        self.held = Some(self.log.holds().hold(self.number));
    }

    /// The log went on without this reader, which held it up for too long.
    pub(super) fn is_given_up(&self) -> bool {
        self.held.as_ref().is_some_and(Held::is_given_up)
    }

    /// The next piece; none when there is nothing more now.
    pub(super) fn next(&mut self) -> io::Result<Option<Piece>> {
        loop {
            // Asked before the data: once a newer segment is known, this one grows no more.
            let newest = self.log.watch().borrow().segment;
            if let Some(piece) = self.next_here()? {
                return Ok(Some(piece));
            }
            if newest <= self.number {
                return Ok(None);
            }
            let held = self.held.take();
            *self = self.following(newest)?;
            if let Some(held) = &held {
                held.at(self.number, 0);
            }
            self.held = held;
        }
    }

    fn following(&self, newest: u64) -> io::Result<Self> {
        // A reader far behind finds segments deleted, and goes on with the oldest that is left.
        let mut number = self.number + 1;
        loop {
            match Self::open(&self.log, number) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && number < newest => number += 1,
                other => return other,
            }
        }
    }

    fn next_here(&mut self) -> io::Result<Option<Piece>> {
        loop {
            // The length is asked before the next entry: an entry is written before its bytes, so bytes within this
            // length and behind the next entry's offset are known not to belong to this one.
            let length = self.data.metadata()?.len();
            let Some(entry) = read_entry(&self.index, self.entry)? else { return Ok(None) };
            let next = read_entry(&self.index, self.entry + 1)?;
            let end = next.map_or(length, |next| next.offset.min(length));
            self.offset = self.offset.max(entry.offset);
            if self.offset < end {
                let wanted = (end - self.offset).min(READ_MAX);
                let mut bytes = vec![0; usize::try_from(wanted).unwrap_or(0)];
                self.data.read_exact_at(&mut bytes, self.offset)?;
                self.offset += wanted;
                if let Some(held) = &self.held {
                    held.at(self.number, self.offset);
                }
                return Ok(Some(Piece { stream: entry.stream, at_ns: entry.at_ns, bytes: bytes.into() }));
            }
            if next.is_none() {
                return Ok(None);
            }
            self.entry += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::super::log::Limits;
    use super::*;

    fn texts(cursor: &mut Cursor) -> Vec<(Stream, String)> {
        let mut all: Vec<(Stream, String)> = Vec::new();
        while let Some(piece) = cursor.next().expect("a readable log") {
            all.push((piece.stream, String::from_utf8_lossy(&piece.bytes).into_owned()));
        }
        all
    }

    #[test]
    fn both_streams_come_back_in_order_and_the_end_moves() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = Log::open(dir.path(), Limits::default(), 0).expect("a log");
        let mut cursor = Cursor::at_start(&log).expect("a cursor");
        log.append(Stream::Out, b"one\n", 1).expect("an append");
        log.append(Stream::Err, b"two\n", 2).expect("an append");
        assert_eq!(
            texts(&mut cursor),
            [(Stream::Out, "one\n".to_owned()), (Stream::Err, "two\n".to_owned())]
        );
        let mut late = Cursor::at_end(&log).expect("a cursor");
        assert_eq!(texts(&mut late), []);
        log.append(Stream::Err, b"three", 3).expect("an append");
        log.append(Stream::Out, b"four", 4).expect("an append");
        for cursor in [&mut cursor, &mut late] {
            assert_eq!(texts(cursor), [(Stream::Err, "three".to_owned()), (Stream::Out, "four".to_owned())]);
        }
    }

    #[test]
    fn a_log_stays_bounded_and_a_slow_reader_goes_on_with_what_is_left() {
        let dir = tempfile::tempdir().expect("a directory");
        let limits = Limits { segment_bytes: 1000, segments: 2 };
        let log = Log::open(dir.path(), limits, 0).expect("a log");
        let mut slow = Cursor::at_start(&log).expect("a cursor");
        for round in 0..1000 {
            log.append(Stream::Out, format!("line {round:04}\n").as_bytes(), round * 10_000_000)
                .expect("an append");
        }
        let size: u64 = std::fs::read_dir(dir.path())
            .expect("a directory")
            .map(|entry| entry.expect("an entry").metadata().expect("its size").len())
            .sum();
        assert!(size <= 2 * (1000 + 64), "{size}");
        let text: String = texts(&mut slow).into_iter().map(|(_, text)| text).collect();
        assert!(text.starts_with("line 0000\n") && text.ends_with("line 0999\n"));
        let mut fresh = Cursor::at_start(&log).expect("a cursor");
        assert!(texts(&mut fresh).len() >= 20);
    }

    #[test]
    fn bytes_leave_the_pipe_as_they_enter_the_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = Log::open(dir.path(), Limits::default(), 0).expect("a log");
        let (read, write) = rustix::pipe::pipe().expect("a pipe");
        rustix::io::write(&write, b"spliced").expect("a write");
        assert_eq!(log.splice(Stream::Err, read.as_fd(), 5).expect("a splice"), 7);
        let empty = log.splice(Stream::Err, read.as_fd(), 5).expect_err("an empty pipe");
        assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
        drop(write);
        assert_eq!(log.splice(Stream::Err, read.as_fd(), 5).expect("the end"), 0);
        let mut cursor = Cursor::at_start(&log).expect("a cursor");
        assert_eq!(texts(&mut cursor), [(Stream::Err, "spliced".to_owned())]);
    }
}
