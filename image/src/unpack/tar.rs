//! A strict reader of tar streams: one pass, bounded memory, every oddity either read as Go reads it or refused.
//!
//! ustar, GNU and PAX; long names; sparse files of all four formats. A stream without trailer is accepted when it
//! ends at a block boundary, as Go accepts it.

use std::io::{BufRead, ErrorKind};

use super::error::UnpackError;
use super::header::{BLOCK, Block, Dialect, Fields, number, text};
use super::pax::{Records, unsigned};
use super::recipe::Recorder;

/// Bytes of one PAX or long-name body; Go's limit.
const SPECIAL_SIZE_MAX: u64 = 1 << 20;
/// Pieces of one sparse file.
const PIECES_MAX: usize = 1 << 16;
/// Entries of one layer, special headers included.
pub(super) const ENTRIES_MAX: u64 = 2_000_000;
/// Apparent size of one sparse file.
const SPARSE_SIZE_MAX: u64 = 1 << 40;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    Character,
    Block,
    Directory,
    Fifo,
}

/// One entry with all special headers applied.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    /// Permission bits with set-id and sticky.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds and nanoseconds.
    pub(super) mtime: (i64, u32),
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Apparent size and pieces of data (offset, length) of a sparse file.
    pub(crate) sparse: Option<(u64, Vec<(u64, u64)>)>,
}

/// The reader. After [`Tar::next`] the entry's data is read with [`Tar::chunk`]; what is not read is skipped.
pub(crate) struct Tar<R> {
    source: R,
    entries: u64,
    /// Data bytes of the present entry not read yet.
    left: u64,
    padding: u64,
    /// Where all bytes go that are not found again in the tree.
    recorder: Option<Recorder>,
}

/// Special headers seen before the entry they belong to.
#[derive(Default)]
struct Pending {
    records: Records,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl<R: BufRead> Tar<R> {
    pub(super) fn new(source: R, recorder: Option<Recorder>) -> Self {
        Self { source, entries: 0, left: 0, padding: 0, recorder }
    }

    /// Reads what is left after the archive's end, and gives back the source.
    pub(super) fn finish(mut self) -> Result<R, UnpackError> {
        loop {
            let count = self.source.fill_buf().map_err(UnpackError::stream)?.len();
            if count == 0 {
                break;
            }
            self.take(count)?;
        }
        if let Some(recorder) = self.recorder {
            recorder.finish()?;
        }
        Ok(self.source)
    }

    /// Data read from here to the next entry will lie at `path` of the tree, whole.
    pub(super) fn will_lie_at(&mut self, path: &[u8]) -> Result<(), UnpackError> {
        let left = self.left;
        self.recorder.as_mut().map_or(Ok(()), |recorder| recorder.file(path, left))
    }

    /// Moves on by `count` bytes of what was shown last.
    fn take(&mut self, count: usize) -> Result<(), UnpackError> {
        if let Some(recorder) = &mut self.recorder {
            let buffer = self.source.fill_buf().map_err(UnpackError::stream)?;
            recorder.bytes(buffer.get(..count).unwrap_or(buffer))?;
        }
        self.source.consume(count);
        Ok(())
    }

    /// The next entry, `None` at the end of the archive.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, UnpackError> {
        let mut pending = Pending::default();
        loop {
            self.skip(self.left + self.padding)?;
            (self.left, self.padding) = (0, 0);
            let Some(block) = self.header()? else { return Ok(None) };
            let fields = block.fields().map_err(|what| self.refusal(what))?;
            match fields.kind {
                b'x' => {
                    let body = self.special(fields.size)?;
                    pending.records = Records::parse(&body).map_err(|what| self.refusal(what))?;
                }
                b'g' => {
                    let body = self.special(fields.size)?;
                    Records::check_global(&body).map_err(|what| self.refusal(what))?;
                }
                b'L' => pending.name = Some(text(&self.special(fields.size)?).to_vec()),
                b'K' => pending.link = Some(text(&self.special(fields.size)?).to_vec()),
                _ => return self.entry(&block, fields, pending).map(Some),
            }
        }
    }

    /// More data of the present entry, empty at its end. Call [`Tar::consume`] with what was used.
    pub(crate) fn chunk(&mut self) -> Result<&[u8], UnpackError> {
        if self.left == 0 {
            return Ok(&[]);
        }
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        let entry = self.entries;
        let buffer = self.source.fill_buf().map_err(UnpackError::stream)?;
        if buffer.is_empty() {
            return Err(UnpackError::Tar { entry, what: "stream ends within an entry" });
        }
        Ok(buffer.get(..left.min(buffer.len())).unwrap_or(buffer))
    }

    /// Marks bytes of the last chunk as used.
    pub(crate) fn consume(&mut self, count: usize) -> Result<(), UnpackError> {
        self.left = self.left.saturating_sub(count as u64);
        self.take(count)
    }

    fn refusal(&self, what: &'static str) -> UnpackError {
        UnpackError::Tar { entry: self.entries, what }
    }

