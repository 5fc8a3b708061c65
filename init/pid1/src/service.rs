//! A supervised service: its process, its control socket, when it is started again.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use berth_control::{Channel, LAUNCHER_SOCKET, ServiceHealth};
use berth_sys::clone::{self, Options, SingleThreaded};
use berth_sys::spawn::{self, Program};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Signal, pidfd_send_signal};

use crate::backoff::Backoff;
use crate::cgroups;
use crate::kmsg::{note, warn};

/// An agent that was ready and says nothing for this long is killed and started again.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// The kernel prefers everything else when memory is out; the launcher sets containers' own values.
const OOM_SCORE: &str = "-999";
/// Connections that wait for the launcher; the agent has one.
const BACKLOG: i32 = 16;
const ENVIRONMENT: &[&CStr] = &[c"PATH=/sbin:/bin"];

/// The two services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Agent,
    Launcher,
}

impl Kind {
    /// Its name, also that of its control group.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Launcher => "launcher",
        }
    }

    fn path(self) -> &'static CStr {
        match self {
            Self::Agent => c"/sbin/agent",
            Self::Launcher => c"/sbin/launcher",
        }
    }
}

/// A service that runs.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pidfd: OwnedFd,
    /// `None` after the service closed it; it is killed then.
    pub(crate) channel: Option<Channel>,
    started: Instant,
    /// The last heartbeat of an agent that was ready.
    alive: Option<Instant>,
}

/// A service.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) kind: Kind,
    pub(crate) process: Option<Process>,
    /// The launcher's listening socket, open over its restarts.
    listener: Option<OwnedFd>,
    starts: u32,
    start_at: Instant,
    backoff: Backoff,
}

impl Service {
    /// A service that is started at the next [`Self::start_if_due`].
    pub(crate) fn new(kind: Kind) -> Self {
        let listener = match kind {
            Kind::Agent => None,
            Kind::Launcher => listen()
                .inspect_err(|error| warn!("{LAUNCHER_SOCKET} does not listen: {error}, continuing"))
                .ok(),
        };
        Self {
            kind,
            process: None,
            listener,
            starts: 0,
            start_at: Instant::now(),
            backoff: Backoff::default(),
        }
    }

    /// For status pages.
    pub(crate) fn health(&self) -> ServiceHealth {
        let pid = self.process.as_ref().map_or(0, |process| process.pid);
        ServiceHealth { service: self.kind.name().to_owned(), pid, starts: self.starts }
    }

    /// Starts it when it is down and its wait is over; true when it was started.
    pub(crate) fn start_if_due(&mut self, now: Instant) -> bool {
        if self.process.is_some() || now < self.start_at {
            return false;
        }
        self.starts = self.starts.saturating_add(1);
        match self.start() {
            Ok(process) => {
                note!("{} started, pid {}", self.kind.name(), process.pid);
                self.process = Some(process);
                true
            }
            Err(error) => {
                let wait = self.backoff.after_death(Duration::ZERO);
                warn!("{} does not start: {error}; again in {} ms", self.kind.name(), wait.as_millis());
                self.start_at = now.checked_add(wait).unwrap_or(now);
                false
            }
        }
    }

    fn start(&self) -> io::Result<Process> {
        let (ours, theirs) = Channel::pair()?;
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let output = crate::kmsg::file().unwrap_or(&null);
        let mut fds = vec![null.as_fd(), output.as_fd(), output.as_fd(), theirs.as_fd()];
        fds.extend(self.listener.as_ref().map(AsFd::as_fd));
        let group = cgroups::open(self.kind.name())
            .inspect_err(|error| warn!("{} has no control group: {error}, continuing", self.kind.name()))
            .ok();
        let options = Options { cgroup: group.as_ref().map(AsFd::as_fd), ..Options::default() };
        let path = self.kind.path();
        let child = clone::spawn(SingleThreaded::check()?, options, || become_service(path, &fds))?;
        // The child stays a zombie until it is reaped here, so the pid is its own.
        if let Err(error) = std::fs::write(format!("/proc/{}/oom_score_adj", child.pid), OOM_SCORE) {
            warn!("{} may be killed when memory is out: {error}, continuing", self.kind.name());
        }
        let (pid, pidfd) = (child.pid, child.pidfd);
        Ok(Process { pid, pidfd, channel: Some(ours), started: Instant::now(), alive: None })
    }

    /// It died. What it left in its group dies too; it is started again after a wait.
    pub(crate) fn ended(&mut self, now: Instant, code: i32, signal: i32) {
        let Some(process) = self.process.take() else { return };
        let ran = now.saturating_duration_since(process.started);
        let wait = self.backoff.after_death(ran);
        self.start_at = now.checked_add(wait).unwrap_or(now);
        let name = self.kind.name();
        let how = if signal == 0 { format!("with code {code}") } else { format!("by signal {signal}") };
        warn!("{name} ended {how} after {} ms; again in {} ms", ran.as_millis(), wait.as_millis());
        if let Err(error) = cgroups::kill(name) {
            warn!("what {name} left behind is not killed: {error}, continuing");
        }
    }

    /// Kills it; it is started again when it has been reaped.
    pub(crate) fn kill(&mut self, why: &str) {
        let Some(process) = &mut self.process else { return };
        warn!("{} is killed: {why}", self.kind.name());
        process.channel = None;
        if let Err(error) = pidfd_send_signal(&process.pidfd, Signal::KILL) {
            warn!("{} is not killed: {error}, continuing", self.kind.name());
        }
    }

    /// A heartbeat came.
    pub(crate) fn heard(&mut self, now: Instant, ready: bool) {
        if let Some(process) = &mut self.process
            && (ready || process.alive.is_some())
        {
            process.alive = Some(now);
        }
    }

    /// When something is due: a start, or the end of patience with a silent agent.
    pub(crate) fn due(&self) -> Option<Instant> {
        match &self.process {
            None => Some(self.start_at),
            Some(process) => process.alive.and_then(|alive| alive.checked_add(SILENCE_MAX)),
        }
    }

    /// Kills an agent that has fallen silent.
    pub(crate) fn check_heartbeat(&mut self, now: Instant) {
        let silent = self
            .process
            .as_mut()
            .and_then(|process| process.alive)
            .is_some_and(|alive| now.saturating_duration_since(alive) >= SILENCE_MAX);
        if silent {
            self.kill("no heartbeat");
            // Once is enough: it ends when the kernel can end it.
            if let Some(process) = &mut self.process {
                process.alive = None;
            }
        }
    }
}

fn become_service(path: &CStr, fds: &[BorrowedFd<'_>]) -> i32 {
    // A session of its own, so that nothing typed at a console reaches it.
    let _ = rustix::process::setsid();
    if berth_sys::signals::reset().is_err() {
        return 126;
    }
    match spawn::exec(&Program { path, args: &[path], env: ENVIRONMENT, fds }) {
        Ok(never) => match never {},
        Err(error) => {
            crate::kmsg::error!("{} does not start: {error}", path.to_string_lossy());
            127
        }
    }
}

fn listen() -> io::Result<OwnedFd> {
    match std::fs::remove_file(LAUNCHER_SOCKET) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(LAUNCHER_SOCKET)?)?;
    rustix::fs::chmod(LAUNCHER_SOCKET, rustix::fs::Mode::from_raw_mode(0o600))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}
