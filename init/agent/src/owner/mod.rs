//! The owner: the one task that changes the state of containers.
//!
//! Commands come from the API and the units, messages from init, happenings from the owner's own helpers, which do
//! what blocks (starting, cleaning up, removing, waiting). Everything is handled one after the other, so no state is
//! ever seen half-changed, and no lock is held.
//!
//! Reading order: [`container`] (what is known of one), [`registry`] (create, find, rename, remove), [`lifecycle`]
//! (start and stop), [`networking`] (connect and disconnect), [`ending`] (exits and what follows), [`sessions`] (attach, logs, exec), [`recover`] (after a
//! restart of agent or machine), [`shutdown`].

mod container;
mod ending;
mod execs;
mod lifecycle;
mod networking;
mod recover;
mod registry;
mod sessions;
mod shutdown;
mod view;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use berth_control::{Exit, FromInit};
use tokio::sync::{broadcast, mpsc};

use self::container::Container;
use self::execs::Exec;
use crate::command::{Command, Event, Id, NetworkCommand, Refusal, VolumeCommand};
use crate::logs::{Copier, now_ns};
use crate::start::{Launched, Machinery, StartError};

/// Happenings waiting at most.
const HAPPENINGS: usize = 1024;

/// What the owner's helpers report.
#[derive(Debug)]
pub(crate) enum Happening {
    /// A start is over.
    Launched(Id, u32, Result<Box<Launched>, StartError>),
    /// A run's processes, cgroup, interfaces and ids are gone.
    Cleaned(Id, u32),
    /// Everything a run wrote is in its log.
    Drained(Id, u32),
    /// The wait before a restart is over.
    Due(Id, u32),
    /// A stop took too long.
    StopTimeout(Id, u32),
    /// Whoever fed standard input is done.
    InputDone(Id, u32),
    /// A container's files are gone, or not.
    Removed(Id, Result<(), String>),
    /// The start of an exec session is over.
    ExecLaunched(Id, Result<Box<execs::Launched>, StartError>),
    /// The machine shall go down; asked for over the API.
    PowerWanted(berth_control::PowerAction),
    /// The time for stopping containers is over.
    ShutdownDeadline,
}

/// See the module.
pub(crate) struct Owner {
    machinery: Machinery,
    copier: Copier,
    boot: String,
    /// This is the first agent since the machine booted.
    fresh_boot: bool,
    containers: BTreeMap<Id, Container>,
    execs: HashMap<Id, Exec>,
    happenings: mpsc::Sender<Happening>,
    happened: mpsc::Receiver<Happening>,
    events: broadcast::Sender<Event>,
    going_down: Option<berth_control::PowerAction>,
}

impl Owner {
    /// An owner without containers; see [`Self::recover`].
    pub(crate) fn new(
        machinery: Machinery,
        copier: Copier,
        boot: String,
        fresh_boot: bool,
        events: broadcast::Sender<Event>,
    ) -> Self {
        let (happenings, happened) = mpsc::channel(HAPPENINGS);
        machinery.volumes.tell(events.clone());
        Self {
            machinery,
            copier,
            boot,
            fresh_boot,
            containers: BTreeMap::new(),
            execs: HashMap::new(),
            happenings,
            happened,
            events,
            going_down: None,
        }
    }

    /// Where the host API asks for the machine's end.
    pub(crate) fn happenings(&self) -> mpsc::Sender<Happening> {
        self.happenings.clone()
    }

