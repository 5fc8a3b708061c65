//! Answers: their bodies, and the headers every answer carries.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Frame;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use tokio::sync::mpsc;

use super::ENGINE_VERSION;

/// Body of an answer. An error breaks the connection off.
pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Size of a batch of small pieces, bytes: about two TLS records.
pub(crate) const BATCH_BYTES: usize = 32 * 1024;

/// Content type of JSON answers.
pub(crate) const JSON: &str = "application/json";

/// An answer with JSON.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(mut bytes) => {
            bytes.push(b'\n');
            whole(status, JSON, bytes.into())
        }
        // Own types with string keys always serialise; should one not, the client learns it.
        Err(error) => whole(
            StatusCode::INTERNAL_SERVER_ERROR,
            JSON,
            format!("{{\"message\":\"cannot encode the answer: {}\"}}\n", error.to_string().escape_default())
                .into(),
        ),
    }
}

/// `200 OK` with JSON.
pub(crate) fn ok(value: &impl Serialize) -> Response<Body> {
    json(StatusCode::OK, value)
}

/// An answer with no body, such as 204 and 304.
pub(crate) fn empty(status: StatusCode) -> Response<Body> {
    let mut answer = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *answer.status_mut() = status;
    answer
}

/// An answer with a body at hand.
pub(crate) fn whole(status: StatusCode, content_type: &'static str, bytes: Bytes) -> Response<Body> {
    let mut answer = Response::new(Full::new(bytes).map_err(|never| match never {}).boxed_unsync());
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// `200 OK` with a body that comes piece by piece; each piece is sent at once, the head before the first.
pub(crate) fn streamed<B>(content_type: &'static str, body: B) -> Response<Body>
where
    B: hyper::body::Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    streamed_whole(content_type, body.map_err(|never| match never {}))
}

/// As [`streamed`], of a body that may break off, and with it the connection.
pub(crate) fn streamed_whole<B>(content_type: &'static str, body: B) -> Response<Body>
where
    B: hyper::body::Body<Data = Bytes, Error = io::Error> + Send + 'static,
{
    let mut answer = Response::new(body.boxed_unsync());
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// A body made of what arrives on a channel. Ends when the sender is dropped; dropping it closes the channel.
pub(crate) struct Pieces<T, F> {
    receiver: mpsc::Receiver<T>,
    encode: F,
    settled: Settled,
    /// Bytes up to which pieces that are there already are sent as one.
    batch_bytes: usize,
}

/// What a body waits for after its last piece, once.
type Settled = Option<Pin<Box<dyn Future<Output = ()> + Send>>>;

impl<T, F: FnMut(T) -> Bytes> Pieces<T, F> {
    /// A body of what `receiver` gives, as bytes by `encode`.
    pub(crate) fn new(receiver: mpsc::Receiver<T>, encode: F) -> Self {
        Self { receiver, encode, settled: None, batch_bytes: 0 }
    }

    /// The same, with small pieces that are there already sent as one: for streams of bytes, whose readers do not look
    /// at pieces.
    pub(crate) fn batched(mut self) -> Self {
        self.batch_bytes = BATCH_BYTES;
        self
    }

    /// The same, ending only when `settled` is done.
    pub(crate) fn then(mut self, settled: impl Future<Output = ()> + Send + 'static) -> Self {
        self.settled = Some(Box::pin(settled));
        self
    }
}

impl<T, F: FnMut(T) -> Bytes> Pieces<T, F> {
    /// `first` and what else is there, up to the batch's size.
    fn filled_up(&mut self, first: Bytes) -> Bytes {
        if first.len() >= self.batch_bytes || self.receiver.is_empty() {
            return first;
        }
        let mut batch = BytesMut::from(first);
        while batch.len() < self.batch_bytes
            && let Ok(piece) = self.receiver.try_recv()
        {
            batch.extend_from_slice(&(self.encode)(piece));
        }
        batch.freeze()
    }
}

impl<T: Send, F: FnMut(T) -> Bytes + Unpin> hyper::body::Body for Pieces<T, F> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(piece) = std::task::ready!(self.receiver.poll_recv(context)) {
            let first = (self.encode)(piece);
            return Poll::Ready(Some(Ok(Frame::data(self.filled_up(first)))));
        }
        if let Some(settled) = &mut self.settled {
            std::task::ready!(settled.as_mut().poll(context));
            self.settled = None;
        }
        Poll::Ready(None)
    }
}

/// Adds what every answer carries, errors included.
pub(crate) fn stamp(answer: &mut Response<Body>) {
    let api_version = HeaderValue::from_static("1.51");
    let server = HeaderValue::from_str(&format!("Docker/{ENGINE_VERSION} (linux)"));
    let headers = answer.headers_mut();
    headers.insert(HeaderName::from_static("api-version"), api_version);
    headers.insert(HeaderName::from_static("docker-experimental"), HeaderValue::from_static("false"));
    headers.insert(HeaderName::from_static("ostype"), HeaderValue::from_static("linux"));
    if let Ok(server) = server {
        headers.insert(hyper::header::SERVER, server);
    }
}

/// A JSON object and the line end that progress streams use.
pub(crate) fn json_line(value: &impl Serialize) -> Bytes {
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.extend_from_slice(b"\r\n");
    line.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pieces(batched: bool, sizes: &[usize]) -> Vec<usize> {
        let (sender, receiver) = mpsc::channel(16);
        for size in sizes {
            sender.try_send(*size).unwrap();
        }
        drop(sender);
        let body = Pieces::new(receiver, |size: usize| Bytes::from(vec![b'x'; size]));
        let mut body = if batched { body.batched() } else { body };
        let mut got = Vec::new();
        while let Some(Ok(frame)) = body.frame().await {
            got.push(frame.into_data().unwrap().len());
        }
        got
    }

    #[tokio::test]
    async fn small_pieces_are_sent_as_one_and_large_ones_alone() {
        assert_eq!(pieces(true, &[1, 2, 3]).await, [6]);
        assert_eq!(pieces(true, &[BATCH_BYTES, 2, 3]).await, [BATCH_BYTES, 5]);
        assert_eq!(pieces(true, &[1, BATCH_BYTES, 3]).await, [BATCH_BYTES + 1, 3]);
        assert_eq!(pieces(false, &[1, 2, 3]).await, [1, 2, 3]);
    }
}
