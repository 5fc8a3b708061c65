//! Answers: their bodies, and the headers every answer carries.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Frame;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use tokio::sync::mpsc;

use super::ENGINE_VERSION;

/// Body of an answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

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
    let mut answer = Response::new(Empty::new().boxed_unsync());
    *answer.status_mut() = status;
    answer
}

/// An answer with a body at hand.
pub(crate) fn whole(status: StatusCode, content_type: &'static str, bytes: Bytes) -> Response<Body> {
    let mut answer = Response::new(Full::new(bytes).boxed_unsync());
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// `200 OK` with a body that comes piece by piece; each piece is sent at once, the head before the first.
pub(crate) fn streamed<B>(content_type: &'static str, body: B) -> Response<Body>
where
    B: hyper::body::Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let mut answer = Response::new(body.boxed_unsync());
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// A body made of what arrives on a channel. Ends when the sender is dropped; dropping it closes the channel.
pub(crate) struct Pieces<T, F> {
    receiver: mpsc::Receiver<T>,
    encode: F,
}

impl<T, F: FnMut(T) -> Bytes> Pieces<T, F> {
    /// A body of what `receiver` gives, as bytes by `encode`.
    pub(crate) fn new(receiver: mpsc::Receiver<T>, encode: F) -> Self {
        Self { receiver, encode }
    }
}

impl<T: Send, F: FnMut(T) -> Bytes + Unpin> hyper::body::Body for Pieces<T, F> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = std::task::ready!(self.receiver.poll_recv(context));
        Poll::Ready(piece.map(|piece| Ok(Frame::data((self.encode)(piece)))))
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