    /// Works until nobody can ask for anything any more.
    pub(crate) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut init: mpsc::Receiver<FromInit>,
    ) {
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => return,
                },
                Some(message) = init.recv() => self.told_by_init(message),
                Some(happening) = self.happened.recv() => self.happening(happening),
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Create(create, answer) => drop(answer.send(self.create(*create))),
            Command::Start(id, answer) => self.start(&id, answer),
            Command::Stop(id, timeout_s, signal, answer) => {
                self.stop(&id, timeout_s, signal.as_deref(), answer);
            }
            Command::Restart(id, timeout_s, signal, answer) => {
                self.restart(&id, timeout_s, signal.as_deref(), answer);
            }
            Command::Kill(id, signal, answer) => drop(answer.send(self.kill(&id, &signal))),
            Command::Pause(id, freeze, answer) => drop(answer.send(self.pause(&id, freeze))),
            Command::Rename(id, name, answer) => drop(answer.send(self.rename(&id, &name))),
            Command::Remove(id, force, volumes, answer) => self.remove(&id, force, volumes, answer),
            Command::List(answer) => drop(answer.send(self.list())),
            Command::View(name, answer) => drop(answer.send(self.find(&name).map(|one| one.view.clone()))),
            Command::Wait(id, until, answer) => drop(answer.send(self.wait(&id, until))),
            Command::Attach(id, request, answer) => drop(answer.send(self.attach(&id, request))),
            Command::Resize(id, rows, columns, answer) => drop(answer.send(self.resize(&id, rows, columns))),
            Command::Logs(id, request, answer) => drop(answer.send(self.logs(&id, request))),
            Command::ExecCreate(id, create, answer) => drop(answer.send(self.exec_create(&id, *create))),
            Command::ExecStart(id, start, answer) => self.exec_start(&id, start, answer),
            Command::ExecView(id, answer) => drop(answer.send(self.exec_view(&id))),
            Command::ExecKill(id, answer) => drop(answer.send(self.exec_kill(&id))),
            Command::Health(id, health, answer) => drop(answer.send(self.health(&id, health))),
            Command::ExecResize(id, rows, columns, answer) => {
                drop(answer.send(self.exec_resize(&id, rows, columns)));
            }
            Command::Update(id, body, answer) => drop(answer.send(self.update(&id, &body))),
            Command::Network(command) => self.network(command),
            Command::Volume(command) => self.volume(command),
        }
    }

    fn told_by_init(&mut self, message: FromInit) {
        match message {
            FromInit::Exited(exit) => self.exited(&exit),
            FromInit::Shutdown { action, deadline_s } => self.shut_down(action, deadline_s),
            // Answers to Hello, which was answered before the owner began.
            FromInit::Stored { .. } | FromInit::Running { .. } | FromInit::Service(_) | FromInit::Ready => {}
        }
    }

    fn happening(&mut self, happening: Happening) {
        match happening {
            Happening::Launched(id, run, result) => self.launched(&id, run, result.map(|launched| *launched)),
            Happening::Cleaned(id, run) => self.cleaned(&id, run),
            Happening::Drained(id, run) => self.drained(&id, run),
            Happening::Due(id, run) => self.due(&id, run),
            Happening::StopTimeout(id, run) => self.stop_timeout(&id, run),
            Happening::InputDone(id, run) => self.input_done(&id, run),
            Happening::Removed(id, result) => self.removed(&id, result),
            Happening::ExecLaunched(id, result) => self.exec_launched(&id, result.map(|launched| *launched)),
            Happening::PowerWanted(action) => self.shut_down(action, shutdown::DEADLINE_S),
            Happening::ShutdownDeadline => self.shutdown_deadline(),
        }
    }

    fn exited(&mut self, exit: &Exit) {
        let mut parts = exit.name.as_str().split('/');
        match (parts.next(), parts.next(), parts.next().map(str::parse)) {
            (Some("c"), Some(id), Some(Ok(run))) => self.container_exited(id, run, exit),
            (Some("e"), Some(id), None) => self.exec_exited(id, exit),
            _ => self.machinery.init.acknowledge(&exit.name),
        }
    }

    /// Runs what blocks away from the owner and reports it.
    fn spawn(&self, work: impl FnOnce() -> Happening + Send + 'static) {
        self.spawn_after(std::future::ready(()), work);
    }

    /// The same, once container networks are ready: early in the boot they are not.
    fn spawn_networked(&self, work: impl FnOnce() -> Happening + Send + 'static) {
        let networks = self.machinery.networks.clone();
        self.spawn_after(async move { networks.ready().await }, work);
    }

    fn spawn_after(
        &self,
        first: impl Future<Output = ()> + Send + 'static,
        work: impl FnOnce() -> Happening + Send + 'static,
    ) {
        let happenings = self.happenings.clone();
        tokio::spawn(async move {
            first.await;
            match tokio::task::spawn_blocking(work).await {
                // The owner lives as long as the agent.
                Ok(happening) => drop(happenings.send(happening).await),
                Err(error) => crate::log::error!("a helper of the owner failed: {error}"),
            }
        });
    }

    /// Reports something later, unless the handle is used to forget it.
    fn later(&self, wait: std::time::Duration, happening: Happening) -> tokio::task::AbortHandle {
        let happenings = self.happenings.clone();
        let timer = tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            drop(happenings.send(happening).await);
        });
        timer.abort_handle()
    }

    /// Tells of something that happened to a container.
    fn announce(&self, id: &str, action: &str, more: &[(&str, String)]) {
        let Some(container) = self.containers.get(id) else { return };
        let record = &container.record;
        let mut attributes = record.config.labels.clone().unwrap_or_default();
        attributes.insert("image".to_owned(), record.image_name.clone());
        attributes.insert("name".to_owned(), record.name.clone());
        attributes.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        let event = Event {
            kind: "container",
            action: action.to_owned(),
            id: id.to_owned(),
            attributes,
            at_ns: now_ns(),
        };
        // No receiver is no error: nobody listens.
        let _ = self.events.send(event);
    }

    fn network(&mut self, command: NetworkCommand) {
        let networks = self.machinery.networks.clone();
        match command {
            NetworkCommand::List(answer) => drop(answer.send(networks.list())),
            NetworkCommand::Create(body, answer) => {
                prepared(networks, move |networks| drop(answer.send(networks.create(&body))));
            }
            NetworkCommand::Remove(id, answer) => {
                prepared(networks, move |networks| drop(answer.send(networks.remove(&id))));
            }
            NetworkCommand::Connect(container, network, settings, answer) => {
                drop(answer.send(self.connect(&container, &network, *settings)));
            }
            NetworkCommand::Disconnect(container, network, _force, answer) => {
                drop(answer.send(self.disconnect(&container, &network)));
            }
        }
    }

    fn volume(&mut self, command: VolumeCommand) {
        let volumes = self.machinery.volumes.clone();
        match command {
            VolumeCommand::List(answer) => drop(answer.send(self.volumes())),
            VolumeCommand::Create(body, answer) => blocking(move || drop(answer.send(volumes.create(*body)))),
            VolumeCommand::Remove(name, force, answer) => match self.volume_user(&name) {
                Some(id) => {
                    let text = format!("remove {name}: volume is in use - [{id}]");
                    drop(answer.send(Err(Refusal::Conflict(text))));
                }
                None => blocking(move || {
                    let removed = match volumes.remove(&name) {
                        Err(Refusal::NotFound(_)) if force => Ok(()),
                        other => other,
                    };
                    drop(answer.send(removed));
                }),
            },
        }
    }
}

/// Runs what blocks on a thread made for that. What it answers with tells its end.
fn blocking(work: impl FnOnce() + Send + 'static) {
    drop(tokio::task::spawn_blocking(work));
}

/// The same for what changes networks, once they are ready: early in the boot the kernel has no packet filter yet.
fn prepared(
    networks: Arc<crate::networks::Networks>,
    work: impl FnOnce(&crate::networks::Networks) + Send + 'static,
) {
    tokio::spawn(async move {
        networks.ready().await;
        blocking(move || work(&networks));
    });
}

/// Writes a record. The owner waits: what it answers next must be durable.
fn save(machinery: &Machinery, record: &crate::store::Record) -> Result<(), Refusal> {
    tokio::task::block_in_place(|| machinery.store.save(record))
        .map_err(|error| Refusal::Failed(crate::log::chain(&error)))
}

/// A list of views for callers.
type Views = Vec<Arc<crate::command::View>>;
