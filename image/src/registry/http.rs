//! Requests: kept connections, time limits, redirects by our rules, bounded bodies.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::connect::{Connector, Reach};
use super::error::RegistryError;
use super::origin::{Origin, Url, check_redirect};
use super::payload::{Body, Payload};

/// Redirects followed.
const REDIRECTS_MAX: usize = 5;
/// Idle connections kept per origin; as many as layers are in flight.
const IDLE_MAX: usize = 4;
/// Bytes hyper reads ahead; also the limit on an answer's head.
const READ_BUFFER: usize = 64 << 10;
/// Bytes of an error's body that are looked at.
const ERROR_SIZE_MAX: usize = 64 << 10;

/// A request that can be sent again.
#[derive(Clone)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    /// Sent only to the origin of `url`.
    pub(super) authorization: Option<HeaderValue>,
    pub(super) body: Payload,
}

impl Call {
    pub(super) fn get(url: Url) -> Self {
        Self {
            method: Method::GET,
            url,
            headers: HeaderMap::new(),
            authorization: None,
            body: Payload::Bytes(Bytes::new()),
        }
    }

    pub(super) fn header(&mut self, name: HeaderName, value: &str) {
        // All values are made of what was validated before; one that is not is left out.
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
    }
}

/// Idle connections: one that was opened for a host the operator named never serves a redirect to it.
type Idle = HashMap<(Origin, Reach), Vec<SendRequest<Body>>>;

/// Connections and how they are used.
pub(crate) struct Http {
    connector: Connector,
    /// By origin and by who chose it: a connection the operator's choice opened must not serve a host that a
    /// registry sends us to, whose address was never judged.
    idle: Mutex<Idle>,
}

impl Http {
    pub(crate) fn new(connector: Connector) -> Self {
        Self { connector, idle: Mutex::default() }
    }

    pub(crate) fn connector(&self) -> &Connector {
        &self.connector
    }

    /// Sends a call, following redirects. `registry` is the host the operator or user named.
    pub(super) async fn follow(
        &self,
        call: &Call,
        registry: &Origin,
    ) -> Result<(Response<Incoming>, Url), RegistryError> {
        let mut url = call.url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let reach = if url.origin.host == registry.host { Reach::Any } else { Reach::Public };
            let response = self.send(call, &url, reach).await?;
            let redirects = [
                StatusCode::MOVED_PERMANENTLY,
                StatusCode::FOUND,
                StatusCode::SEE_OTHER,
                StatusCode::TEMPORARY_REDIRECT,
                StatusCode::PERMANENT_REDIRECT,
            ];
            if !redirects.contains(&response.status()) {
                return Ok((response, url));
            }
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let shown = location.unwrap_or_default().split('?').next().unwrap_or_default();
            let next = location
                .and_then(|location| url.join(location))
                .ok_or_else(|| RegistryError::refused(&url.origin, shown, "it is not a usable address"))?;
            check_redirect(registry, &url.origin, &next.origin)
                .map_err(|reason| RegistryError::refused(&url.origin, &next.shown(), reason))?;
            url = next;
        }
        Err(RegistryError::refused(registry, &url.shown(), "there are too many redirects"))
    }

    /// Sends a call once to `url`, which may be where a redirect led.
    pub(super) async fn send(
        &self,
        call: &Call,
        url: &Url,
        reach: Reach,
    ) -> Result<Response<Incoming>, RegistryError> {
        let mut sender = match self.take_idle(&url.origin, reach) {
            Some(sender) => sender,
            None => self.open(&url.origin, reach).await?,
        };
        let request =
            request(call, url).map_err(|error| RegistryError::protocol(&url.origin, error.to_string()))?;
        // The answer to an upload comes when all of it is there.
        let limit = self.connector.patience().answer + call.body.time();
        let late = || RegistryError::Timeout { host: url.origin.to_string(), what: "answer", limit };
        let answered = timeout(limit, sender.send_request(request)).await.map_err(|_| late())?;
        let response = answered.map_err(|error| broken(&url.origin, error))?;
        self.put_idle(&url.origin, reach, sender);
        Ok(response)
    }

    async fn open(&self, origin: &Origin, reach: Reach) -> Result<SendRequest<Body>, RegistryError> {
        let stream = self.connector.connect(origin, reach).await?;
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(READ_BUFFER)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(origin, error))?;
        // Ends when the sender and the last body are dropped; its errors reach whoever waits for an answer.
        tokio::spawn(connection);
        Ok(sender)
    }

    fn take_idle(&self, origin: &Origin, reach: Reach) -> Option<SendRequest<Body>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let senders = idle.get_mut(&(origin.clone(), reach))?;
        senders.retain(|sender| !sender.is_closed());
        // One whose last answer is still being read is not ready.
        let ready = senders.iter().position(SendRequest::is_ready)?;
        Some(senders.swap_remove(ready))
    }

    fn put_idle(&self, origin: &Origin, reach: Reach, sender: SendRequest<Body>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|_, senders| {
            senders.retain(|sender| !sender.is_closed());
            !senders.is_empty()
        });
        let senders = idle.entry((origin.clone(), reach)).or_default();
        if senders.len() < IDLE_MAX {
            senders.push(sender);
        }
    }
}

