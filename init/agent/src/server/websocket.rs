//! Attaching by websocket (RFC 6455): the handshake, and frames both ways.
//!
//! Output goes out as binary frames, as text to clients before 1.28; whatever comes in is input. Nothing is told apart
//! by stream: a websocket carries what the client asked for in the order it came.

use base64::Engine as _;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Empty};
use hyper::header::{CONNECTION, HeaderName, HeaderValue, UPGRADE};
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::errors::ApiError;
use super::request::Request;
use super::respond::{self, Body};
use crate::command::Attachment;

/// What the key of a handshake is hashed with (RFC 6455, 1.3).
const MAGIC: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Longest frame taken from a client, bytes. Input is typed or piped in small pieces.
const FRAME_MAX: u64 = 1 << 20;
/// Longest control frame (RFC 6455, 5.5).
const CONTROL_MAX: usize = 125;
/// Pongs and closes on their way out.
const REPLIES: usize = 4;

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Hands the connection over to `attachment` by websocket. After the end of output `settled` is awaited.
pub(crate) fn hijack(
    request: &mut Request,
    attachment: Attachment,
    settled: impl Future<Output = ()> + Send + 'static,
) -> Result<Response<Body>, ApiError> {
    let asked = request.header("upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket"));
    let key = request.header("sec-websocket-key").filter(|_| asked).map(accept_of);
    let (Some(accept), Some(upgrade)) = (key, request.upgrade.take()) else {
        return Err(ApiError::invalid("the request is no websocket handshake"));
    };
    let kind = if request.since(28) { BINARY } else { TEXT };
    tokio::spawn(async move {
        // A client that went away before the handover is no news: dropping the attachment detaches it.
        if let Ok(upgraded) = upgrade.await {
            let (reader, writer) = tokio::io::split(TokioIo::new(upgraded));
            pump(reader, writer, attachment, kind, settled).await;
        }
    });
    let mut answer = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    let accept = HeaderValue::from_str(&accept).map_err(|error| ApiError::failed(error.to_string()))?;
    headers.insert(HeaderName::from_static("sec-websocket-accept"), accept);
    Ok(answer)
}

/// What proves that a key was read.
fn accept_of(key: &str) -> String {
    // SHA-1 only shows that the peer speaks the protocol; nothing is kept safe by it.
    let hash = ring::digest::digest(
        &ring::digest::SHA1_FOR_LEGACY_USE_ONLY,
        format!("{}{MAGIC}", key.trim()).as_bytes(),
    );
    base64::engine::general_purpose::STANDARD.encode(hash)
}

/// Copies both ways until output ends or the client closes.
async fn pump<R, W>(
    reader: R,
    mut writer: W,
    attachment: Attachment,
    kind: u8,
    settled: impl Future<Output = ()>,
) where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let Attachment { mut output, input, .. } = attachment;
    let (replies, mut to_reply) = mpsc::channel::<(u8, Bytes)>(REPLIES);
    let outward = async {
        loop {
            let (frame, last) = tokio::select! {
                chunk = output.recv() => match chunk {
                    Some(chunk) => {
                        let mut batch = BytesMut::from(&chunk.bytes[..]);
                        while batch.len() < respond::BATCH_BYTES
                            && let Ok(chunk) = output.try_recv()
                        {
                            batch.extend_from_slice(&chunk.bytes);
                        }
                        (frame(kind, &batch), false)
                    }
                    None => break,
                },
                Some((kind, bytes)) = to_reply.recv() => (frame(kind, &bytes), kind == CLOSE),
            };
            writer.write_all(&frame).await?;
            writer.flush().await?;
            if last {
                return writer.shutdown().await;
            }
        }
        settled.await;
        // 1000: a normal end.
        writer.write_all(&frame(CLOSE, &1000_u16.to_be_bytes())).await?;
        writer.shutdown().await
    };
    let inward = async {
        if !copy_input(reader, input, &replies).await {
            // The close goes out before the connection does.
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        // An error is a client that went away; dropping the attachment detaches it.
        _ = outward => {}
        () = inward => {}
    }
}

/// Passes on what comes in; true when the client is gone without a word.
async fn copy_input(
    mut reader: impl AsyncRead + Unpin,
    mut input: Option<mpsc::Sender<Bytes>>,
    replies: &mpsc::Sender<(u8, Bytes)>,
) -> bool {
    let mut buffer = BytesMut::new();
    loop {
        let (kind, bytes) = loop {
            match take_frame(&mut buffer) {
                Ok(Some(frame)) => break frame,
                Ok(None) => {}
                Err(code) => {
                    let _ = replies.send((CLOSE, Bytes::copy_from_slice(&code.to_be_bytes()))).await;
                    return false;
                }
            }
            if !matches!(reader.read_buf(&mut buffer).await, Ok(1..)) {
                return true;
            }
        };
        match kind {
            PING => drop(replies.send((PONG, bytes)).await),
            PONG => {}
            CLOSE => {
                let _ = replies.send((CLOSE, bytes)).await;
                return false;
            }
            // Data and its continuations.
            _ => {
                if let Some(sender) = &input
                    && !bytes.is_empty()
                    && sender.send(bytes).await.is_err()
                {
                    input = None;
                }
            }
        }
    }
}

