//! One layer: from the socket to its tree in one pass.
//!
//! A task reads and hashes the compressed bytes; a blocking thread inflates, hashes again and writes. Between them
//! is a short channel, so a slow disk slows the network and memory stays bounded. The end of the layer is a message
//! of its own: a channel that merely closes means that the bytes must not be used.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use rustix::fs::{Mode, OFlags};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::Shared;
use super::commit::{Fetched, Verified, unpack_error};
use super::error::PullError;
use super::progress::{Reporter, Status};
use crate::digest::Digest;
use crate::manifest::Layer;
use crate::registry::{ContentError, FetchError, Piece, Session};
use crate::store::{Place, Staging, Store};
use crate::unpack::{self, Expected, Outcome, UnpackError};

/// Pieces between network and disk; each is at most the HTTP client's read buffer of 64 KiB.
const CHANNEL: usize = 8;
/// Time between two reports of the same download.
const REPORT_EVERY: Duration = Duration::from_millis(100);
/// Bytes still read after unpacking failed, to tell a wrong blob from a bad layer.
const DRAIN_MAX: u64 = 4 << 20;

enum Chunk {
    Data(Bytes),
    End,
}

/// All one layer needs.
pub(super) struct LayerJob {
    pub(super) store: Store,
    pub(super) shared: Arc<Shared>,
    pub(super) sessions: Vec<Session>,
    pub(super) layer: Layer,
    pub(super) diff_id: Digest,
    pub(super) chain: Digest,
    pub(super) lowest: bool,
    pub(super) reporter: Reporter,
}

type Unpacked = (Staging, Result<(Digest, Outcome), UnpackError>);

impl LayerJob {
    pub(super) async fn run(self) -> Result<Fetched, PullError> {
        self.reporter.report(Status::PullingFsLayer);
        let flight = self.shared.flight(&self.layer.digest);
        let _alone = flight.lock().await;
        let mut lease = self.store.lease();
        let place = Place {
            blob: Some(&self.layer.digest),
            diff_id: &self.diff_id,
            chain: &self.chain,
            lowest: self.lowest,
        };
        if let Some(number) = self.store.find_layer(&place, &mut lease) {
            self.reporter.report(Status::AlreadyExists);
            return Ok(Fetched::Committed { number, lease });
        }
        if self.shared.permits.available_permits() == 0 {
            self.reporter.report(Status::Waiting);
        }
        // Taken after the lock: whoever has a permit waits for nobody.
        let Ok(_permit) = self.shared.permits.acquire().await else { return Err(PullError::Cancelled) };
        let (staging, diff_id, outcome) = self.fetch().await?;
        if diff_id != self.diff_id {
            let (layer, wanted) = (self.layer.digest.clone(), self.diff_id.clone());
            return Err(ContentError::DiffId { layer, wanted, got: diff_id }.into());
        }
        let verified = Verified {
            staging,
            diff_id,
            outcome,
            blob: self.layer.digest.clone(),
            chain: self.chain,
            lowest: self.lowest,
        };
        let (store, reporter) = (self.store, self.reporter);
        let committing = tokio::task::spawn_blocking(move || verified.commit(&store, lease, reporter));
        committing.await.unwrap_or(Err(PullError::Cancelled))
    }

    /// Fetches from the first place that has the blob.
    async fn fetch(&self) -> Result<(Staging, Digest, Outcome), PullError> {
        let mut last = PullError::Cancelled;
        for session in &self.sessions {
            match self.fetch_from(session).await {
                Err(error @ PullError::Unreachable { .. }) => last = error,
                other => return other,
            }
        }
        Err(last)
    }

    async fn fetch_from(&self, session: &Session) -> Result<(Staging, Digest, Outcome), PullError> {
        let (sender, receiver) = mpsc::channel(CHANNEL);
        let unpacking = self.start_unpacking(receiver)?;
        let received = self.receive(session, sender).await;
        let (staging, unpacked) = unpacking.await.map_err(|_| PullError::Cancelled)?;
        // A blob that is not what its digest says explains every oddity found in it.
        received?;
        let (diff_id, outcome) = unpacked.map_err(|error| self.unpack_error(error))?;
        Ok((staging, diff_id, outcome))
    }

    fn start_unpacking(&self, receiver: mpsc::Receiver<Chunk>) -> Result<JoinHandle<Unpacked>, PullError> {
        let staging = self.store.stage()?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(staging.tree(), flags, Mode::empty()).map_err(|errno| {
            self.unpack_error(UnpackError::Write { action: "open", path: "/".into(), source: errno.into() })
        })?;
        let recipe = staging.recipe()?;
        let (layer, diff_id, lowest) = (self.layer.clone(), self.diff_id.clone(), self.lowest);
        Ok(tokio::task::spawn_blocking(move || {
            let source = ChannelReader { receiver, current: Bytes::new(), ended: false };
            let expected =
                Expected { compression: layer.compression, size: layer.size, diff_id: &diff_id, lowest };
            let result = unpack::unpack(source, root, Some(recipe), &expected);
            (staging, result)
        }))
    }

    /// Feeds the blob into the channel; the last message is sent only when the digest is right.
    async fn receive(&self, session: &Session, sender: mpsc::Sender<Chunk>) -> Result<(), PullError> {
        let total = self.layer.size;
        let mut sender = Some(sender);
        let mut reported = Instant::now();
        let mut blob = session.blob(&self.layer.digest, total);
        self.reporter.report(Status::Downloading { current: 0, total });
        loop {
            match blob.next().await.map_err(|error| fetch_error(error, session))? {
                Piece::Data(bytes) => {
                    if let Some(open) = &sender
                        && open.send(Chunk::Data(bytes)).await.is_err()
                    {
                        if total - blob.received() > DRAIN_MAX {
                            return Ok(());
                        }
                        sender = None;
                    }
                    if reported.elapsed() >= REPORT_EVERY {
                        reported = Instant::now();
                        self.reporter.report(Status::Downloading { current: blob.received(), total });
                    }
                }
                Piece::Pause(pause) => {
                    self.reporter.report(Status::Retrying { seconds: pause.as_secs() });
                    sleep(pause).await;
                }
                Piece::End => break,
            }
        }
        self.reporter.report(Status::Downloading { current: total, total });
        self.reporter.report(Status::VerifyingChecksum);
        self.reporter.report(Status::DownloadComplete);
        self.reporter.report(Status::Extracting);
        if let Some(sender) = sender {
            // A closed channel means that unpacking failed, which its own result tells.
            let _ = sender.send(Chunk::End).await;
        }
        Ok(())
    }

    fn unpack_error(&self, error: UnpackError) -> PullError {
        unpack_error(&self.layer.digest, error)
    }
}

fn fetch_error(error: FetchError, session: &Session) -> PullError {
    match error {
        FetchError::Content(error) => error.into(),
        FetchError::Registry(source) => PullError::Unreachable { host: session.host(), source },
    }
}

/// The channel as a byte stream for the blocking side.
struct ChannelReader {
    receiver: mpsc::Receiver<Chunk>,
    current: Bytes,
    ended: bool,
}

impl BufRead for ChannelReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Chunk::Data(bytes)) => self.current = bytes,
                Some(Chunk::End) => self.ended = true,
                None => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, count: usize) {
        self.current.advance(count.min(self.current.len()));
    }
}

impl Read for ChannelReader {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(target)?;
        self.consume(count);
        Ok(count)
    }
}
