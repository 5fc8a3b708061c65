//! Requests: one connection each way of use, the last idle one kept for the next request.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::connect::Target;
use super::{ClientError, Hijacked, Streaming};

/// Deadline of a request unless changed by [`Client::with_deadline`].
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);

/// Longest answer read into memory, bytes. Streams have no such limit.
pub const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// A client of one server. Cheap to clone; clones share the idle connection.
#[derive(Clone)]
pub struct Client {
    target: Target,
    deadline: Duration,
    idle: Arc<Mutex<Option<SendRequest<Full<Bytes>>>>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("target", &self.target.to_string()).finish_non_exhaustive()
    }
}

struct Body {
    bytes: Bytes,
    content_type: Option<&'static str>,
}

const NO_BODY: Body = Body { bytes: Bytes::new(), content_type: None };

impl Client {
    /// A client of the server listening on a unix socket.
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self::new(Target::Unix(path.into()))
    }

    /// A client of the server at `address`, whose certificate must be for `name` and of `ca`, with a certificate and
    /// key of its own. All PEM.
    pub fn tls(
        address: SocketAddr,
        name: &str,
        ca: &str,
        certificate: &str,
        key: &str,
    ) -> Result<Self, ClientError> {
        Ok(Self::new(Target::tls(address, name, ca, certificate, key)?))
    }

    fn new(target: Target) -> Self {
        Self { target, deadline: DEFAULT_DEADLINE, idle: Arc::default() }
    }

    /// The same client with another deadline for each request.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { deadline, ..self.clone() }
    }

    /// `GET` of JSON.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let bytes = self.whole(Method::GET, path, NO_BODY).await?;
        decode(path, &bytes)
    }

    /// `GET` of anything small, as bytes.
    pub async fn get_bytes(&self, path: &str) -> Result<Bytes, ClientError> {
        self.whole(Method::GET, path, NO_BODY).await
    }

    /// `POST` of JSON, answered by JSON.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let bytes = self.whole(Method::POST, path, json(path, body)?).await?;
        decode(path, &bytes)
    }

    /// `POST` of nothing; the answer's body is returned as it is, mostly empty.
    pub async fn post_empty(&self, path: &str) -> Result<Bytes, ClientError> {
        self.whole(Method::POST, path, NO_BODY).await
    }

    /// `POST` of raw bytes such as a tar archive; the answer's body is returned as it is.
    pub async fn post_bytes(
        &self,
        path: &str,
        content_type: &'static str,
        bytes: Bytes,
    ) -> Result<Bytes, ClientError> {
        self.whole(Method::POST, path, Body { bytes, content_type: Some(content_type) }).await
    }

    /// `PUT` of raw bytes such as a tar archive; the answer's body is returned as it is.
    pub async fn put_bytes(
        &self,
        path: &str,
        content_type: &'static str,
        bytes: Bytes,
    ) -> Result<Bytes, ClientError> {
        self.whole(Method::PUT, path, Body { bytes, content_type: Some(content_type) }).await
    }

    /// `PUT` of JSON; the answer's body is returned as it is.
    pub async fn put(&self, path: &str, body: &impl Serialize) -> Result<Bytes, ClientError> {
        self.whole(Method::PUT, path, json(path, body)?).await
    }

    /// `DELETE`; the answer's body is returned as it is.
    pub async fn delete(&self, path: &str) -> Result<Bytes, ClientError> {
        self.whole(Method::DELETE, path, NO_BODY).await
    }

    /// Any request without a body: status and body of the answer, whatever the status.
    pub async fn probe(&self, method: Method, path: &str) -> Result<(StatusCode, Bytes), ClientError> {
        self.within(path, async {
            let (answer, sender) = self.send(method, path, NO_BODY, false).await?;
            let status = answer.status();
            let bytes = collect(path, answer.into_body()).await?;
            self.keep(sender);
            Ok((status, bytes))
        })
        .await
    }

    /// `GET` of a stream, such as events or logs.
    pub async fn stream(&self, path: &str) -> Result<Streaming, ClientError> {
        self.open_stream(Method::GET, path, NO_BODY).await
    }

    /// `POST` of nothing, answered by a stream, such as a pull or a wait.
    pub async fn post_stream(&self, path: &str) -> Result<Streaming, ClientError> {
        self.open_stream(Method::POST, path, NO_BODY).await
    }

    /// `POST` of raw bytes, answered by a stream, such as a load.
    pub async fn post_bytes_stream(
        &self,
        path: &str,
        content_type: &'static str,
        bytes: Bytes,
    ) -> Result<Streaming, ClientError> {
        self.open_stream(Method::POST, path, Body { bytes, content_type: Some(content_type) }).await
    }

    /// `POST` that takes over the connection, as for attach and the start of an exec session.
    pub async fn hijack(&self, path: &str, body: &impl Serialize) -> Result<Hijacked, ClientError> {
        self.within(path, async {
            let (answer, _) = self.send(Method::POST, path, json(path, body)?, true).await?;
            if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
                return Err(refusal(path, answer).await);
            }
            let content_type = content_type(&answer);
            let upgraded = hyper::upgrade::on(answer)
                .await
                .map_err(|source| ClientError::Broken { path: path.to_owned(), source: source.into() })?;
            Ok(Hijacked { content_type, io: TokioIo::new(upgraded) })
        })
        .await
    }

    async fn open_stream(&self, method: Method, path: &str, body: Body) -> Result<Streaming, ClientError> {
        self.within(path, async {
            let (answer, _) = self.send(method, path, body, false).await?;
            if !answer.status().is_success() {
                return Err(refusal(path, answer).await);
            }
            let content_type = content_type(&answer);
            Ok(Streaming::new(path.to_owned(), content_type, answer.into_body()))
        })
        .await
    }

    async fn whole(&self, method: Method, path: &str, body: Body) -> Result<Bytes, ClientError> {
        self.within(path, async {
            let (answer, sender) = self.send(method, path, body, false).await?;
            let status = answer.status();
            if status.is_client_error() || status.is_server_error() {
                return Err(refusal(path, answer).await);
            }
            let bytes = collect(path, answer.into_body()).await?;
            self.keep(sender);
            Ok(bytes)
        })
        .await
    }

    async fn within<T>(
        &self,
        path: &str,
        work: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        tokio::time::timeout(self.deadline, work)
            .await
            .unwrap_or_else(|_| Err(ClientError::Deadline { path: path.to_owned(), after: self.deadline }))
    }

    fn keep(&self, sender: SendRequest<Full<Bytes>>) {
        if let Ok(mut idle) = self.idle.lock() {
            *idle = Some(sender);
        }
    }

    async fn connection(&self) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        let idle = self.idle.lock().ok().and_then(|mut idle| idle.take());
        if let Some(mut sender) = idle
            && sender.ready().await.is_ok()
            && !sender.is_closed()
        {
            return Ok(sender);
        }
        let io = TokioIo::new(self.target.open().await?);
        let (sender, connection) = http1::handshake(io).await.map_err(|source| ClientError::Connect {
            target: self.target.to_string(),
            source: std::io::Error::other(source),
        })?;
        tokio::spawn(connection.with_upgrades());
        Ok(sender)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Body,
        upgrade: bool,
    ) -> Result<(Response<Incoming>, SendRequest<Full<Bytes>>), ClientError> {
        let mut builder = Request::builder().method(method).uri(path).header(HOST, "docker");
        if let Some(content_type) = body.content_type {
            builder = builder.header(CONTENT_TYPE, content_type);
        }
        if upgrade {
            builder = builder.header(CONNECTION, "Upgrade").header(UPGRADE, "tcp");
        }
        let request = builder
            .body(Full::new(body.bytes))
            .map_err(|source| ClientError::Request { path: path.to_owned(), source: source.into() })?;
        let mut sender = self.connection().await?;
        let answer = sender
            .send_request(request)
            .await
            .map_err(|source| ClientError::Broken { path: path.to_owned(), source: source.into() })?;
        Ok((answer, sender))
    }
}

