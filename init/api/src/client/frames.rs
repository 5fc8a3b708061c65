//! Multiplexed streams: frames of `[stream, 0, 0, 0, length (big endian)]` and payload.

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest frame accepted, bytes: far above what any engine sends.
const MAX_FRAME_BYTES: usize = 16 * 1024 * 1024;

/// Which stream a frame belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FrameStream {
    /// Standard input, echoed by no engine known.
    Stdin,
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// An error of the engine itself.
    System,
}

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Where its bytes were written.
    pub stream: FrameStream,
    /// The bytes.
    pub bytes: Bytes,
}

/// Reads one frame; none when the stream ends between frames.
pub async fn read_frame(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let mut header = [0_u8; 8];
    let mut filled = 0;
    while let Some(rest) = header.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match from.read(rest).await? {
            0 if filled == 0 => return Ok(None),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => filled += count,
        }
    }
    let [kind, 0, 0, 0, length @ ..] = header else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a frame of a multiplexed stream"));
    };
    let stream = match kind {
        0 => FrameStream::Stdin,
        1 => FrameStream::Stdout,
        2 => FrameStream::Stderr,
        3 => FrameStream::System,
        _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "frame of an unknown stream")),
    };
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_FRAME_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "frame longer than any engine sends"));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).await?;
    Ok(Some(Frame { stream, bytes: bytes.into() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_are_told_apart_and_a_cut_one_is_an_error() {
        let mut whole: &[u8] = b"\x01\0\0\0\0\0\0\x02hi\x02\0\0\0\0\0\0\x01!";
        let first = read_frame(&mut whole).await.unwrap().unwrap();
        assert_eq!((first.stream, &first.bytes[..]), (FrameStream::Stdout, &b"hi"[..]));
        assert_eq!(read_frame(&mut whole).await.unwrap().unwrap().stream, FrameStream::Stderr);
        assert_eq!(read_frame(&mut whole).await.unwrap(), None);
        for mut cut in [&b"\x01\0\0"[..], b"\x01\0\0\0\0\0\0\x02h", b"hello world", b"\x01\0\0\0\xff\0\0\0"] {
            assert!(read_frame(&mut cut).await.is_err(), "{cut:?}");
        }
    }
}
