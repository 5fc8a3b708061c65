//! Taken-over connections and multiplexed frames.
//!
//! After the head of a hijacked request's answer the connection carries raw bytes both ways: the process's output one
//! way, its input the other. Without a terminal output comes in frames of `[stream, 0, 0, 0, length]` and payload. The
//! client ends input by closing its sending half; the server ends the connection once the process has ended and all it
//! wrote was sent.

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Empty};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, UPGRADE};
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::errors::ApiError;
use super::request::Request;
use super::respond::{self, Body, Pieces};
use crate::command::{Attachment, Chunk, Stream};

/// Bytes read from a client at once.
const INPUT_CHUNK_BYTES: usize = 32 * 1024;

/// Content type of a stream: frames, or raw bytes of a terminal and for clients before 1.42.
pub(crate) fn content_type(request: &Request, tty: bool) -> &'static str {
    if tty || !request.since(42) {
        "application/vnd.docker.raw-stream"
    } else {
        "application/vnd.docker.multiplexed-stream"
    }
}

/// A frame of `bytes`.
pub(crate) fn frame(stream: Stream, bytes: &[u8]) -> Bytes {
    let kind = match stream {
        Stream::Out => 1,
        Stream::Err => 2,
    };
    let mut frame = BytesMut::with_capacity(8 + bytes.len());
    frame.put_slice(&[kind, 0, 0, 0]);
    frame.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    frame.put_slice(bytes);
    frame.freeze()
}

/// Hands the connection over to `attachment`. `detach_keys` end the attachment when typed at a terminal. After the end
/// of output `settled` is awaited before the connection is closed.
pub(crate) fn hijack(
    request: &mut Request,
    attachment: Attachment,
    detach_keys: Vec<u8>,
    settled: impl Future<Output = ()> + Send + 'static,
) -> Response<Body> {
    let content_type = content_type(request, attachment.tty);
    let Some(upgrade) = request.upgrade.take() else {
        return output_only(content_type, attachment);
    };
    tokio::spawn(async move {
        // A client that went away before the handover is no news: dropping the attachment detaches it.
        if let Ok(upgraded) = upgrade.await {
            let (reader, writer) = tokio::io::split(TokioIo::new(upgraded));
            pump(reader, writer, attachment, &detach_keys, settled).await;
        }
    });
    let mut answer = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.extensions_mut().insert(hyper::ext::ReasonPhrase::from_static(b"UPGRADED"));
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("tcp"));
    answer
}

/// The answer to a client that did not ask to take over the connection: output as a body, no input.
fn output_only(content_type: &'static str, attachment: Attachment) -> Response<Body> {
    let Attachment { tty, output, input } = attachment;
    drop(input);
    respond::streamed(content_type, Pieces::new(output, move |chunk: Chunk| encode(tty, chunk)).batched())
}

fn encode(tty: bool, chunk: Chunk) -> Bytes {
    if tty { chunk.bytes } else { frame(chunk.stream, &chunk.bytes) }
}

/// Copies both ways until output ends, the client is gone, or the detach keys are typed.
async fn pump<R, W>(
    reader: R,
    mut writer: W,
    attachment: Attachment,
    detach_keys: &[u8],
    settled: impl Future<Output = ()>,
) where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let Attachment { tty, mut output, input } = attachment;
    let outward = async {
        while let Some(chunk) = output.recv().await {
            let mut batch = BytesMut::from(encode(tty, chunk));
            while batch.len() < respond::BATCH_BYTES
                && let Ok(chunk) = output.try_recv()
            {
                batch.extend_from_slice(&encode(tty, chunk));
            }
            writer.write_all(&batch).await?;
            writer.flush().await?;
        }
        settled.await;
        writer.shutdown().await
    };
    let keys = if tty { detach_keys } else { &[] };
    let detached = async {
        if copy_input(reader, input, keys).await == InputEnd::Closed {
            // Output goes on after the end of input.
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        // An error is a client that went away; dropping the attachment detaches it.
        _ = outward => {}
        () = detached => {}
    }
}

/// Why no more input comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InputEnd {
    /// The client closed its half or went away.
    Closed,
    /// The client typed the detach keys.
    Detached,
}

