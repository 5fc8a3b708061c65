//! The recipe of a layer: all of its tar stream that the tree does not hold, so that the very same bytes can be made
//! again for archives and uploads without keeping the layer twice.
//!
//! A zstd stream of records: `0`, length (u32), bytes; or `1`, length (u64), length of path (u16), path, standing
//! for the content of a file of the tree. Numbers are little-endian.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{self, Mode, OFlags, ResolveFlags};

use super::error::UnpackError;

const BYTES: u8 = 0;
const FILE: u8 = 1;

/// Bytes collected into one record.
const RECORD: usize = 32 << 10;
/// Compression level: headers compress well at any.
const LEVEL: i32 = 1;
/// Window as a power of two, which bounds the memory of a recorder.
const WINDOW_LOG: u32 = 17;

/// Writes a recipe while a stream is read.
pub(super) struct Recorder {
    out: zstd::stream::write::Encoder<'static, File>,
    pending: Vec<u8>,
    /// Bytes of a file of the tree still to pass.
    passing: u64,
}

impl Recorder {
    pub(super) fn new(file: File) -> Result<Self, UnpackError> {
        let open = || {
            let mut out = zstd::stream::write::Encoder::new(file, LEVEL)?;
            out.window_log(WINDOW_LOG)?;
            Ok(out)
        };
        Ok(Self { out: open().map_err(failed)?, pending: Vec::new(), passing: 0 })
    }

    /// The next `length` bytes are the content of the file at `path`.
    pub(super) fn file(&mut self, path: &[u8], length: u64) -> Result<(), UnpackError> {
        let Ok(path_length) = u16::try_from(path.len()) else { return Ok(()) };
        if length == 0 {
            return Ok(());
        }
        self.flush()?;
        let head = [&[FILE][..], &length.to_le_bytes(), &path_length.to_le_bytes(), path].concat();
        self.passing = length;
        self.out.write_all(&head).map_err(failed)
    }

    /// Bytes of the stream.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Result<(), UnpackError> {
        let passed = usize::try_from(self.passing).unwrap_or(usize::MAX).min(bytes.len());
        self.passing -= passed as u64;
        self.pending.extend_from_slice(bytes.get(passed..).unwrap_or_default());
        if self.pending.len() >= RECORD { self.flush() } else { Ok(()) }
    }

    pub(super) fn finish(mut self) -> Result<(), UnpackError> {
        self.flush()?;
        self.out.finish().map(drop).map_err(failed)
    }

    fn flush(&mut self) -> Result<(), UnpackError> {
        let Ok(length) = u32::try_from(self.pending.len()) else {
            return Err(failed(io::ErrorKind::InvalidData.into()));
        };
        if length == 0 {
            return Ok(());
        }
        let mut write = || {
            self.out.write_all(&[BYTES])?;
            self.out.write_all(&length.to_le_bytes())?;
            self.out.write_all(&self.pending)
        };
        let written = write().map_err(failed);
        self.pending.clear();
        written
    }
}

fn failed(source: io::Error) -> UnpackError {
    UnpackError::Write { action: "write recipe of", path: "layer".into(), source }
}

/// Writes the tar stream a layer was unpacked from. The caller compares its digest: a recipe is only a promise.
pub fn replay(recipe: File, tree: BorrowedFd<'_>, out: &mut impl Write) -> io::Result<()> {
    let mut recipe = BufReader::new(zstd::stream::read::Decoder::new(recipe)?);
    loop {
        let mut kind = [0];
        if recipe.read(&mut kind)? == 0 {
            return Ok(());
        }
        match kind[0] {
            BYTES => {
                let length = u64::from(u32::from_le_bytes(array(&mut recipe)?));
                copy(&mut recipe, length, out)?;
            }
            FILE => {
                let length = u64::from_le_bytes(array(&mut recipe)?);
                let mut path = vec![0; usize::from(u16::from_le_bytes(array(&mut recipe)?))];
                recipe.read_exact(&mut path)?;
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
                let file = fs::openat2(tree.as_fd(), &path[..], flags, Mode::empty(), inside)?;
                copy(&mut File::from(file), length, out)?;
            }
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

fn copy(from: &mut impl Read, length: u64, out: &mut impl Write) -> io::Result<()> {
    let copied = io::copy(&mut from.take(length), out)?;
    if copied == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn array<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}
