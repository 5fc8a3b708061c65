//! The machine's own interfaces: which are brought up, where their addresses come from, and what is known of them.
//!
//! [`start`] returns at once. One task owns all interfaces; it follows the kernel's link messages, so an interface
//! plugged in later is handled like one found at boot. What is reached is in a [`Status`] others watch.

mod config;
mod identity;
mod monitor;
mod router;
mod status;
mod task;
mod uplink;

use std::io;
use std::path::Path;

use tokio::sync::{mpsc, watch};

pub use config::{Config, InterfaceConfig, Match, ParseMatchError};
pub use identity::machine_id;
pub use status::{Event, InterfaceStatus, Source, Status};

use crate::upstream::Upstreams;

/// Events kept for a reader that is behind; later ones are dropped.
const EVENT_QUEUE: usize = 256;

/// Why the machine's interfaces cannot be looked after.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The kernel's link messages cannot be received.
    #[error("open the netlink socket")]
    Netlink(#[source] io::Error),
    /// The machine's identity could not be read or made.
    #[error("read or make the machine id")]
    MachineId(#[source] io::Error),
    /// The loopback interface could not be switched on.
    #[error("switch on the loopback interface")]
    Loopback(#[source] io::Error),
}

/// The running task. It ends, and leaves all interfaces as they are, when the handle is dropped.
#[derive(Debug)]
pub struct Handle {
    config: watch::Sender<Config>,
    status: watch::Receiver<Status>,
    upstreams: watch::Receiver<Upstreams>,
    events: Option<mpsc::Receiver<Event>>,
    task: tokio::task::JoinHandle<()>,
}

/// Switches the loopback interface on and starts looking after the interfaces `config` names. `state_dir` holds the
/// machine id and the DHCP leases over restarts. To be called inside a tokio runtime.
pub fn start(config: Config, state_dir: &Path) -> Result<Handle, StartError> {
    let (event_sender, events) = mpsc::channel(EVENT_QUEUE);
    let (config_sender, config_receiver) = watch::channel(config);
    let parts = task::Task::open(config_receiver, state_dir, event_sender)?;
    let (status, upstreams) = (parts.status(), parts.upstreams());
    let task = tokio::spawn(parts.run());
    Ok(Handle { config: config_sender, status, upstreams, events: Some(events), task })
}

impl Handle {
    /// What is reached; changes as addresses come and go.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// The name servers in force, for [`crate::resolver::Resolver`] and [`crate::dns::Server`].
    pub fn upstreams(&self) -> watch::Receiver<Upstreams> {
        self.upstreams.clone()
    }

    /// What happened, to be logged. Given once.
    pub fn take_events(&mut self) -> Option<mpsc::Receiver<Event>> {
        self.events.take()
    }

    /// Puts another configuration in force. Interfaces whose part did not change are left alone.
    pub fn reconfigure(&self, config: Config) {
        self.config.send_replace(config);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.task.abort();
    }
}
