//! One segment of a log: the bytes and their index.
//!
//! An index entry is two little-endian words: the time (ns since the epoch) and `offset << 1 | stream` (1 for standard
//! error). An entry's bytes reach to the next entry's offset or to the end of the data. Entries without bytes are
//! legal: they are what a kill between entry and `splice` leaves.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::pipe::{SpliceFlags, splice};

use crate::command::Stream;

/// Bytes of an index entry.
pub(super) const ENTRY: u64 = 16;
/// Output of one stream within this time shares an entry: bounds the index for writers of single bytes.
const SAME_TIME_NS: i64 = 1_000_000;

/// From where on bytes came from which stream, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) at_ns: i64,
    pub(super) offset: u64,
    pub(super) stream: Stream,
}

impl Entry {
    fn encode(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        let word = self.offset << 1 | u64::from(self.stream == Stream::Err);
        let (time, place) = bytes.split_at_mut(8);
        time.copy_from_slice(&self.at_ns.to_le_bytes());
        place.copy_from_slice(&word.to_le_bytes());
        bytes
    }

    fn decode(bytes: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
        let word = u64::from_le_bytes([i, j, k, l, m, n, o, p]);
        let stream = if word & 1 == 1 { Stream::Err } else { Stream::Out };
        Self { at_ns: i64::from_le_bytes([a, b, c, d, e, f, g, h]), offset: word >> 1, stream }
    }
}

/// Path of a segment's data.
pub(super) fn data_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number}.log"))
}

/// Path of a segment's index.
pub(super) fn index_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number}.idx"))
}

/// The numbers of the segments in a directory, in order.
pub(super) fn numbers(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".log"));
        numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Reads entry `place` of an index; none past its end or when it is half-written.
pub(super) fn read_entry(index: &File, place: u64) -> io::Result<Option<Entry>> {
    let mut bytes = [0; 16];
    match index.read_exact_at(&mut bytes, place * ENTRY) {
        Ok(()) => Ok(Some(Entry::decode(bytes))),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// The segment that is written.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    data: File,
    index: File,
    length: u64,
    entries: u64,
    last: Option<Entry>,
}

impl Segment {
    /// Opens or makes a segment and repairs what a power cut left: entries of bytes that never came.
    pub(super) fn open(dir: &Path, number: u64) -> io::Result<Self> {
        let open = |path| OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let data = open(data_path(dir, number))?;
        let index = open(index_path(dir, number))?;
        let length = data.metadata()?.len();
        let mut entries = index.metadata()?.len() / ENTRY;
        let mut last = None;
        while entries > 0 {
            last = read_entry(&index, entries - 1)?.filter(|entry| entry.offset <= length);
            if last.is_some() {
                break;
            }
            entries -= 1;
        }
        index.set_len(entries * ENTRY)?;
        let mut segment = Self { number, data, index, length, entries, last };
        if segment.last.is_none() && length > 0 {
            // The index is gone: keep the bytes under an unknown time rather than drop them.
            segment.entry(Entry { at_ns: 0, offset: 0, stream: Stream::Out })?;
        }
        Ok(segment)
    }

    /// Bytes of data.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Bytes on disk, data and index.
    pub(super) fn size(&self) -> u64 {
        self.length + self.entries * ENTRY
    }

    /// Says that what follows is from `stream`.
    pub(super) fn mark(&mut self, stream: Stream, at_ns: i64) -> io::Result<()> {
        let same = |last: &Entry| last.stream == stream && at_ns.saturating_sub(last.at_ns) < SAME_TIME_NS;
        if self.last.as_ref().is_some_and(same) {
            return Ok(());
        }
        self.entry(Entry { at_ns, offset: self.length, stream })
    }

    fn entry(&mut self, entry: Entry) -> io::Result<()> {
        self.index.write_all_at(&entry.encode(), self.entries * ENTRY)?;
        self.entries += 1;
        self.last = Some(entry);
        Ok(())
    }

    /// Moves up to `most` bytes from a pipe to the end of the data. 0 at the pipe's end, `WouldBlock` when empty.
    pub(super) fn splice(&mut self, pipe: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
        let mut offset = self.length;
        let moved = splice(pipe, None, &self.data, Some(&mut offset), most, SpliceFlags::NONBLOCK)?;
        self.length += moved as u64;
        Ok(moved)
    }

    /// Writes bytes at the end of the data.
    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.data.write_all_at(bytes, self.length)?;
        self.length += bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_survives_its_bytes() {
        for stream in [Stream::Out, Stream::Err] {
            let entry = Entry { at_ns: 1_700_000_000_123_456_789, offset: 10 << 20, stream };
            assert_eq!(Entry::decode(entry.encode()), entry);
        }
    }

    #[test]
    fn entries_beyond_the_data_are_dropped_when_opened() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut segment = Segment::open(dir.path(), 0).expect("a segment");
        segment.mark(Stream::Out, 1).expect("a mark");
        segment.append(b"kept").expect("an append");
        segment.entry(Entry { at_ns: 2_000_000, offset: 4, stream: Stream::Err }).expect("an entry");
        segment.entry(Entry { at_ns: 3_000_000, offset: 99, stream: Stream::Out }).expect("an entry");
        drop(segment);
        let segment = Segment::open(dir.path(), 0).expect("a segment");
        assert_eq!((segment.length(), segment.entries), (4, 2));
    }

    #[test]
    fn bytes_without_index_are_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(data_path(dir.path(), 3), b"orphan").expect("a file");
        let segment = Segment::open(dir.path(), 3).expect("a segment");
        assert_eq!(segment.last, Some(Entry { at_ns: 0, offset: 0, stream: Stream::Out }));
    }
}
