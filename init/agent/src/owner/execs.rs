//! Exec sessions: further processes in a running container. They are not logged and do not outlive the agent's
//! knowledge: after a restart of the agent a session runs on, but nobody can attach to it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use berth_control::Exit;
use berth_runtime::plan::{ExecPlan, Fd, Stdio};
use bytes::Bytes;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};

use super::sessions::{set_size, write_all};
use super::{Happening, Owner};
use crate::command::{Answer, Attachment, Chunk, ExecCreate, ExecStart, ExecView, Id, Refusal, Stream};
use crate::launcher;
use crate::phase::Phase;
use crate::start::{self, Ends, StartError};
use crate::store::Record;

/// Sessions remembered per machine; the oldest ended ones go first.
const EXECS_MAX: usize = 4096;
/// Chunks on their way in either direction.
const QUEUE: usize = 16;
/// Bytes read at a time.
const READ_MAX: usize = 64 << 10;

/// A session.
pub(super) struct Exec {
    container: Id,
    body: berth_api::docker::exec::ExecBody,
    state: State,
    /// Set once the exit code is known; streams end after that.
    ended: watch::Sender<bool>,
    pidfd: Option<OwnedFd>,
    terminal: Option<Arc<AsyncFd<OwnedFd>>>,
    early: Option<Exit>,
    answer: Option<(ExecStart, Answer<Option<Attachment>>)>,
    size: Option<(u16, u16)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Created,
    Starting,
    Running(i32),
    Ended(i64),
}

/// A process that was started.
#[derive(Debug)]
pub(crate) struct Launched {
    pid: i32,
    pidfd: OwnedFd,
    ends: Ends,
}

impl Owner {
    pub(super) fn exec_create(&mut self, id: &str, create: ExecCreate) -> Result<Id, Refusal> {
        self.forget_old_execs();
        let container = self.get(id)?;
        let record = &container.record;
        match record.phase() {
            Phase::Running => {}
            Phase::Paused => {
                return Err(Refusal::Conflict(format!(
                    "Container {} is paused, unpause the container before exec",
                    record.id
                )));
            }
            _ => return Err(Refusal::Conflict(format!("container {} is not running", record.id))),
        }
        let body = create.docker;
        if body.cmd.as_ref().is_none_or(Vec::is_empty) {
            return Err(Refusal::Invalid("No exec command specified".to_owned()));
        }
        let exec = crate::id::random().map_err(|error| Refusal::Failed(error.to_string()))?;
        let container_id = record.id.clone();
        let command = body.cmd.clone().unwrap_or_default().join(" ");
        let (ended, _) = watch::channel(false);
        let size = body.console_size.map(|[rows, columns]| (rows, columns));
        let session = Exec {
            container: container_id.clone(),
            body,
            state: State::Created,
            ended,
            pidfd: None,
            terminal: None,
            early: None,
            answer: None,
            size,
        };
        self.execs.insert(exec.clone(), session);
        let more = [("execID", exec.clone())];
        self.announce(&container_id, &format!("exec_create: {command}"), &more);
        Ok(exec)
    }

    fn forget_old_execs(&mut self) {
        if self.execs.len() >= EXECS_MAX {
            self.execs.retain(|_, exec| !matches!(exec.state, State::Ended(_)));
        }
    }

