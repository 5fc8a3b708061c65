//! A log as lines, as `docker logs` shows it: since, until, tail, follow.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use super::cursor::{Cursor, Piece};
use super::log::Log;
use crate::command::{LogLine, LogRequest, Stream};

/// A longer line is given out in parts (Docker's size).
const LINE_MAX: usize = 16 << 10;
/// Lines ready for a reader; a slow one makes only itself wait.
const QUEUE: usize = 64;

/// Lines of a log as asked for. Ends when all was read and, following, when the run that writes ended.
pub(crate) fn follow(log: Arc<Log>, request: LogRequest) -> mpsc::Receiver<LogLine> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        if let Err(error) = run(&log, request, &sender).await {
            crate::log::warning!("reading a log failed: {error}, continuing");
        }
    });
    receiver
}

async fn run(log: &Arc<Log>, request: LogRequest, sender: &mpsc::Sender<LogLine>) -> io::Result<()> {
    let mut progress = log.watch();
    let mut lines = Lines::new(log, request)?;
    if let Some(tail) = request.tail {
        lines.skip_to_tail(log, request, tail)?;
    }
    loop {
        // Asked before reading: what was written before the end is then read for certain.
        let open = progress.borrow_and_update().open;
        while let Some(line) = lines.next()? {
            if request.until_ns.is_some_and(|until| line.at_ns >= until) {
                return Ok(());
            }
            if sender.send(line).await.is_err() {
                return Ok(());
            }
        }
        if !request.follow || !open {
            break;
        }
        tokio::select! {
            changed = progress.changed() => if changed.is_err() { break },
            () = sender.closed() => return Ok(()),
        }
    }
    for line in lines.rest() {
        if sender.send(line).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Lines of the wanted streams and times.
struct Lines {
    cursor: Cursor,
    request: LogRequest,
    ready: VecDeque<LogLine>,
    part: [Part; 2],
}

/// The begin of a line whose end has not come yet.
#[derive(Default)]
struct Part {
    at_ns: i64,
    bytes: BytesMut,
}

impl Lines {
    fn new(log: &Arc<Log>, request: LogRequest) -> io::Result<Self> {
        let cursor = Cursor::at_start(log)?;
        Ok(Self { cursor, request, ready: VecDeque::new(), part: [Part::default(), Part::default()] })
    }

    /// Leaves only the last `tail` lines there are now.
    fn skip_to_tail(&mut self, log: &Arc<Log>, request: LogRequest, tail: u64) -> io::Result<()> {
        let mut count = 0_u64;
        let mut all = Self::new(log, request)?;
        while all.next()?.is_some() {
            count += 1;
        }
        for _ in 0..count.saturating_sub(tail) {
            if self.next()?.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn next(&mut self) -> io::Result<Option<LogLine>> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Ok(Some(line));
            }
            match self.cursor.next()? {
                Some(piece) => self.cut(piece),
                None => return Ok(None),
            }
        }
    }

    fn cut(&mut self, piece: Piece) {
        let wanted = match piece.stream {
            Stream::Out => self.request.stdout,
            Stream::Err => self.request.stderr,
        };
        if !wanted {
            return;
        }
        let [out, err] = &mut self.part;
        let part = if piece.stream == Stream::Out { out } else { err };
        let mut bytes = piece.bytes;
        while !bytes.is_empty() {
            if part.bytes.is_empty() {
                part.at_ns = piece.at_ns;
            }
            let room = LINE_MAX - part.bytes.len();
            let feed = bytes.iter().position(|byte| *byte == b'\n').map(|place| place + 1);
            let take = feed.unwrap_or(bytes.len()).min(room);
            let whole = feed == Some(take) || take == room;
            let head: Bytes = bytes.split_to(take);
            part.bytes.extend_from_slice(&head);
            if whole {
                let line =
                    LogLine { stream: piece.stream, at_ns: part.at_ns, bytes: part.bytes.split().freeze() };
                if self.request.since_ns.is_none_or(|since| line.at_ns >= since) {
                    self.ready.push_back(line);
                }
            }
        }
    }

    /// Begins of lines that will not be ended.
    fn rest(self) -> Vec<LogLine> {
        let since = self.request.since_ns;
        let streams = [Stream::Out, Stream::Err];
        let parts = self.part.into_iter().zip(streams).filter(|(part, _)| !part.bytes.is_empty());
        parts
            .map(|(part, stream)| LogLine { stream, at_ns: part.at_ns, bytes: part.bytes.freeze() })
            .filter(|line| since.is_none_or(|since| line.at_ns >= since))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::log::Limits;
    use super::*;

    const ALL: LogRequest =
        LogRequest { stdout: true, stderr: true, follow: false, since_ns: None, until_ns: None, tail: None };
    const MS: i64 = 1_000_000;

    fn log(dir: &std::path::Path) -> Arc<Log> {
        let log = Log::open(dir, Limits::default(), 0).expect("a log");
        log.append(Stream::Out, b"a\nb", 10 * MS).expect("an append");
        log.append(Stream::Err, b"E\n", 20 * MS).expect("an append");
        log.append(Stream::Out, b"c\nd\ne", 30 * MS).expect("an append");
        log
    }

    async fn read(log: &Arc<Log>, request: LogRequest) -> Vec<String> {
        let mut receiver = follow(log.clone(), request);
        let mut lines = Vec::new();
        while let Some(line) = receiver.recv().await {
            lines.push(format!("{}@{}", String::from_utf8_lossy(&line.bytes).trim_end(), line.at_ns / MS));
        }
        lines
    }

    #[tokio::test]
    async fn lines_are_joined_over_writes_and_picked_as_asked() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = log(dir.path());
        let cases: [(LogRequest, &[&str]); 6] = [
            (ALL, &["a@10", "E@20", "bc@10", "d@30", "e@30"]),
            (LogRequest { stderr: false, ..ALL }, &["a@10", "bc@10", "d@30", "e@30"]),
            (LogRequest { stdout: false, ..ALL }, &["E@20"]),
            (LogRequest { tail: Some(1), ..ALL }, &["d@30", "e@30"]),
            (LogRequest { since_ns: Some(15 * MS), ..ALL }, &["E@20", "d@30", "e@30"]),
            (LogRequest { until_ns: Some(15 * MS), ..ALL }, &["a@10"]),
        ];
        for (request, expected) in cases {
            assert_eq!(read(&log, request).await, expected, "{request:?}");
        }
    }

    #[tokio::test]
    async fn a_follower_gets_what_comes_until_the_run_ends() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = log(dir.path());
        log.begin();
        let mut receiver = follow(log.clone(), LogRequest { follow: true, tail: Some(0), ..ALL });
        log.append(Stream::Out, b"!\nlast", 40 * MS).expect("an append");
        let line = receiver.recv().await.expect("a line");
        assert!(line.bytes.ends_with(b"!\n"));
        log.end(1);
        assert_eq!(&receiver.recv().await.expect("the rest").bytes[..], b"last");
        assert!(receiver.recv().await.is_none());
    }

    #[tokio::test]
    async fn a_line_without_end_is_given_out_in_parts() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = Log::open(dir.path(), Limits::default(), 0).expect("a log");
        log.append(Stream::Out, &vec![b'x'; LINE_MAX * 2 + 5], MS).expect("an append");
        let lengths: Vec<usize> = read(&log, ALL).await.iter().map(|line| line.len() - 2).collect();
        assert_eq!(lengths, [LINE_MAX, LINE_MAX, 5]);
    }
}