fn json(path: &str, body: &impl Serialize) -> Result<Body, ClientError> {
    let bytes = serde_json::to_vec(body)
        .map_err(|source| ClientError::Request { path: path.to_owned(), source: source.into() })?;
    Ok(Body { bytes: bytes.into(), content_type: Some("application/json") })
}

fn decode<T: DeserializeOwned>(path: &str, bytes: &[u8]) -> Result<T, ClientError> {
    // An answer without a body decodes as `null`, so that `()` and `Option` can be asked for.
    let bytes = if bytes.is_empty() { b"null" } else { bytes };
    serde_json::from_slice(bytes).map_err(|source| ClientError::Decode { path: path.to_owned(), source })
}

fn content_type(answer: &Response<Incoming>) -> String {
    let value = answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_owned()
}

async fn collect(path: &str, body: Incoming) -> Result<Bytes, ClientError> {
    let whole = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
    Ok(whole.map_err(|source| ClientError::Broken { path: path.to_owned(), source })?.to_bytes())
}

async fn refusal(path: &str, answer: Response<Incoming>) -> ClientError {
    let status = answer.status().as_u16();
    match collect(path, answer.into_body()).await {
        Err(error) => error,
        Ok(bytes) => {
            let message = match serde_json::from_slice::<crate::error::ErrorBody>(&bytes) {
                Ok(body) => body.message,
                Err(_) => String::from_utf8_lossy(&bytes).into_owned(),
            };
            ClientError::Refused { path: path.to_owned(), status, message }
        }
    }
}
