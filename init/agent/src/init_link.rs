//! The control socket to init: what the agent left behind, what ends, and what shall happen to the machine.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use berth_control::{Channel, Exit, FromInit, Name, PowerAction, ServiceHealth, ToInit};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

/// init reads at once; a socket that stays full this long means the machine is beyond help.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// How often init hears that the agent is alive.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Messages read ahead of the owner.
const QUEUE: usize = 1024;

/// The sending side. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Init {
    channel: Arc<Channel>,
}

/// What init kept while no agent was there.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// Descriptors by name.
    pub(crate) stored: BTreeMap<String, Vec<OwnedFd>>,
    /// Running processes by name: pid and pidfd.
    pub(crate) running: BTreeMap<String, (i32, OwnedFd)>,
    /// Ends that were not acknowledged.
    pub(crate) exited: Vec<Exit>,
    /// Services of init.
    pub(crate) services: Vec<ServiceHealth>,
    /// The machine is on its way down.
    pub(crate) shutdown: Option<(PowerAction, u32)>,
}

/// Takes the control socket over and asks for what was kept. Blocks until init has answered.
pub(crate) fn connect(socket: OwnedFd) -> io::Result<(Init, Kept)> {
    let channel = Channel::from_fd(socket);
    channel.set_nonblocking(false)?;
    channel.send_to_init(&ToInit::Hello)?;
    let mut kept = Kept::default();
    loop {
        match channel.receive_from_init()? {
            None => return Err(io::ErrorKind::BrokenPipe.into()),
            Some(FromInit::Stored { name, fds }) => {
                kept.stored.insert(name.to_string(), fds);
            }
            Some(FromInit::Running { name, pid, pidfd }) => {
                kept.running.insert(name.to_string(), (pid, pidfd));
            }
            Some(FromInit::Exited(exit)) => kept.exited.push(exit),
            Some(FromInit::Service(health)) => kept.services.push(health),
            Some(FromInit::Ready) => break,
            Some(FromInit::Shutdown { action, deadline_s }) => kept.shutdown = Some((action, deadline_s)),
        }
    }
    channel.set_nonblocking(true)?;
    Ok((Init { channel: Arc::new(channel) }, kept))
}

/// The control socket as inherited.
///
/// # Errors
/// When there is none: the agent only runs as init's child.
pub(crate) fn inherited() -> io::Result<OwnedFd> {
    berth_sys::inherited::take(berth_control::CONTROL_FD)
}

impl Init {
    /// Sends a message. Once this returns, it reaches init even if the agent is killed.
    pub(crate) fn send(&self, message: &ToInit) -> io::Result<()> {
        loop {
            match self.channel.send_to_init(message) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !self.channel.wait_writable(SEND_TIMEOUT)? {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                other => return other,
            }
        }
    }

    /// Has init keep descriptors under a name.
    pub(crate) fn store(&self, name: &str, fds: Vec<OwnedFd>) -> io::Result<()> {
        self.send(&ToInit::Store { name: parse(name)?, fds })
    }

    /// Has init close descriptors.
    pub(crate) fn remove(&self, name: &str) {
        self.tolerated(name, |name| ToInit::Remove { name });
    }

    /// Tells init that an end was made durable.
    pub(crate) fn acknowledge(&self, name: &Name) {
        self.tolerated(name.as_str(), |name| ToInit::Acknowledge { name });
    }

    /// Has init end the machine; all containers are stopped.
    pub(crate) fn power(&self, action: PowerAction) {
        if let Err(error) = self.send(&ToInit::Power(action)) {
            crate::log::error!("init cannot be told to end the machine: {error}");
        }
    }

    fn tolerated(&self, name: &str, message: impl FnOnce(Name) -> ToInit) {
        let sent = parse(name).and_then(|name| self.send(&message(name)));
        if let Err(error) = sent {
            crate::log::warning!("telling init about {name} failed: {error}, continuing");
        }
    }

    /// Starts reading, and the heartbeat. The receiver ends when init closes the socket.
    pub(crate) fn listen(&self) -> io::Result<mpsc::Receiver<FromInit>> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let socket = crate::readiness::register(self.channel.as_fd().try_clone_to_owned()?)?;
        let channel = self.channel.clone();
        tokio::spawn(async move {
            if let Err(error) = read(&socket, &channel, &sender).await {
                crate::log::error!("reading from init failed: {error}");
            }
        });
        Ok(receiver)
    }

    /// Tells init for ever that the agent is alive, and from the time the API answers that it is ready.
    pub(crate) async fn heartbeat(self, ready: tokio::sync::watch::Receiver<bool>) {
        let mut ready = ready;
        loop {
            let now = *ready.borrow_and_update();
            if let Err(error) = self.send(&ToInit::Alive { ready: now }) {
                crate::log::warning!("heartbeat to init failed: {error}, continuing");
            }
            // A change of `ready` is told at once; a sender that is gone leaves only the beat.
            let _ = tokio::time::timeout(HEARTBEAT, ready.changed()).await;
        }
    }
}

fn parse(name: &str) -> io::Result<Name> {
    name.parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

async fn read(
    socket: &AsyncFd<OwnedFd>,
    channel: &Channel,
    sender: &mpsc::Sender<FromInit>,
) -> io::Result<()> {
    loop {
        let mut ready = socket.readable().await?;
        match ready.try_io(|_| channel.receive_from_init()) {
            Err(_would_block) => {}
            Ok(Ok(None)) => return Ok(()),
            Ok(Ok(Some(message))) => {
                if sender.send(message).await.is_err() {
                    return Ok(());
                }
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                crate::log::warning!("init said something unknown: {error}, continuing");
            }
            Ok(Err(error)) => return Err(error),
        }
    }
}
