//! The agent's side of copying files: starts the process, reads its answer, passes archives on.

use std::io;
use std::process::Stdio;
use std::sync::LazyLock;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::job::{ANSWER_MAX, ARGUMENT, Answer, Job};

/// Processes that copy at a time; more wait.
const AT_ONCE: usize = 16;
/// Pieces of an archive on their way to a client.
const IN_FLIGHT: usize = 8;
/// Size of a piece, bytes.
const PIECE_BYTES: usize = 64 << 10;

static TURNS: LazyLock<std::sync::Arc<Semaphore>> =
    LazyLock::new(|| std::sync::Arc::new(Semaphore::new(AT_ONCE)));

/// A process that copies. It ends with this.
pub(crate) struct Courier {
    child: Child,
    output: BufReader<ChildStdout>,
    input: Option<ChildStdin>,
    turn: OwnedSemaphorePermit,
}

impl Courier {
    /// Starts a process with a job.
    pub(crate) async fn send(job: &Job) -> io::Result<Self> {
        let turn = TURNS.clone().acquire_owned().await.map_err(io::Error::other)?;
        let job = serde_json::to_string(job).map_err(io::Error::other)?;
        let mut child = Command::new("/proc/self/exe")
            .args([ARGUMENT, &job])
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let output = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let input = child.stdin.take();
        Ok(Self { child, output: BufReader::new(output), input, turn })
    }

    /// Where an archive goes in.
    pub(crate) fn input(&mut self) -> Option<ChildStdin> {
        self.input.take()
    }

    /// The answer to the job.
    pub(crate) async fn answer(&mut self) -> io::Result<Answer> {
        let mut line = Vec::new();
        (&mut self.output).take(ANSWER_MAX).read_until(b'\n', &mut line).await?;
        if line.is_empty() {
            let status = self.child.wait().await?;
            return Err(io::Error::other(format!("the process that copies files ended: {status}")));
        }
        serde_json::from_slice(&line).map_err(io::Error::other)
    }

    /// The archive after the answer, piece by piece. The process ends when nobody takes them any more.
    pub(crate) fn archive(mut self) -> mpsc::Receiver<Bytes> {
        let (sender, receiver) = mpsc::channel(IN_FLIGHT);
        drop(self.input.take());
        tokio::spawn(async move {
            let mut buffer = BytesMut::new();
            loop {
                buffer.reserve(PIECE_BYTES);
                let read = tokio::select! {
                    read = self.output.read_buf(&mut buffer) => read,
                    () = sender.closed() => break,
                };
                if !matches!(read, Ok(1..)) || sender.send(buffer.split().freeze()).await.is_err() {
                    break;
                }
            }
            let _ = self.child.kill().await;
            drop(self.turn);
        });
        receiver
    }
}
