//! The layer's bytes on their way: from the transferred form to the tar stream, hashed and counted as they pass.

use std::io::{self, BufRead, Read};

use flate2::bufread::MultiGzDecoder;

use super::error::UnpackError;
use crate::digest::{Digest, Hasher};
use crate::manifest::Compression;

/// Bytes read from a decoder at a time; few enough that a layer in flight stays cheap.
const BUFFER: usize = 64 << 10;
/// Largest zstd window as a power of two: 16 MiB. Encoders use more only when asked for `--ultra` or `--long`.
const ZSTD_WINDOW_LOG_MAX: u32 = 24;
/// Bytes any layer may unpack to, whatever its compressed size; small layers of zeros are legitimate.
const ALWAYS_ALLOWED: u64 = 1 << 30;
/// Beyond that, uncompressed bytes per compressed byte. Ordinary layers are near 3, deflate's limit is 1032.
pub(super) const RATIO_MAX: u64 = 200;

/// The uncompressed stream: a [`BufRead`] that has hashed every byte it ever showed.
pub(crate) struct TarStream<R: BufRead> {
    decoder: Decoder<R>,
    hasher: Hasher,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    passed: u64,
    allowed: u64,
}

enum Decoder<R: BufRead> {
    None(Peeked<R>),
    Gzip(Box<MultiGzDecoder<Peeked<R>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, Peeked<R>>>),
}

impl<R: BufRead> TarStream<R> {
    /// Starts decoding `source`, whose first bytes must agree with `compression`.
    ///
    /// `size` is the length of the compressed form, from which follows how much it may unpack to; `diff_id` says
    /// which hash function the result is compared in.
    pub(super) fn new(
        source: R,
        compression: Compression,
        size: u64,
        diff_id: &Digest,
    ) -> Result<Self, UnpackError> {
        let source = Peeked::new(source).map_err(UnpackError::Read)?;
        let found = sniff(source.head());
        // An empty stream is what no compressed layer can be, and an empty plain layer is.
        if found != compression {
            return Err(UnpackError::Compression {
                what: format!("the media type promises {compression:?}, the bytes are {found:?}"),
            });
        }
        let mut stream = Self::of(source, compression, diff_id)?;
        stream.allowed = size.saturating_mul(RATIO_MAX).saturating_add(ALWAYS_ALLOWED);
        Ok(stream)
    }

    fn of(source: Peeked<R>, compression: Compression, diff_id: &Digest) -> Result<Self, UnpackError> {
        let decoder = match compression {
            Compression::None => Decoder::None(source),
            Compression::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(source))),
            Compression::Zstd => Decoder::Zstd(Box::new(zstd_decoder(source).map_err(UnpackError::stream)?)),
        };
        let buffer = vec![0; BUFFER].into_boxed_slice();
        Ok(Self { decoder, hasher: diff_id.hasher(), buffer, start: 0, end: 0, passed: 0, allowed: 0 })
    }

    /// Decodes `source` as whatever its first bytes say it is. Nothing promised its size, so the disk is the limit.
    pub(super) fn guessed(source: R) -> Result<Self, UnpackError> {
        let source = Peeked::new(source).map_err(UnpackError::Read)?;
        let compression = sniff(source.head());
        let mut stream = Self::of(source, compression, &Digest::of(b""))?;
        stream.allowed = u64::MAX;
        Ok(stream)
    }

    /// Reads to the very end, so that digest and length cover bytes after the archive's trailer too.
    pub(super) fn finish(mut self) -> Result<(Digest, u64), UnpackError> {
        loop {
            let count = self.fill_buf().map_err(UnpackError::stream)?.len();
            if count == 0 {
                return Ok((self.hasher.finish(), self.passed));
            }
            self.consume(count);
        }
    }
}

impl<R: BufRead> BufRead for TarStream<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end {
            let count = loop {
                let result = match &mut self.decoder {
                    Decoder::None(decoder) => decoder.read(&mut self.buffer),
                    Decoder::Gzip(decoder) => decoder.read(&mut self.buffer),
                    Decoder::Zstd(decoder) => decoder.read(&mut self.buffer),
                };
                match result {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    other => break other?,
                }
            };
            self.passed = self.passed.saturating_add(count as u64);
            if self.passed > self.allowed {
                return Err(io::ErrorKind::QuotaExceeded.into());
            }
            (self.start, self.end) = (0, count);
            self.hasher.update(self.buffer.get(..count).unwrap_or_default());
        }
        Ok(self.buffer.get(self.start..self.end).unwrap_or_default())
    }

    fn consume(&mut self, count: usize) {
        self.start = self.end.min(self.start + count);
    }
}