    fn entry(&mut self, block: &Block, fields: Fields, pending: Pending) -> Result<Entry, UnpackError> {
        let Pending { records, name, link } = pending;
        let mut path = name.or(records.path).unwrap_or(fields.name);
        let link = link.or(records.link).unwrap_or(fields.link);
        let kind = kind(fields.kind, &path).map_err(|what| self.refusal(what))?;
        let stored = records.size.unwrap_or(fields.size);
        if kind == Kind::File {
            self.left = stored;
            self.padding = (BLOCK as u64 - stored % BLOCK as u64) % BLOCK as u64;
        }
        let mut sparse = None;
        if fields.kind == b'S' {
            sparse = Some(self.gnu_map(block, fields.dialect)?);
        } else if kind == Kind::File {
            let about = &records.sparse;
            sparse = match (about.major, about.minor, &about.map) {
                (Some(1), Some(0), _) => Some(self.pax_map_in_data(about.size)?),
                (None | Some(0), None | Some(0 | 1), Some(map)) => {
                    let size = about.size.ok_or_else(|| self.refusal("sparse file without size"))?;
                    let pairs = map.chunks_exact(2);
                    if !pairs.remainder().is_empty() {
                        return Err(self.refusal("sparse map has an odd number of values"));
                    }
                    Some((size, pairs.map(|pair| (pair[0], pair[1])).collect()))
                }
                (None, None, None) => None,
                _ => return Err(self.refusal("unknown version of sparse file")),
            };
            if sparse.is_some() {
                path = records.sparse.name.unwrap_or(path);
            }
        }
        if let Some((size, pieces)) = &sparse {
            check_map(*size, pieces, self.left).map_err(|what| self.refusal(what))?;
        }
        let id = |value: i64| {
            // The highest value means "unchanged" to chown and can belong to nobody.
            u32::try_from(value).ok().filter(|id| *id != u32::MAX)
        };
        let owner = id(records.uid.unwrap_or(fields.uid)).zip(id(records.gid.unwrap_or(fields.gid)));
        let (uid, gid) = owner.ok_or_else(|| self.refusal("owner is out of range"))?;
        let device = u32::try_from(fields.major).ok().zip(u32::try_from(fields.minor).ok());
        let (major, minor) = match (kind, device) {
            (Kind::Character | Kind::Block, None) => {
                return Err(self.refusal("device number is out of range"));
            }
            (_, device) => device.unwrap_or_default(),
        };
        Ok(Entry {
            kind,
            path,
            link,
            // Bits above the permissions repeat the type in some archives.
            mode: u32::try_from(fields.mode & 0o7777).unwrap_or_default(),
            uid,
            gid,
            mtime: records.mtime.unwrap_or((fields.mtime, 0)),
            major,
            minor,
            xattrs: records.xattrs,
            sparse,
        })
    }

    /// The next header block; `None` at the end.
    fn header(&mut self) -> Result<Option<Block>, UnpackError> {
        let Some(block) = self.block()? else { return Ok(None) };
        if block.is_zero() {
            return match self.block()? {
                Some(second) if !second.is_zero() => Err(self.refusal("single zero block")),
                _ => Ok(None),
            };
        }
        self.entries += 1;
        if self.entries > ENTRIES_MAX {
            return Err(UnpackError::Limit { what: "entries", limit: ENTRIES_MAX });
        }
        Ok(Some(block))
    }

