//! Bodies of any size, between HTTP, which must not block, and work on files, which does.
//!
//! Both ways are short channels, so a slow disk slows the client and a slow client the disk, and nothing grows. An end
//! that was not meant is an error on the other side: a body that breaks off is never taken for a whole one.

use std::io::{self, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Frame, Incoming};
use tokio::sync::mpsc;

use super::request::Body;

/// Pieces on their way to a file; hyper reads at most 64 KiB at a time.
const PIECES_IN: usize = 8;
/// Pieces on their way to a client.
const PIECES_OUT: usize = 4;
/// Bytes of a piece on its way to a client.
const PIECE_BYTES: usize = 64 * 1024;
/// A client has this long to send more of a body before it counts as gone, so that nothing half-done lies about.
const STALL: Duration = Duration::from_secs(300);

/// The body of a request for a thread that may block.
pub(crate) fn reader(body: Body) -> Reader {
    match body {
        Body::Whole(current) => Reader { current, receiver: None },
        Body::Coming(body) => {
            let (sender, receiver) = mpsc::channel(PIECES_IN);
            tokio::spawn(feed(body, sender));
            Reader { current: Bytes::new(), receiver: Some(receiver) }
        }
    }
}

/// Sends what comes, then `None` for the end.
async fn feed(mut body: Incoming, sender: mpsc::Sender<io::Result<Option<Bytes>>>) {
    loop {
        let piece = match tokio::time::timeout(STALL, body.frame()).await {
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
            Ok(None) => Ok(None),
            Ok(Some(Err(error))) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, error)),
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(bytes) => Ok(Some(bytes)),
                Err(_trailers) => continue,
            },
        };
        let goes_on = matches!(piece, Ok(Some(_)));
        // A reader that went away wants no more.
        if sender.send(piece).await.is_err() || !goes_on {
            return;
        }
    }
}

/// See [`reader`].
pub(crate) struct Reader {
    current: Bytes,
    /// `None` when all is here.
    receiver: Option<mpsc::Receiver<io::Result<Option<Bytes>>>>,
}

impl Read for Reader {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            let Some(receiver) = &mut self.receiver else { return Ok(0) };
            match receiver.blocking_recv() {
                Some(Ok(Some(bytes))) => self.current = bytes,
                Some(Ok(None)) => self.receiver = None,
                Some(Err(error)) => return Err(error),
                None => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
        let count = self.current.len().min(target.len());
        self.current.copy_to_slice(target.get_mut(..count).unwrap_or_default());
        Ok(count)
    }
}

/// A body and the end that a thread which may block writes to.
pub(crate) fn writer() -> (Writer, Outgoing) {
    let (sender, receiver) = mpsc::channel(PIECES_OUT);
    (Writer { sender, piece: BytesMut::new() }, Outgoing { receiver, ended: false })
}

/// See [`writer`]. Dropped without [`Writer::finish`], it breaks the connection off.
pub(crate) struct Writer {
    sender: mpsc::Sender<Option<Bytes>>,
    piece: BytesMut,
}

impl Writer {
    /// Ends the body as it should end.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        self.sender.blocking_send(None).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = self.piece.split().freeze();
        self.sender.blocking_send(Some(piece)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// See [`writer`].
pub(crate) struct Outgoing {
    receiver: mpsc::Receiver<Option<Bytes>>,
    ended: bool,
}

impl hyper::body::Body for Outgoing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let piece = std::task::ready!(self.receiver.poll_recv(context));
        self.ended = !matches!(piece, Some(Some(_)));
        Poll::Ready(match piece {
            Some(Some(bytes)) => Some(Ok(Frame::data(bytes))),
            Some(None) => None,
            None => Some(Err(io::ErrorKind::ConnectionAborted.into())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn collected(body: Outgoing) -> io::Result<Vec<u8>> {
        Ok(body.collect().await?.to_bytes().to_vec())
    }

    #[tokio::test]
    async fn what_is_written_arrives_in_order_and_whole() {
        let (mut writer, body) = writer();
        let writing = tokio::task::spawn_blocking(move || {
            for number in 0..100_000_u32 {
                writer.write_all(&number.to_be_bytes()).unwrap();
            }
            writer.finish().unwrap();
        });
        let bytes = collected(body).await.unwrap();
        writing.await.unwrap();
        assert_eq!(bytes.len(), 400_000);
        assert_eq!(bytes[399_996..], 99_999_u32.to_be_bytes());
    }

    #[tokio::test]
    async fn a_writer_that_gives_up_breaks_the_body_off() {
        let (mut writer, body) = writer();
        let writing = tokio::task::spawn_blocking(move || writer.write_all(b"half").and(writer.flush()));
        assert!(collected(body).await.is_err());
        writing.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_client_that_went_away_is_noticed() {
        let (mut writer, body) = writer();
        drop(body);
        let written = tokio::task::spawn_blocking(move || writer.write_all(&[0; 2 * PIECE_BYTES])).await;
        assert_eq!(written.unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn a_short_body_is_read_as_it_is() {
        let mut text = String::new();
        reader(Body::Whole(Bytes::from_static(b"abc"))).read_to_string(&mut text).unwrap();
        assert_eq!(text, "abc");
    }
}