impl<R: BufRead> Read for TarStream<R> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(target)?;
        self.consume(count);
        Ok(count)
    }
}

fn zstd_decoder<R: BufRead>(
    source: Peeked<R>,
) -> io::Result<zstd::stream::read::Decoder<'static, Peeked<R>>> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
    Ok(decoder)
}

/// What the first four bytes of a stream say it is packed with.
pub(crate) fn sniff(head: &[u8]) -> Compression {
    match head {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        _ => Compression::None,
    }
}

/// A source whose first four bytes can be looked at, however small the pieces it comes in.
struct Peeked<R> {
    head: [u8; 4],
    filled: usize,
    used: usize,
    source: R,
}

impl<R: BufRead> Peeked<R> {
    fn new(mut source: R) -> io::Result<Self> {
        let mut head = [0; 4];
        let mut filled = 0;
        while filled < head.len() {
            let count = match source.read(head.get_mut(filled..).unwrap_or_default()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            if count == 0 {
                break;
            }
            filled += count;
        }
        Ok(Self { head, filled, used: 0, source })
    }

    fn head(&self) -> &[u8] {
        self.head.get(..self.filled).unwrap_or_default()
    }
}

impl<R: BufRead> BufRead for Peeked<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.used < self.filled {
            return Ok(self.head.get(self.used..self.filled).unwrap_or_default());
        }
        self.source.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        if self.used < self.filled {
            self.used = self.filled.min(self.used + count);
        } else {
            self.source.consume(count);
        }
    }
}

impl<R: BufRead> Read for Peeked<R> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(target)?;
        self.consume(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Write as _};

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn decode(packed: &[u8], compression: Compression) -> Result<(Vec<u8>, Digest), UnpackError> {
        // One byte at a time: nothing may depend on how the network cut the stream.
        let source = BufReader::with_capacity(1, packed);
        let any = Digest::of(b"");
        let mut stream = TarStream::new(source, compression, packed.len() as u64, &any)?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).map_err(UnpackError::stream)?;
        Ok((bytes, stream.finish()?.0))
    }

    #[test]
    fn members_and_frames_are_one_stream() {
        let gz = [gzip(b"one "), gzip(b""), gzip(b"two")].concat();
        let zst = [zstd::encode_all(&b"one "[..], 1).unwrap(), zstd::encode_all(&b"two"[..], 19).unwrap()];
        let skippable = b"\x50\x2a\x4d\x18\x03\0\0\0abc";
        for (packed, compression) in [
            (gz, Compression::Gzip),
            (zst.concat(), Compression::Zstd),
            ([&skippable[..], &zst[0], &zst[1]].concat(), Compression::Zstd),
            (b"one two".to_vec(), Compression::None),
        ] {
            let (bytes, digest) = decode(&packed, compression).unwrap();
            assert_eq!(bytes, b"one two");
            assert_eq!(digest, Digest::of(b"one two"));
        }
    }

    #[test]
    fn damaged_or_mislabelled_streams_are_refused() {
        let good = gzip(&[7; 10_000]);
        let mut flipped = good.clone();
        let crc = flipped.len() - 6;
        flipped[crc] ^= 1;
        let garbage = [&good[..], b"garbage"].concat();
        let frame = zstd::encode_all(&[7; 10_000][..], 3).unwrap();
        for (packed, compression) in [
            (&good[..good.len() - 1], Compression::Gzip),
            (&good[..20], Compression::Gzip),
            (&flipped, Compression::Gzip),
            (&garbage, Compression::Gzip),
            (&good, Compression::Zstd),
            (&good, Compression::None),
            (&frame, Compression::Gzip),
            (&frame[..frame.len() - 3], Compression::Zstd),
            (b"", Compression::Gzip),
            (b"\xfd7zXZ\0", Compression::Gzip),
        ] {
            assert!(matches!(decode(packed, compression), Err(UnpackError::Compression { .. })));
        }
    }

    #[test]
    fn a_huge_zstd_window_is_refused() {
        // Frame header asking for a window of 2^31 bytes, without content size.
        let frame = b"\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00";
        assert!(matches!(decode(frame, Compression::Zstd), Err(UnpackError::Compression { .. })));
    }

    #[test]
    fn a_bomb_is_stopped_by_what_it_was_packed_from() {
        let any = Digest::of(b"");
        let zeros = io::repeat(0).take(4 << 20);
        let mut stream = TarStream::new(BufReader::new(zeros), Compression::None, 0, &any).unwrap();
        stream.allowed = 1 << 20;
        let error = stream.read_to_end(&mut Vec::new()).unwrap_err();
        assert!(matches!(UnpackError::stream(error), UnpackError::Limit { .. }));
    }
}