/// A frame of the server's: whole, without mask.
fn frame(kind: u8, bytes: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(10 + bytes.len());
    out.put_u8(0x80 | kind);
    match bytes.len() {
        short @ 0..=125 => out.put_u8(u8::try_from(short).unwrap_or(0)),
        middle @ 126..=0xffff => {
            out.put_u8(126);
            out.put_u16(u16::try_from(middle).unwrap_or(u16::MAX));
        }
        long => {
            out.put_u8(127);
            out.put_u64(u64::try_from(long).unwrap_or(u64::MAX));
        }
    }
    out.put_slice(bytes);
    out.freeze()
}

/// The next whole frame in `buffer`, unmasked; none when more must come; a close code for what is no frame of a
/// client's.
fn take_frame(buffer: &mut BytesMut) -> Result<Option<(u8, Bytes)>, u16> {
    const PROTOCOL: u16 = 1002;
    const TOO_LONG: u16 = 1009;
    let mut head = &buffer[..];
    if head.remaining() < 2 {
        return Ok(None);
    }
    let (first, second) = (head.get_u8(), head.get_u8());
    let kind = first & 0x0f;
    // Reserved bits belong to extensions, and clients must mask.
    if first & 0x70 != 0 || second & 0x80 == 0 || !matches!(kind, 0..=2 | 8..=10) {
        return Err(PROTOCOL);
    }
    let length = match second & 0x7f {
        126 if head.remaining() < 2 => return Ok(None),
        127 if head.remaining() < 8 => return Ok(None),
        126 => u64::from(head.get_u16()),
        127 => head.get_u64(),
        short => u64::from(short),
    };
    if length > FRAME_MAX {
        return Err(TOO_LONG);
    }
    let length = usize::try_from(length).map_err(|_| TOO_LONG)?;
    if kind >= CLOSE && length > CONTROL_MAX {
        return Err(PROTOCOL);
    }
    if head.remaining() < 4 + length {
        return Ok(None);
    }
    let mask = head.get_u32().to_be_bytes();
    let used = buffer.len() - head.remaining();
    buffer.advance(used);
    let mut bytes = buffer.split_to(length);
    for (byte, mask) in bytes.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
    Ok(Some((kind, bytes.freeze())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Chunk, Stream};

    /// A frame as a client sends it.
    fn masked(kind: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![0x80 | kind, 0x80 | u8::try_from(bytes.len()).unwrap(), 1, 2, 3, 4];
        out.extend(bytes.iter().zip([1, 2, 3, 4].iter().cycle()).map(|(byte, mask)| byte ^ mask));
        out
    }

    #[test]
    fn the_handshake_is_the_standards_own_example() {
        assert_eq!(accept_of("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn frames_are_read_whole_and_only_as_clients_may_send_them() {
        let whole = masked(BINARY, b"hello");
        for cut in 0..whole.len() {
            assert_eq!(take_frame(&mut BytesMut::from(&whole[..cut])), Ok(None), "{cut}");
        }
        let mut buffer = BytesMut::from(&[&whole[..], &masked(PING, b"x")].concat()[..]);
        assert_eq!(take_frame(&mut buffer), Ok(Some((BINARY, Bytes::from_static(b"hello")))));
        assert_eq!(take_frame(&mut buffer), Ok(Some((PING, Bytes::from_static(b"x")))));
        for (bad, code) in [
            (&b"\x82\x05hello"[..], 1002),
            (b"\xc2\x80\0\0\0\0", 1002),
            (b"\x83\x80\0\0\0\0", 1002),
            (b"\x89\xfe\x00\x7e", 1002),
            (b"\x82\xff\0\0\0\0\0\x10\0\x01", 1009),
        ] {
            assert_eq!(take_frame(&mut BytesMut::from(bad)), Err(code), "{bad:?}");
        }
    }

    #[test]
    fn lengths_take_the_shortest_form() {
        assert_eq!(&frame(BINARY, b"hi")[..], b"\x82\x02hi");
        assert_eq!(frame(TEXT, &[0; 126])[..4], [0x81, 126, 0, 126]);
        assert_eq!(frame(BINARY, &vec![0; 0x1_0000])[..10], [0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[tokio::test]
    async fn output_goes_out_input_goes_in_and_pings_are_answered() {
        let (ours, mut client) = tokio::io::duplex(4096);
        let (reader, writer) = tokio::io::split(ours);
        let (out, output) = mpsc::channel(4);
        let (input, mut typed) = mpsc::channel(4);
        let attachment = Attachment { tty: false, output, input: Some(input) };
        let pumped = tokio::spawn(pump(reader, writer, attachment, BINARY, std::future::ready(())));
        client.write_all(&masked(PING, b"?")).await.unwrap();
        let mut pong = [0; 3];
        client.read_exact(&mut pong).await.unwrap();
        assert_eq!(&pong, b"\x8a\x01?");
        client.write_all(&masked(TEXT, b"ls\n")).await.unwrap();
        assert_eq!(typed.recv().await.unwrap(), "ls\n");
        out.send(Chunk { stream: Stream::Out, bytes: "file\n".into() }).await.unwrap();
        drop(out);
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"\x82\x05file\n\x88\x02\x03\xe8");
        pumped.await.unwrap();
    }
}