    pub(super) fn exec_start(&mut self, id: &str, wanted: ExecStart, answer: Answer<Option<Attachment>>) {
        let prepared = self.exec_prepare(id, &wanted);
        let (record, body, pidfd, cgroup, size) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return drop(answer.send(Err(error))),
        };
        let Some(exec) = self.execs.get_mut(id) else { return };
        exec.state = State::Starting;
        exec.answer = Some((wanted, answer));
        let id = id.to_owned();
        self.spawn(move || {
            let result = launch(&id, &record, &body, &pidfd, &cgroup, size);
            Happening::ExecLaunched(id, result.map(Box::new))
        });
    }

    #[allow(clippy::type_complexity, reason = "what a session needs of its container, taken apart at once")]
    fn exec_prepare(
        &self,
        id: &str,
        wanted: &ExecStart,
    ) -> Result<(Record, berth_api::docker::exec::ExecBody, OwnedFd, OwnedFd, (u16, u16)), Refusal> {
        let missing = || Refusal::NotFound(format!("No such exec instance: {id}"));
        let exec = self.execs.get(id).ok_or_else(missing)?;
        match exec.state {
            State::Created => {}
            State::Starting | State::Running(_) => {
                return Err(Refusal::Conflict(format!("Error: Exec command {id} is already running")));
            }
            State::Ended(_) => {
                return Err(Refusal::Conflict(format!("Error: Exec command {id} has already run")));
            }
        }
        let container = self.containers.get(&exec.container).ok_or_else(missing)?;
        let live = container.live.as_ref().filter(|_| container.record.phase() == Phase::Running);
        let live = live
            .ok_or_else(|| Refusal::Conflict(format!("container {} is not running", container.record.id)))?;
        let failed = |error: std::io::Error| Refusal::Failed(format!("exec: {error}"));
        let pidfd = live.pidfd.try_clone().map_err(failed)?;
        let cgroup = live.group.dir().try_clone_to_owned().map_err(failed)?;
        let size = wanted.size.or(exec.size).unwrap_or((0, 0));
        Ok((container.record.clone(), exec.body.clone(), pidfd, cgroup, size))
    }

    pub(super) fn exec_launched(&mut self, id: &str, result: Result<Launched, StartError>) {
        let Some(exec) = self.execs.get_mut(id) else { return };
        let answer = exec.answer.take();
        let launched = match result {
            Ok(launched) => launched,
            Err(error) => {
                exec.state = State::Ended(error.code);
                exec.ended.send_replace(true);
                if let Some(exit) = exec.early.take() {
                    self.machinery.init.acknowledge(&exit.name);
                }
                if let Some((_, answer)) = answer {
                    let text =
                        error.text.replace("failed to create task for container", "OCI runtime exec failed");
                    let refusal = match error.refusal() {
                        Refusal::Invalid(_) => Refusal::Invalid(text),
                        _ => Refusal::Failed(text),
                    };
                    let _ = answer.send(Err(refusal));
                }
                return;
            }
        };
        let command = exec.body.cmd.clone().unwrap_or_default().join(" ");
        exec.state = State::Running(launched.pid);
        exec.pidfd = Some(launched.pidfd);
        let container = exec.container.clone();
        let attachment = connect(exec, launched.ends);
        if let Some((wanted, answer)) = answer {
            // Dropping a detached session's ends is what Docker does: its output goes nowhere.
            let reply = attachment
                .map(|attachment| {
                    if wanted.detach {
                        discard(attachment);
                        None
                    } else {
                        Some(attachment)
                    }
                })
                .map_err(|error| Refusal::Failed(format!("exec: {error}")));
            let _ = answer.send(reply);
        }
        let early = exec.early.take();
        // Told of one that has ended since, too: whoever follows the events waits for a start before an end.
        self.announce(&container, &format!("exec_start: {command}"), &[("execID", id.to_owned())]);
        if let Some(exit) = early {
            return self.exec_exited(id, &exit);
        }
        if let Some(container) = self.containers.get_mut(&container) {
            container.execs.insert(id.to_owned());
            container.show();
        }
    }

    pub(super) fn exec_exited(&mut self, id: &str, exit: &Exit) {
        let init = self.machinery.init.clone();
        let Some(exec) = self.execs.get_mut(id) else { return init.acknowledge(&exit.name) };
        if exec.state == State::Starting {
            exec.early = Some(exit.clone());
            return;
        }
        exec.state = State::Ended(i64::from(exit.code));
        exec.terminal = None;
        exec.pidfd = None;
        exec.ended.send_replace(true);
        init.acknowledge(&exit.name);
        let container = exec.container.clone();
        if let Some(container) = self.containers.get_mut(&container) {
            container.execs.remove(id);
            container.show();
        }
        let more = [("execID", id.to_owned()), ("exitCode", exit.code.to_string())];
        self.announce(&container, "exec_die", &more);
    }

    pub(super) fn exec_view(&self, id: &str) -> Result<ExecView, Refusal> {
        let missing = || Refusal::NotFound(format!("No such exec instance: {id}"));
        let exec = self.execs.get(id).ok_or_else(missing)?;
        Ok(ExecView {
            id: id.to_owned(),
            container: exec.container.clone(),
            pid: if let State::Running(pid) = exec.state { pid } else { 0 },
            running: matches!(exec.state, State::Running(_)),
            code: if let State::Ended(code) = exec.state { Some(code) } else { None },
            body: exec.body.clone(),
        })
    }

    pub(super) fn exec_kill(&mut self, id: &str) -> Result<(), Refusal> {
        let Some(pidfd) = self.execs.get(id).and_then(|exec| exec.pidfd.as_ref()) else { return Ok(()) };
        match rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(Refusal::Failed(format!("exec: {error}"))),
        }
    }

    pub(super) fn exec_resize(&mut self, id: &str, rows: u16, columns: u16) -> Result<(), Refusal> {
        let missing = || Refusal::NotFound(format!("No such exec instance: {id}"));
        let exec = self.execs.get_mut(id).ok_or_else(missing)?;
        match (&exec.terminal, exec.state) {
            (Some(terminal), _) => set_size(terminal.get_ref(), rows, columns),
            (None, State::Created | State::Starting) => {
                exec.size = Some((rows, columns));
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Starts a session's process. Blocks.
fn launch(
    id: &str,
    record: &Record,
    body: &berth_api::docker::exec::ExecBody,
    pidfd: &OwnedFd,
    cgroup: &OwnedFd,
    size: (u16, u16),
) -> Result<Launched, StartError> {
    let base = record.running().and_then(|run| run.attempt.base);
    let mut fds = vec![pidfd.as_fd(), cgroup.as_fd()];
    let failed = |error: std::io::Error| StartError::failed(format!("exec: {error}"));
    let pipes = if body.tty { None } else { Some(start::pipes(body.attach_stdin, base).map_err(failed)?) };
    let stdio = match &pipes {
        None => Stdio::Terminal { rows: size.0, columns: size.1 },
        Some((inside, _)) => {
            fds.extend(inside.iter().map(AsFd::as_fd));
            Stdio::Fds([Fd(2), Fd(3), Fd(4)])
        }
    };
    let args = body.cmd.clone().unwrap_or_default();
    let mut wanted = record.config.env.clone().unwrap_or_default();
    wanted.extend(body.env.clone().unwrap_or_default());
    let env = start::environment(record, &wanted, body.tty);
    let user = if body.user.is_empty() { &record.config.user } else { &body.user };
    let cwd = if body.working_dir.is_empty() { &record.config.working_dir } else { &body.working_dir };
    let privileged = body.privileged || record.host_config.privileged;
    let process = start::user_process(record, args, env, user, cwd, privileged, stdio)?;
    let plan = ExecPlan {
        name: format!("e/{id}"),
        target: Fd(0),
        cgroup: Fd(1),
        user_namespace: base.is_some(),
        process,
    };
    let started = launcher::connect()
        .and_then(|mut launcher| launcher.exec(&plan, &fds))
        .map_err(StartError::launch)?;
    let ends = match (pipes, started.terminal) {
        (Some((_inside, ends)), _) => ends,
        (None, Some(master)) => Ends::Terminal(master),
        (None, None) => return Err(StartError::failed("the launcher gave no terminal".to_owned())),
    };
    Ok(Launched { pid: started.pid, pidfd: started.pidfd, ends })
}

/// Our ends as channels.
fn connect(exec: &mut Exec, ends: Ends) -> std::io::Result<Attachment> {
    let open = |fd: OwnedFd| -> std::io::Result<Arc<AsyncFd<OwnedFd>>> {
        Ok(Arc::new(crate::readiness::register(fd)?))
    };
    let (sender, output) = mpsc::channel(QUEUE);
    let ended = exec.ended.subscribe();
    let (target, readers) = match ends {
        Ends::Terminal(master) => {
            let master = open(master)?;
            exec.terminal = Some(master.clone());
            let target = exec.body.attach_stdin.then(|| master.clone());
            (target, vec![(Stream::Out, master)])
        }
        Ends::Pipes { out, err, input } => {
            let target = input.map(open).transpose()?;
            (target, vec![(Stream::Out, open(out)?), (Stream::Err, open(err)?)])
        }
    };
    for (stream, reader) in readers {
        tokio::spawn(copy(reader, stream, sender.clone(), ended.clone()));
    }
    let input = target.map(|target| {
        let (sender, mut chunks) = mpsc::channel::<Bytes>(QUEUE);
        tokio::spawn(async move {
            while let Some(chunk) = chunks.recv().await {
                if write_all(&target, &chunk).await.is_err() {
                    break;
                }
            }
        });
        sender
    });
    Ok(Attachment { tty: exec.body.tty, output, input })
}

/// Reads for a session that nobody is attached to.
fn discard(mut attachment: Attachment) {
    tokio::spawn(async move { while attachment.output.recv().await.is_some() {} });
}

/// Copies one stream; it ends only once the exit code is known, because clients ask for that at the end.
async fn copy(
    reader: Arc<AsyncFd<OwnedFd>>,
    stream: Stream,
    sender: mpsc::Sender<Chunk>,
    mut ended: watch::Receiver<bool>,
) {
    let mut bytes = vec![0; READ_MAX];
    loop {
        let Ok(mut ready) = reader.readable().await else { break };
        let read = ready.try_io(|reader| Ok(rustix::io::read(reader.get_ref(), &mut bytes)?));
        drop(ready);
        match read {
            Err(_would_block) => {}
            // A terminal's master says EIO once nobody uses the other side.
            Ok(Ok(0) | Err(_)) => break,
            Ok(Ok(length)) => {
                let chunk = bytes.get(..length).map(Bytes::copy_from_slice).unwrap_or_default();
                if sender.send(Chunk { stream, bytes: chunk }).await.is_err() {
                    break;
                }
            }
        }
    }
    // The session may be forgotten meanwhile, which is an end as well.
    let _ = ended.wait_for(|ended| *ended).await;
}
