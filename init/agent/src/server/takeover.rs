//! Connections of clients that take over without asking in the way of HTTP.
//!
//! Old and simple clients send `POST …/attach` or `POST /exec/…/start` without `Upgrade`, and expect `200 OK` and then
//! raw bytes both ways, never chunks. The HTTP library hands a connection over only when the request asks for it, so
//! for the first request of a connection that is one of these the question is put into the request's head, and taken
//! out of the answer's head again. All other connections pass unchanged.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// Put in front of the empty line that ends a request's head.
const QUESTION: &[u8] = b"Connection: Upgrade\r\nUpgrade: tcp\r\n";
/// The end of a head.
const END: &[u8] = b"\r\n\r\n";
/// What an answer that hands over starts with.
const HANDED_OVER: &[u8] = b"HTTP/1.1 101 ";

/// A connection whose first head was looked at.
pub(crate) struct Takeover<S> {
    inner: S,
    /// Read already, not yet given on.
    read: Bytes,
    answer: Answer,
}

/// Where the first answer's head is.
enum Answer {
    /// Not looked at, or done: everything passes.
    Passing,
    /// Still coming; what came so far.
    Awaited(BytesMut),
    /// Looked at; what is left to be written of it.
    Ready(Bytes),
}

/// Reads the first head of at most `limit` bytes. None when the peer sends none.
pub(crate) async fn look<S: AsyncRead + Unpin>(
    mut inner: S,
    limit: usize,
) -> io::Result<Option<Takeover<S>>> {
    let mut head = BytesMut::with_capacity(1024);
    let end = loop {
        if let Some(at) = find(&head, END) {
            break Some(at);
        }
        if head.len() >= limit {
            // Too long: the HTTP library says so.
            break None;
        }
        if inner.read_buf(&mut head).await? == 0 {
            if head.is_empty() {
                return Ok(None);
            }
            break None;
        }
    };
    let mut answer = Answer::Passing;
    if let Some(at) = end.filter(|at| takes_over(head.get(..*at).unwrap_or_default())) {
        let rest = head.split_off(at + 2);
        head.extend_from_slice(QUESTION);
        head.unsplit(rest);
        answer = Answer::Awaited(BytesMut::new());
    }
    Ok(Some(Takeover { inner, read: head.freeze(), answer }))
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

/// Whether a head is of a request that takes over without saying so.
fn takes_over(head: &[u8]) -> bool {
    let Ok(head) = std::str::from_utf8(head) else { return false };
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (method, target, version) = (words.next(), words.next().unwrap_or_default(), words.next());
    let path = target.split('?').next().unwrap_or_default();
    let hijacked = path.ends_with("/attach") || (path.contains("/exec/") && path.ends_with("/start"));
    let asks = |line: &str| line.get(..8).is_some_and(|name| name.eq_ignore_ascii_case("upgrade:"));
    method == Some("POST") && version == Some("HTTP/1.1") && hijacked && !lines.any(asks)
}

/// The head with `200 OK` for `101`, without the headers of the handover. Other heads stay.
fn rewritten(head: Bytes) -> Bytes {
    if !head.starts_with(HANDED_OVER) {
        return head;
    }
    let Some(end) = find(&head, END) else { return head };
    let mut out = BytesMut::from(&b"HTTP/1.1 200 OK\r\n"[..]);
    let lines = String::from_utf8_lossy(head.get(..end).unwrap_or_default()).into_owned();
    for line in lines.split("\r\n").skip(1) {
        let name = line.split(':').next().unwrap_or_default();
        if !name.eq_ignore_ascii_case("connection") && !name.eq_ignore_ascii_case("upgrade") {
            out.extend_from_slice(line.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
    out.extend_from_slice(head.get(end + 2..).unwrap_or_default());
    out.freeze()
}

impl<S: AsyncRead + Unpin> AsyncRead for Takeover<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.inner).poll_read(context, into);
        }
        let count = self.read.len().min(into.remaining());
        let part = self.read.split_to(count);
        into.put_slice(&part);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> Takeover<S> {
    /// Writes what is left of the first answer's head.
    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Answer::Ready(head) = &mut self.answer {
            if head.is_empty() {
                self.answer = Answer::Passing;
                break;
            }
            let count = ready!(Pin::new(&mut self.inner).poll_write(context, head))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            head.advance(count);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Takeover<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_ready(context))?;
        let Answer::Awaited(head) = &mut self.answer else {
            return Pin::new(&mut self.inner).poll_write(context, from);
        };
        // The head of an answer of ours comes in one or two writes and is short.
        head.extend_from_slice(from);
        if find(head, END).is_some() {
            let head = head.split().freeze();
            self.answer = Answer::Ready(rewritten(head));
        }
        Poll::Ready(Ok(from.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_ready(context))?;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_ready(context))?;
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_takeover_that_does_not_ask_is_found() {
        for (head, found) in [
            ("POST /v1.41/containers/x/attach?stream=1 HTTP/1.1\r\nHost: x", true),
            ("POST /exec/abc/start HTTP/1.1\r\nContent-Length: 2", true),
            ("POST /containers/x/attach HTTP/1.1\r\nupgrade: tcp", false),
            ("POST /containers/x/start HTTP/1.1", false),
            ("GET /containers/x/attach HTTP/1.1", false),
            ("POST /containers/x/attach HTTP/1.0", false),
        ] {
            assert_eq!(takes_over(head.as_bytes()), found, "{head}");
        }
    }

    #[test]
    fn the_answers_head_loses_the_handover() {
        let head =
            "HTTP/1.1 101 UPGRADED\r\ncontent-type: a/b\r\nConnection: Upgrade\r\nupgrade: tcp\r\n\r\nrest";
        assert_eq!(&rewritten(head.into())[..], b"HTTP/1.1 200 OK\r\ncontent-type: a/b\r\n\r\nrest");
        let other = Bytes::from_static(b"HTTP/1.1 404 Not Found\r\nConnection: x\r\n\r\n");
        assert_eq!(rewritten(other.clone()), other);
    }
}