async fn copy_input(
    mut reader: impl AsyncRead + Unpin,
    mut input: Option<mpsc::Sender<Bytes>>,
    keys: &[u8],
) -> InputEnd {
    let mut scanner = DetachScanner::new(keys);
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(INPUT_CHUNK_BYTES);
        match reader.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return InputEnd::Closed,
            Ok(_) => {}
        }
        let read = buffer.split().freeze();
        let Some(passed) = scanner.pass(read) else { return InputEnd::Detached };
        // Where nobody reads input, it is still taken from the client, so that the client does not block.
        if let Some(sender) = &input
            && !passed.is_empty()
            && sender.send(passed).await.is_err()
        {
            input = None;
        }
    }
}

/// Finds the detach keys in what is typed. Keys that may become the sequence are held back until the next one tells.
struct DetachScanner<'a> {
    keys: &'a [u8],
    matched: usize,
}

impl<'a> DetachScanner<'a> {
    fn new(keys: &'a [u8]) -> Self {
        Self { keys, matched: 0 }
    }

    /// What to pass on of `typed`; none when the sequence is complete.
    fn pass(&mut self, typed: Bytes) -> Option<Bytes> {
        let Some((first, _)) = self.keys.split_first() else { return Some(typed) };
        if self.matched == 0 && !typed.contains(first) {
            return Some(typed);
        }
        let mut passed = BytesMut::with_capacity(typed.len() + self.keys.len());
        for key in typed {
            if self.keys.get(self.matched) == Some(&key) {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    return None;
                }
                continue;
            }
            passed.put_slice(self.keys.get(..self.matched).unwrap_or_default());
            self.matched = usize::from(key == *first);
            if self.matched == 0 {
                passed.put_u8(key);
            }
        }
        Some(passed.freeze())
    }
}

/// The bytes of detach keys such as `ctrl-p,ctrl-q`; an empty text stands for just those.
pub(crate) fn detach_keys(text: &str) -> Result<Vec<u8>, ApiError> {
    let text = if text.is_empty() { "ctrl-p,ctrl-q" } else { text };
    let invalid = || ApiError::invalid(format!("Invalid detach keys ({text}) provided"));
    text.split(',').map(|key| detach_key(key).ok_or_else(invalid)).collect()
}

fn detach_key(key: &str) -> Option<u8> {
    if let [byte] = key.as_bytes() {
        return Some(*byte);
    }
    match key.strip_prefix("ctrl-")?.as_bytes() {
        [letter @ (b'a'..=b'z')] => Some(letter - b'a' + 1),
        [sign @ (b'@' | b'[' | b'\\' | b']' | b'^' | b'_')] => Some(sign - b'@'),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_a_head_of_eight_bytes_and_the_payload() {
        assert_eq!(&frame(Stream::Out, b"hi\n")[..], b"\x01\0\0\0\0\0\0\x03hi\n");
        assert_eq!(&frame(Stream::Err, b"")[..], b"\x02\0\0\0\0\0\0\0");
    }

    #[test]
    fn detach_keys_are_read_and_refused_as_docker_does() {
        assert_eq!(detach_keys("").unwrap(), [16, 17]);
        assert_eq!(detach_keys("ctrl-a,x,ctrl-@,ctrl-_").unwrap(), [1, b'x', 0, 31]);
        for wrong in ["ctrl-", "ctrl-A", "xy", "a,,b", "ctrl-p,"] {
            assert_eq!(
                detach_keys(wrong).unwrap_err().message,
                format!("Invalid detach keys ({wrong}) provided")
            );
        }
    }

    #[test]
    fn the_detach_sequence_is_found_across_reads_and_all_else_passes() {
        let scan = |parts: &[&'static [u8]]| {
            let mut scanner = DetachScanner::new(&[16, 17]);
            let mut passed = Vec::new();
            for part in parts {
                match scanner.pass(Bytes::from_static(part)) {
                    Some(bytes) => passed.extend_from_slice(&bytes),
                    None => return (passed, true),
                }
            }
            (passed, false)
        };
        assert_eq!(scan(&[b"ab", b"\x10", b"\x11c"]), (b"ab".to_vec(), true));
        assert_eq!(scan(&[b"a\x10", b"b\x11"]), (b"a\x10b\x11".to_vec(), false));
        assert_eq!(scan(&[b"\x10\x10", b"\x11"]), (b"\x10".to_vec(), true));
        assert_eq!(scan(&[b"\x10\x10b"]), (b"\x10\x10b".to_vec(), false));
    }
}
