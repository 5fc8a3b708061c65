//! A blob on its way: resumed where it broke off, counted, hashed, and never believed before its last byte.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::header;
use hyper::{Response, StatusCode};
use tokio::time::timeout;

use super::RATE_MIN;
use super::client::{Session, Tries, refuse_encoding};
use super::error::{ContentError, FetchError, RegistryError};
use super::http::{broken, status_error};
use crate::digest::{Digest, Hasher};

/// A blob being read. Bytes come in order and once, however often the connection breaks.
pub(crate) struct Blob {
    session: Session,
    digest: Digest,
    size: u64,
    received: u64,
    hasher: Hasher,
    body: Option<Incoming>,
    /// Bytes to pass over because the registry began before where it was asked to.
    skip: u64,
    tries: Tries,
    /// Bytes received when the last try failed.
    failed_at: u64,
    window: Window,
}

/// The time over which a minimum rate is demanded. Only waiting for the registry counts, not time in which nobody
/// asked for bytes.
#[derive(Default)]
struct Window {
    waited: Duration,
    bytes: u64,
}

/// Bytes that count as progress, after which the next failure is a first one again. A registry that sends a byte
/// now and then must not keep a pull alive for ever.
const PROGRESS: u64 = 64 << 10;

/// What reading gave.
pub(crate) enum Piece {
    /// More bytes.
    Data(Bytes),
    /// The connection is made anew after this pause, which the caller has to wait.
    Pause(Duration),
    /// The end: all bytes came and have the digest.
    End,
}

impl Blob {
    pub(super) fn new(session: Session, digest: Digest, size: u64) -> Self {
        let tries = Tries::new(session.patience());
        let hasher = digest.hasher();
        let window = Window::default();
        Self { session, digest, size, received: 0, hasher, body: None, skip: 0, tries, failed_at: 0, window }
    }

    /// Bytes received so far.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// The next piece.
    pub(crate) async fn next(&mut self) -> Result<Piece, FetchError> {
        let error = match self.read().await {
            Ok(Some(bytes)) => return Ok(Piece::Data(bytes)),
            Ok(None) => return self.verify().map(|()| Piece::End).map_err(FetchError::from),
            Err(error) => error,
        };
        self.body = None;
        if self.received - self.failed_at >= PROGRESS {
            self.tries.reset();
        }
        self.failed_at = self.received;
        let cause = match &error {
            FetchError::Registry(cause) => cause,
            FetchError::Content(_) => return Err(error),
        };
        match self.tries.pause(cause) {
            Some(pause) => Ok(Piece::Pause(pause)),
            None if self.received > 0 && matches!(cause, RegistryError::Connect { .. }) => {
                let (digest, wanted, got) = (self.digest.clone(), self.size, self.received);
                Err(ContentError::Truncated { digest, wanted, got }.into())
            }
            None => Err(error),
        }
    }

    /// Reads from the present connection, making one if there is none.
    async fn read(&mut self) -> Result<Option<Bytes>, FetchError> {
        // An empty blob is one request too: the registry must have it.
        let complete = self.received == self.size && (self.body.is_some() || self.size > 0);
        if complete && self.body.is_none() {
            return Ok(None);
        }
        if self.body.is_none() {
            self.open().await?;
        }
        loop {
            let Some(frame) = self.frame().await? else {
                if self.received < self.size {
                    let source = std::io::ErrorKind::UnexpectedEof.into();
                    return Err(RegistryError::Connect { host: self.session.host(), source }.into());
                }
                return Ok(None);
            };
            let passed = usize::try_from(self.skip).unwrap_or(usize::MAX).min(frame.len());
            self.skip -= passed as u64;
            let bytes = frame.slice(passed..);
            if bytes.is_empty() {
                continue;
            }
            let received = self.received + bytes.len() as u64;
            if received > self.size {
                return Err(self.wrong_size(received).into());
            }
            self.received = received;
            self.hasher.update(&bytes);
            return Ok(Some(bytes));
        }
    }

    async fn frame(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let patience = self.session.patience();
        let Some(body) = &mut self.body else { return Ok(None) };
        let host = || self.session.host();
        loop {
            let waiting = Instant::now();
            let frame = timeout(patience.stall, body.frame()).await.map_err(|_| RegistryError::Timeout {
                host: host(),
                what: "go on sending",
                limit: patience.stall,
            })?;
            let Some(frame) = frame else { return Ok(None) };
            let Ok(data) = frame.map_err(|error| broken(self.session.origin(), error))?.into_data() else {
                continue;
            };
            self.window.bytes += data.len() as u64;
            self.window.waited += waiting.elapsed();
            if self.window.waited > patience.rate_window {
                let wanted = u128::from(RATE_MIN) * self.window.waited.as_millis() / 1000;
                let slow = u128::from(self.window.bytes) < wanted;
                self.window = Window::default();
                if slow {
                    let (what, limit) = ("send fast enough", patience.rate_window);
                    return Err(RegistryError::Timeout { host: host(), what, limit });
                }
            }
            return Ok(Some(data));
        }
    }

    async fn open(&mut self) -> Result<(), FetchError> {
        let response = self.session.open_blob(&self.digest, self.received).await?;
        self.window = Window::default();
        let origin = self.session.origin();
        let length = length(&response);
        match response.status() {
            StatusCode::OK => {
                // The whole blob, asked for or not.
                refuse_encoding(&response, origin)?;
                if let Some(got) = length.filter(|length| *length != self.size) {
                    return Err(self.wrong_size(got).into());
                }
                self.skip = self.received;
            }
            StatusCode::PARTIAL_CONTENT => {
                refuse_encoding(&response, origin)?;
                let range =
                    response.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
                let wanted = format!("bytes {}-{}/{}", self.received, self.size.saturating_sub(1), self.size);
                let open_ended = format!("bytes {}-{}/*", self.received, self.size.saturating_sub(1));
                if range != Some(&wanted) && range != Some(&open_ended) {
                    return Err(
                        RegistryError::protocol(origin, "another range than the one asked for").into()
                    );
                }
                self.skip = 0;
            }
            _ => {
                let stall = self.session.patience().stall;
                return Err(status_error(response, origin, stall).await.into());
            }
        }
        self.body = Some(response.into_body());
        Ok(())
    }

    fn verify(&self) -> Result<(), ContentError> {
        let got = self.hasher.clone().finish();
        if got == self.digest {
            return Ok(());
        }
        Err(ContentError::Digest { wanted: self.digest.clone(), got })
    }

    fn wrong_size(&self, got: u64) -> ContentError {
        ContentError::Size { digest: self.digest.clone(), wanted: self.size, got }
    }
}

fn length(response: &Response<Incoming>) -> Option<u64> {
    response.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
