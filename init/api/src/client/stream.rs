//! Answers that do not end at once: streamed bodies and hijacked connections.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::ClientError;

/// Longest line of a JSON stream accepted, bytes.
const MAX_LINE_BYTES: usize = 4 * 1024 * 1024;

/// The body of an answer as it arrives. Also an [`AsyncRead`], for [`super::read_frame`].
pub struct Streaming {
    pub(super) path: String,
    pub(super) body: Incoming,
    pub(super) content_type: String,
    buffer: BytesMut,
    lines: VecDeque<Bytes>,
}

impl Streaming {
    pub(super) fn new(path: String, content_type: String, body: Incoming) -> Self {
        Self { path, body, content_type, buffer: BytesMut::new(), lines: VecDeque::new() }
    }

    /// Content type of the answer.
    pub fn content_type(&self) -> &str {
        &self.content_type
    }

    /// The next bytes; none at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        if !self.buffer.is_empty() {
            return Ok(Some(self.buffer.split().freeze()));
        }
        while let Some(frame) = self.body.frame().await {
            let frame = frame
                .map_err(|source| ClientError::Broken { path: self.path.clone(), source: source.into() })?;
            if let Ok(bytes) = frame.into_data() {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    /// The next line of a stream of JSON objects; none at the end.
    pub async fn next_json<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        let decode = |path: &str, line: &[u8]| {
            serde_json::from_slice(line)
                .map_err(|source| ClientError::Decode { path: path.to_owned(), source })
                .map(Some)
        };
        loop {
            if let Some(line) = self.lines.pop_front() {
                return decode(&self.path, &line);
            }
            let mut rest = std::mem::take(&mut self.buffer);
            let Some(bytes) = self.next().await? else {
                return match rest.trim_ascii() {
                    [] => Ok(None),
                    last => decode(&self.path, last),
                };
            };
            if rest.len() + bytes.len() > MAX_LINE_BYTES {
                let source = io::Error::new(io::ErrorKind::InvalidData, "a line is too long");
                return Err(ClientError::Broken { path: self.path.clone(), source: source.into() });
            }
            rest.extend_from_slice(&bytes);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line = rest.split_to(end + 1).freeze();
                if !line.trim_ascii().is_empty() {
                    self.lines.push_back(line);
                }
            }
            self.buffer = rest;
        }
    }
}

impl AsyncRead for Streaming {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        use hyper::body::Body;
        loop {
            if !self.buffer.is_empty() {
                let count = self.buffer.len().min(into.remaining());
                into.put_slice(&self.buffer[..count]);
                self.buffer.advance(count);
                return Poll::Ready(Ok(()));
            }
            match std::task::ready!(Pin::new(&mut self.body).poll_frame(context)) {
                None => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        self.buffer.extend_from_slice(&bytes);
                    }
                }
            }
        }
    }
}

/// A connection taken over after the answer's head: raw bytes both ways. `shutdown` half-closes: the other side sees
/// the end of input and can still be read from.
pub struct Hijacked {
    pub(super) content_type: String,
    pub(super) io: hyper_util::rt::TokioIo<hyper::upgrade::Upgraded>,
}

impl Hijacked {
    /// Content type of the answer: multiplexed or raw stream.
    pub fn content_type(&self) -> &str {
        &self.content_type
    }

    /// Whether output comes in frames ([`super::read_frame`]).
    pub fn is_multiplexed(&self) -> bool {
        self.content_type == "application/vnd.docker.multiplexed-stream"
    }
}

impl AsyncRead for Hijacked {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, into)
    }
}

impl AsyncWrite for Hijacked {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