    /// A whole block; `None` when the stream ends before its first byte.
    fn block(&mut self) -> Result<Option<Block>, UnpackError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let buffer = match self.source.fill_buf() {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                other => other.map_err(UnpackError::stream)?,
            };
            let rest = block.get_mut(filled..).unwrap_or_default();
            let count = buffer.len().min(rest.len());
            if count == 0 && filled == 0 {
                return Ok(None);
            }
            if count == 0 {
                return Err(self.refusal("stream ends within a header"));
            }
            if let (Some(rest), Some(buffer)) = (rest.get_mut(..count), buffer.get(..count)) {
                rest.copy_from_slice(buffer);
            }
            self.take(count)?;
            filled += count;
        }
        Ok(Some(Block(block)))
    }

    /// The body of a special header.
    fn special(&mut self, size: u64) -> Result<Vec<u8>, UnpackError> {
        if size > SPECIAL_SIZE_MAX {
            return Err(UnpackError::Limit { what: "bytes of extended header", limit: SPECIAL_SIZE_MAX });
        }
        self.left = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        let mut body = Vec::new();
        loop {
            let chunk = self.chunk()?;
            if chunk.is_empty() {
                return Ok(body);
            }
            let count = chunk.len();
            body.extend_from_slice(chunk);
            self.consume(count)?;
        }
    }

    fn skip(&mut self, mut count: u64) -> Result<(), UnpackError> {
        while count > 0 {
            let buffer = self.source.fill_buf().map_err(UnpackError::stream)?;
            if buffer.is_empty() {
                return Err(self.refusal("stream ends within an entry"));
            }
            let step = buffer.len().min(usize::try_from(count).unwrap_or(usize::MAX));
            self.take(step)?;
            count -= step as u64;
        }
        Ok(())
    }

    /// The map of a GNU `S` entry: four pieces in the header, more in blocks that follow.
    fn gnu_map(&mut self, block: &Block, dialect: Dialect) -> Result<(u64, Vec<(u64, u64)>), UnpackError> {
        if dialect != Dialect::Gnu {
            return Err(self.refusal("sparse entry in a format without sparse files"));
        }
        let entry = self.entries;
        let refused = |what| UnpackError::Tar { entry, what };
        let positive =
            |field: &[u8]| u64::try_from(number(field)?).map_err(|_| "sparse map has a negative value");
        let size = positive(block.part(483, 12)).map_err(refused)?;
        let mut pieces = Vec::new();
        let mut current = block.clone();
        let (mut at, mut slots, mut extended) = (386, 4, 482);
        loop {
            for slot in 0..slots {
                let piece = current.part(at + slot * 24, 24);
                if piece.first() == Some(&0) {
                    break;
                }
                let (offset, length) = piece.split_at(piece.len() / 2);
                pieces.push((positive(offset).map_err(refused)?, positive(length).map_err(refused)?));
            }
            if current.part(extended, 1) == [0] {
                return Ok((size, pieces));
            }
            if pieces.len() > PIECES_MAX {
                return Err(UnpackError::Limit { what: "pieces of a sparse file", limit: PIECES_MAX as u64 });
            }
            current = self.block()?.ok_or_else(|| self.refusal("stream ends within a sparse map"))?;
            (at, slots, extended) = (0, 21, 504);
        }
    }

    /// The map of a PAX 1.0 sparse file: decimal lines at the start of its data, padded to a block.
    fn pax_map_in_data(&mut self, size: Option<u64>) -> Result<(u64, Vec<(u64, u64)>), UnpackError> {
        let size = size.ok_or_else(|| self.refusal("sparse file without size"))?;
        let mut line = Vec::new();
        let mut values: Vec<u64> = Vec::new();
        let mut wanted = None;
        while wanted.is_none_or(|wanted| values.len() < wanted) {
            if self.left < BLOCK as u64 {
                return Err(self.refusal("sparse map is longer than its file"));
            }
            let block = self.block()?.ok_or_else(|| self.refusal("stream ends within a sparse map"))?;
            self.left -= BLOCK as u64;
            for byte in block.0 {
                if wanted.is_some_and(|wanted| values.len() >= wanted) {
                    break;
                }
                if byte != b'\n' {
                    line.push(byte);
                    if line.len() > 20 {
                        return Err(self.refusal("sparse map has an overlong number"));
                    }
                    continue;
                }
                let value = unsigned(&line).map_err(|what| self.refusal(what))?;
                line.clear();
                if wanted.is_some() {
                    values.push(value);
                    continue;
                }
                let count = usize::try_from(value).ok().filter(|count| *count <= PIECES_MAX);
                let limit = UnpackError::Limit { what: "pieces of a sparse file", limit: PIECES_MAX as u64 };
                wanted = Some(count.ok_or(limit)? * 2);
            }
        }
        Ok((size, values.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()))
    }
}

fn kind(flag: u8, path: &[u8]) -> Result<Kind, &'static str> {
    Ok(match flag {
        // Archives from before POSIX mark directories by a slash only.
        0 if path.ends_with(b"/") => Kind::Directory,
        0 | b'0' | b'7' | b'S' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::Character,
        b'4' => Kind::Block,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        _ => return Err("unknown type of entry"),
    })
}

/// Pieces must ascend without overlap, lie within the file, and account for all stored bytes.
fn check_map(size: u64, pieces: &[(u64, u64)], stored: u64) -> Result<(), &'static str> {
    if size > SPARSE_SIZE_MAX {
        return Err("sparse file is too large");
    }
    let (mut end, mut sum) = (0_u64, 0_u64);
    for (offset, length) in pieces {
        if *offset < end {
            return Err("sparse map overlaps itself");
        }
        end = offset.checked_add(*length).filter(|end| *end <= size).ok_or("sparse map leaves the file")?;
        sum += length;
    }
    if sum == stored { Ok(()) } else { Err("sparse map does not account for the data") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Forge, Head};

    #[test]
    fn entries_are_counted_with_the_headers_that_say_nothing() {
        let comment = Forge::new().entry(Head::new(b'g', "g"), b"").bytes;
        let bytes = Forge::new().raw(&comment).raw(&comment).file("f", "x").finish();
        let mut tar = Tar::new(&bytes[..], None);
        tar.entries = ENTRIES_MAX - 3;
        assert!(tar.next().unwrap().is_some());
        let mut tar = Tar::new(&bytes[..], None);
        tar.entries = ENTRIES_MAX - 2;
        assert!(matches!(tar.next(), Err(UnpackError::Limit { what: "entries", .. })));
    }
}