fn request(call: &Call, url: &Url) -> Result<Request<Body>, hyper::http::Error> {
    let body = call.body.open();
    let mut request = Request::builder().method(call.method.clone()).uri(&url.path).body(body)?;
    let headers = request.headers_mut();
    headers.extend(call.headers.clone());
    headers.insert(header::HOST, HeaderValue::try_from(url.origin.authority())?);
    headers
        .insert(header::USER_AGENT, HeaderValue::from_static(concat!("berth/", env!("CARGO_PKG_VERSION"))));
    // Bytes must come as they are stored, since their digest is over those.
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    if url.origin == call.url.origin
        && let Some(authorization) = &call.authorization
    {
        headers.insert(header::AUTHORIZATION, authorization.clone());
    }
    Ok(request)
}

/// An error of a connection in use.
pub(super) fn broken(origin: &Origin, error: hyper::Error) -> RegistryError {
    if error.is_parse() {
        return RegistryError::protocol(origin, format!("something that is not HTTP: {error}"));
    }
    RegistryError::Connect { host: origin.to_string(), source: io::Error::other(error) }
}

/// Reads a whole body of at most `limit` bytes; `None` when it is longer.
pub(super) async fn read_body(
    mut body: Incoming,
    limit: usize,
    origin: &Origin,
    stall: Duration,
) -> Result<Option<Vec<u8>>, RegistryError> {
    let mut bytes = Vec::new();
    let late = || RegistryError::Timeout { host: origin.to_string(), what: "go on sending", limit: stall };
    while let Some(frame) = timeout(stall, body.frame()).await.map_err(|_| late())? {
        let frame = frame.map_err(|error| broken(origin, error))?;
        let Some(data) = frame.data_ref() else { continue };
        if bytes.len() + data.len() > limit {
            return Ok(None);
        }
        bytes.extend_from_slice(data);
    }
    Ok(Some(bytes))
}

/// Turns an answer that is no success into an error with the registry's own words.
pub(super) async fn status_error(
    response: Response<Incoming>,
    origin: &Origin,
    stall: Duration,
) -> RegistryError {
    let status = response.status();
    let after =
        response.headers().get(header::RETRY_AFTER).and_then(|value| retry_after(value.to_str().ok()?));
    let scope_refused = insufficient_scope(response.headers());
    let body = read_body(response.into_body(), ERROR_SIZE_MAX, origin, stall).await.ok().flatten();
    let message = message(body.as_deref().unwrap_or_default(), status);
    match status {
        StatusCode::UNAUTHORIZED if scope_refused => {
            RegistryError::Denied { message: "requested access to the resource is denied".into() }
        }
        StatusCode::UNAUTHORIZED => RegistryError::Unauthorized { message },
        StatusCode::FORBIDDEN => RegistryError::Denied { message },
        StatusCode::NOT_FOUND => RegistryError::NotFound { message },
        StatusCode::TOO_MANY_REQUESTS => RegistryError::TooManyRequests { message, after },
        _ => RegistryError::Status { host: origin.to_string(), status: status.as_u16(), message, after },
    }
}

fn insufficient_scope(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(super::challenge::parse)
        .any(|challenge| match challenge {
            super::challenge::Challenge::Bearer(bearer) => {
                bearer.error.as_deref() == Some("insufficient_scope")
            }
            super::challenge::Challenge::Basic => false,
        })
}

/// The messages of a registry's error document (distribution-spec, "Error codes"), made fit to show.
fn message(body: &[u8], status: StatusCode) -> String {
    #[derive(serde::Deserialize)]
    struct Document {
        errors: Vec<Line>,
    }
    #[derive(serde::Deserialize)]
    struct Line {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let said = match serde_json::from_slice::<Document>(body) {
        Ok(document) => document
            .errors
            .into_iter()
            .take(4)
            .map(|line| if line.message.is_empty() { line.code } else { line.message })
            .collect::<Vec<_>>()
            .join("; "),
        Err(_) => String::new(),
    };
    let clean: String = said.chars().filter(|character| !character.is_control()).take(512).collect();
    if clean.is_empty() {
        status.canonical_reason().unwrap_or("no reason given").to_lowercase()
    } else {
        clean
    }
}

/// Seconds or a date.
fn retry_after(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text.trim()).ok()?;
    Some(Duration::try_from(at.duration_since(jiff::Timestamp::now())).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_seconds_or_dates() {
        assert_eq!(retry_after("7"), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert_eq!(retry_after("soon"), None);
        assert_eq!(retry_after("-1"), None);
    }

    #[test]
    fn messages_are_the_registrys_words_without_control_characters() {
        let body = br#"{"errors":[{"code":"DENIED","message":"no\u001b[31m way"},{"code":"X"}]}"#;
        assert_eq!(message(body, StatusCode::FORBIDDEN), "no[31m way; X");
        assert_eq!(message(b"<html>", StatusCode::BAD_GATEWAY), "bad gateway");
    }
}
