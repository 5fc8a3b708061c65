//! Requests: the parts handlers read, with limits on everything and the reference engine's words for what is wrong.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap};
use hyper::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;

use berth_api::version::Version;

use super::Api;
use super::errors::ApiError;
use super::query::Query;

/// Longest JSON body read, bytes: environments and labels of hundreds of kilobytes are seen in the field.
pub(crate) const MAX_JSON_BYTES: usize = 4 * 1024 * 1024;

/// Longest body read before a handler asks for it, bytes. A body that nobody reads costs the client its connection,
/// and most errors are found before the body is looked at.
const EAGER_BYTES: u64 = 64 * 1024;

/// A client has this long to send a body that short.
const EAGER_TIMEOUT: Duration = Duration::from_secs(30);

/// The body of a request.
pub(crate) enum Body {
    /// Short, and here.
    Whole(Bytes),
    /// Still coming.
    Coming(Incoming),
}

impl Body {
    /// The body, read already where it is short.
    pub(crate) async fn take(body: Incoming) -> Result<Self, ApiError> {
        use hyper::body::Body as _;
        if body.size_hint().upper().is_none_or(|length| length > EAGER_BYTES) {
            return Ok(Self::Coming(body));
        }
        match tokio::time::timeout(EAGER_TIMEOUT, body.collect()).await {
            Ok(Ok(whole)) => Ok(Self::Whole(whole.to_bytes())),
            Ok(Err(error)) => Err(unreadable(&error)),
            Err(_) => {
                Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "the request body did not come in time"))
            }
        }
    }

    /// Whether it was read.
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self, Self::Whole(_))
    }
}

fn unreadable(error: &dyn std::error::Error) -> ApiError {
    ApiError::invalid(format!("cannot read the request body: {error}"))
}

/// A request on its way to a handler.
pub(crate) struct Request {
    pub(crate) api: Arc<Api>,
    pub(crate) method: Method,
    /// Asked by `HEAD`, which is otherwise answered as `GET`.
    pub(crate) head: bool,
    pub(crate) version: Version,
    pub(crate) query: Query,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
    /// Set when the client asked to take over the connection in the way of HTTP.
    pub(crate) upgrade: Option<hyper::upgrade::OnUpgrade>,
}

impl Request {
    /// A header as text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Whether the client's API version is at least `1.minor`.
    pub(crate) fn since(&self, minor: u16) -> bool {
        self.version >= Version::one(minor)
    }

    /// The body, which must be JSON of type `application/json`; decoded by the rules of `berth_api::decode`.
    pub(crate) async fn json<T: DeserializeOwned>(&mut self) -> Result<T, ApiError> {
        let value = self.json_value().await?;
        decode(value)
    }

    /// As [`Self::json`], where no body stands for the default.
    pub(crate) async fn json_or_default<T: DeserializeOwned + Default>(&mut self) -> Result<T, ApiError> {
        let bytes = self.bytes(MAX_JSON_BYTES).await?;
        if bytes.trim_ascii().is_empty() {
            return Ok(T::default());
        }
        self.check_content_type()?;
        decode(parse(&bytes)?)
    }

    /// The body as JSON.
    pub(crate) async fn json_value(&mut self) -> Result<Value, ApiError> {
        let bytes = self.bytes(MAX_JSON_BYTES).await?;
        if !bytes.is_empty() || self.header("content-type").is_some() {
            self.check_content_type()?;
        }
        parse(&bytes)
    }

    /// The body, up to `limit` bytes.
    pub(crate) async fn bytes(&mut self, limit: usize) -> Result<Bytes, ApiError> {
        let too_long = || {
            ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("the request body is longer than {limit} bytes"),
            )
        };
        let body = match &mut self.body {
            Body::Whole(bytes) if bytes.len() > limit => return Err(too_long()),
            Body::Whole(bytes) => return Ok(std::mem::take(bytes)),
            Body::Coming(body) => body,
        };
        match Limited::new(body, limit).collect().await {
            Ok(whole) => Ok(whole.to_bytes()),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(too_long()),
            Err(error) => Err(unreadable(&*error)),
        }
    }

    fn check_content_type(&self) -> Result<(), ApiError> {
        let value = self.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let kind = value.split(';').next().unwrap_or_default().trim();
        if kind.eq_ignore_ascii_case("application/json") {
            return Ok(());
        }
        Err(ApiError::invalid(format!(
            "unsupported Content-Type header ({value}): must be 'application/json'"
        )))
    }
}

fn decode<T: DeserializeOwned>(value: Value) -> Result<T, ApiError> {
    berth_api::decode::from_value(value).map_err(|error| ApiError::invalid(format!("invalid JSON: {error}")))
}

fn parse(bytes: &[u8]) -> Result<Value, ApiError> {
    if bytes.trim_ascii().is_empty() {
        return Err(ApiError::invalid("invalid JSON: got EOF while reading request body"));
    }
    serde_json::from_slice(bytes)
        .map_err(|error| ApiError::invalid(format!("invalid JSON: {}", go_words(bytes, &error))))
}

/// A syntax error in the words of the reference engine's parser, where it has a counterpart.
fn go_words(bytes: &[u8], error: &serde_json::Error) -> String {
    if error.is_eof() {
        return "unexpected EOF".to_owned();
    }
    let text = error.to_string();
    let line = bytes.split(|byte| *byte == b'\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    let Some(found) = line.get(error.column().saturating_sub(1)).map(|byte| char::from(*byte)) else {
        return text;
    };
    let looking_for = match text.split(" at line").next().unwrap_or_default() {
        "key must be a string" => "looking for beginning of object key string",
        "expected value" => "looking for beginning of value",
        "expected `:`" => "after object key",
        "expected `,` or `}`" => "after object key:value pair",
        "expected `,` or `]`" => "after array element",
        "trailing characters" => "after top-level value",
        _ => return text,
    };
    format!("invalid character '{found}' {looking_for}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> String {
        parse(text.as_bytes()).unwrap_err().message
    }

    #[test]
    fn broken_json_is_told_in_the_reference_engines_words() {
        for (text, expected) in [
            ("", "invalid JSON: got EOF while reading request body"),
            ("{bad", "invalid JSON: invalid character 'b' looking for beginning of object key string"),
            ("{\"a\":1", "invalid JSON: unexpected EOF"),
            ("[1 2]", "invalid JSON: invalid character '2' after array element"),
            ("{} x", "invalid JSON: invalid character 'x' after top-level value"),
        ] {
            assert_eq!(message(text), expected, "{text}");
        }
    }
}
