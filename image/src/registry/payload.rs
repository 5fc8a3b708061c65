//! Bodies of requests: bytes in memory, or a file that is read as it is sent. Both can be sent again.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Frame, SizeHint};
use tokio::sync::mpsc;

/// The body of a request as hyper takes it.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Bytes read from a file at a time.
const PIECE: usize = 64 << 10;
/// Pieces read ahead of the network.
const AHEAD: usize = 4;
/// Bytes per second an upload is expected to make at least.
const UPLOAD_RATE_MIN: u64 = 16 << 10;

/// Hears how many bytes of a file were taken for sending, from its start.
pub(crate) type Watch = Arc<dyn Fn(u64) + Send + Sync>;

/// What a request carries.
#[derive(Clone)]
pub(crate) enum Payload {
    /// Held in memory.
    Bytes(Bytes),
    /// A file, its size in bytes, and who watches it go.
    File(PathBuf, u64, Watch),
}

impl Payload {
    /// The body, from its start.
    pub(super) fn open(&self) -> Body {
        match self {
            Self::Bytes(bytes) => Full::new(bytes.clone()).map_err(|never| match never {}).boxed_unsync(),
            Self::File(path, size, watch) => {
                let (sender, receiver) = mpsc::channel(AHEAD);
                let (path, size, watch) = (path.clone(), *size, watch.clone());
                tokio::task::spawn_blocking(move || {
                    if let Err(error) = feed(&path, size, &sender, &*watch) {
                        // Nobody listens when the request was given up.
                        let _ = sender.blocking_send(Err(error));
                    }
                });
                FileBody { receiver, left: size }.boxed_unsync()
            }
        }
    }

    /// Time its transfer may take.
    pub(super) fn time(&self) -> Duration {
        match self {
            Self::Bytes(_) => Duration::ZERO,
            Self::File(_, size, _) => Duration::from_secs(size / UPLOAD_RATE_MIN),
        }
    }
}

fn feed(
    path: &Path,
    size: u64,
    sender: &mpsc::Sender<io::Result<Bytes>>,
    watch: &dyn Fn(u64),
) -> io::Result<()> {
    let mut file = File::open(path)?.take(size);
    let mut taken = 0;
    loop {
        let mut piece = vec![0; PIECE];
        let count = file.read(&mut piece)?;
        piece.truncate(count);
        taken += count as u64;
        if count == 0 || sender.blocking_send(Ok(piece.into())).is_err() {
            return Ok(());
        }
        watch(taken);
    }
}

struct FileBody {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    left: u64,
}

impl hyper::body::Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.receiver.poll_recv(context).map(|piece| {
            let piece = piece?;
            if let Ok(bytes) = &piece {
                self.left = self.left.saturating_sub(bytes.len() as u64);
            }
            Some(piece.map(Frame::data))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
