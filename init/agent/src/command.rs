//! What the API and the units may ask of the owner task, as types: the whole inner interface of the agent.
//!
//! A handler parses a request into these types, sends it through [`Handle`], and translates the answer. Only the
//! owner changes state, so no handler holds a lock. Long work (pulls, log reading, streams) runs outside the owner.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_api::docker::containers::{EndpointIpamConfig, EndpointSettings, UpdateBody};
use berth_api::docker::networks::{Network, NetworkCreate};
use berth_api::docker::volumes::{Volume, VolumeCreate};
use bytes::Bytes;
use tokio::sync::{broadcast, mpsc, oneshot};

/// A container id: 64 lower-case hex digits.
pub(crate) type Id = String;

/// Everything `POST /containers/create` decided, after validation against Docker's rules. The Docker JSON that led
/// here is kept verbatim in `docker` for inspect, because clients compare what they sent.
#[derive(Clone, Debug)]
pub(crate) struct Create {
    /// Wanted name without slash; none for a generated one.
    pub(crate) name: Option<String>,
    /// The image as typed.
    pub(crate) image: String,
    /// The request body: Config, HostConfig, NetworkingConfig as sent (owner fills the defaults from the image).
    pub(crate) docker: berth_api::docker::containers::CreateBody,
    /// Made by a unit of the machine file, under this unit name.
    pub(crate) unit: Option<String>,
}

/// Answer to [`Handle::create`].
#[derive(Clone, Debug)]
pub(crate) struct Created {
    /// The new id.
    pub(crate) id: Id,
    /// Texts for `Warnings`.
    pub(crate) warnings: Vec<String>,
}

/// Whether a request changed anything (`304 Not Modified` otherwise).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Changed {
    /// It did.
    Yes,
    /// The container was in that state already.
    No,
}

/// When a wait is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitFor {
    /// Not running now or later.
    NotRunning,
    /// The next exit.
    NextExit,
    /// Removal.
    Removed,
}

/// How a wait ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WaitEnd {
    /// Exit code.
    pub(crate) code: i64,
    /// Error text, as for a container that could not be started.
    pub(crate) error: Option<String>,
}

/// Which stream a chunk of output belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stream {
    /// Standard output (and everything of a terminal).
    Out,
    /// Standard error.
    Err,
}

/// A chunk of live output.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    /// Where it was written.
    pub(crate) stream: Stream,
    /// The bytes.
    pub(crate) bytes: Bytes,
}

/// What to attach.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttachRequest {
    /// Replay what was logged before.
    pub(crate) logs: bool,
    /// Stay attached to live output.
    pub(crate) stream: bool,
    /// Forward standard input.
    pub(crate) stdin: bool,
    /// Standard output wanted.
    pub(crate) stdout: bool,
    /// Standard error wanted.
    pub(crate) stderr: bool,
}

/// A live attachment to a container or an exec session. Output ends when the process ended and everything it wrote was
/// delivered; dropping `output` detaches.
#[derive(Debug)]
pub(crate) struct Attachment {
    /// A terminal: raw bytes, no frames.
    pub(crate) tty: bool,
    /// Live output, bounded: a slow reader makes the copier wait, never the container's log.
    pub(crate) output: mpsc::Receiver<Chunk>,
    /// Standard input, when asked for and open. Dropping it closes the container's standard input when `StdinOnce`
    /// or for an exec session.
    pub(crate) input: Option<mpsc::Sender<Bytes>>,
}

/// Which log lines.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogRequest {
    /// Standard output wanted.
    pub(crate) stdout: bool,
    /// Standard error wanted.
    pub(crate) stderr: bool,
    /// Stay until the container stops.
    pub(crate) follow: bool,
    /// Only lines at or after this time, nanoseconds since the epoch.
    pub(crate) since_ns: Option<i64>,
    /// Only lines before this time.
    pub(crate) until_ns: Option<i64>,
    /// Only the last lines; none for all.
    pub(crate) tail: Option<u64>,
}

/// A line (or part of a long line) of a container's log.
#[derive(Clone, Debug)]
pub(crate) struct LogLine {
    /// Where it was written.
    pub(crate) stream: Stream,
    /// When it was read, nanoseconds since the epoch.
    pub(crate) at_ns: i64,
    /// The bytes, with the line feed the container wrote.
    pub(crate) bytes: Bytes,
}

/// What an exec session shall run (`POST /containers/{id}/exec`).
#[derive(Clone, Debug)]
pub(crate) struct ExecCreate {
    /// The request body.
    pub(crate) docker: berth_api::docker::exec::ExecBody,
}

/// A new exec session or a started one.
#[derive(Clone, Debug)]
pub(crate) struct ExecStart {
    /// Do not attach.
    pub(crate) detach: bool,
    /// Terminal wanted. Docker follows the create and ignores this.
    #[cfg_attr(not(test), allow(dead_code, reason = "told for completeness, followed by nobody"))]
    pub(crate) tty: bool,
    /// Rows and columns, when told.
    pub(crate) size: Option<(u16, u16)>,
}

/// State of a container, with its data inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Never started, or the last start failed (`error`).
    Created {
        /// Why the last start failed.
        error: Option<String>,
        /// Exit code shown for it: 0, or 126, 127, 128 after a failed start.
        code: i64,
    },
    /// Its first process runs.
    Running {
        /// Host pid.
        pid: i32,
        /// Nanoseconds since the epoch.
        started_ns: i64,
        /// Frozen.
        paused: bool,
    },
    /// Waiting to be started again by its restart policy.
    Restarting {
        /// Exit of the last run.
        last: Ended,
        /// When it starts again, nanoseconds since the epoch.
        next_ns: i64,
    },
    /// Ended.
    Exited(Ended),
    /// Being removed.
    Removing,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Ended {
    /// Exit code, `128 + signal` for a signal.
    pub(crate) code: i64,
    /// The kernel killed it for memory.
    pub(crate) oom_killed: bool,
    /// Start, nanoseconds since the epoch.
    pub(crate) started_ns: i64,
    /// End, nanoseconds since the epoch.
    pub(crate) finished_ns: i64,
    /// Error text, if any.
    pub(crate) error: String,
}

/// A consistent copy of all that is known of a container; handlers turn it into Docker JSON.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// Its id.
    pub(crate) id: Id,
    /// Its name, without slash.
    pub(crate) name: String,
    /// Creation, nanoseconds since the epoch.
    pub(crate) created_ns: i64,
    /// State.
    pub(crate) state: State,
    /// The image as typed at creation.
    pub(crate) image_name: String,
    /// `sha256:…` of the image's config.
    pub(crate) image_id: String,
    /// Program and arguments as they run: entrypoint and command joined.
    pub(crate) args: Vec<String>,
    /// Config and HostConfig with defaults and the image's values filled in; echoed by inspect.
    pub(crate) config: berth_api::docker::containers::ContainerConfig,
    /// See `config`.
    pub(crate) host_config: berth_api::docker::containers::HostConfig,
    /// Networks by name, with what the network gave.
    pub(crate) networks: BTreeMap<String, Endpoint>,
    /// Published ports: `80/tcp` → host addresses and ports; empty list for exposed only.
    pub(crate) ports: BTreeMap<String, Vec<(String, u16)>>,
    /// Mounts as shown by inspect.
    pub(crate) mounts: Vec<berth_api::docker::containers::MountPoint>,
    /// Restarts by policy since the last start by a user.
    pub(crate) restart_count: u32,
    /// Health, when there is a check: `starting`, `healthy`, `unhealthy`.
    pub(crate) health: Option<Health>,
    /// Running exec sessions.
    pub(crate) exec_ids: Vec<Id>,
    /// The unit of the machine file that owns it.
    pub(crate) unit: Option<String>,
}

/// A container's place in a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_field_names, reason = "the names of Docker's API")]
pub(crate) struct Endpoint {
    /// Network id.
    pub(crate) network_id: String,
    /// Endpoint id, empty while stopped.
    pub(crate) endpoint_id: String,
    /// IPv4 address without prefix, empty while stopped.
    pub(crate) ip: String,
    /// Prefix length.
    pub(crate) prefix: u8,
    /// Gateway.
    pub(crate) gateway: String,
    /// MAC address.
    pub(crate) mac: String,
    /// IPv6 address, prefix length and gateway.
    pub ip6: Option<(String, u8, String)>,
    /// Addresses as asked for.
    pub(crate) wanted: Option<EndpointIpamConfig>,
    /// All that was asked for.
    pub(crate) asked: EndpointSettings,
    /// Aliases as asked for.
    pub(crate) aliases: Vec<String>,
    /// Names answered by the resolver.
    pub(crate) dns_names: Vec<String>,
}

/// Health of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Health {
    /// `starting`, `healthy` or `unhealthy`.
    pub(crate) status: String,
    /// Failures in a row.
    pub(crate) failing_streak: u32,
    /// The last five probes: start, end (ns), exit code, output.
    pub(crate) log: Vec<(i64, i64, i64, String)>,
}

/// An exec session as shown by `GET /exec/{id}/json`.
#[derive(Clone, Debug)]
pub(crate) struct ExecView {
    /// Its id.
    pub(crate) id: Id,
    /// The container's id.
    pub(crate) container: Id,
    /// Host pid, 0 before it runs.
    pub(crate) pid: i32,
    /// Runs now.
    pub(crate) running: bool,
    /// Exit code, once ended.
    pub(crate) code: Option<i64>,
    /// The request it was made of.
    pub(crate) body: berth_api::docker::exec::ExecBody,
}

/// Something that happened, for `GET /events` (Docker's actor, action, attributes).
#[derive(Clone, Debug)]
pub(crate) struct Event {
    /// `container`, `image`, `network`, `volume`, `daemon`.
    pub(crate) kind: &'static str,
    /// `create`, `start`, `die`, …
    pub(crate) action: String,
    /// Id of the actor.
    pub(crate) id: String,
    /// Attributes, labels among them.
    pub(crate) attributes: BTreeMap<String, String>,
    /// Nanoseconds since the epoch.
    pub(crate) at_ns: i64,
}

/// Why the owner refused. `server::errors` maps each to a status; the texts are Docker's, because clients match them.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// 404.
    #[error("{0}")]
    NotFound(String),
    /// 409.
    #[error("{0}")]
    Conflict(String),
    /// 400.
    #[error("{0}")]
    Invalid(String),
    /// 403.
    #[error("{0}")]
    Forbidden(String),
    /// 500: the machine could not do it.
    #[error("{0}")]
    Failed(String),
    /// 501: Berth does not do this.
    #[error("{0}")]
    Unsupported(String),
    /// 503: shutting down, or not up yet.
    #[error("{0}")]
    Unavailable(String),
}

/// A command to the owner with the way to answer it.
#[derive(Debug)]
pub(crate) enum Command {
    /// See [`Handle::create`].
    Create(Box<Create>, Answer<Created>),
    /// See [`Handle::start`].
    Start(Id, Answer<Changed>),
    /// See [`Handle::stop`]: timeout in seconds (-1 for ever, none for the container's), signal.
    Stop(Id, Option<i64>, Option<String>, Answer<Changed>),
    /// See [`Handle::restart`].
    Restart(Id, Option<i64>, Option<String>, Answer<()>),
    /// See [`Handle::kill`].
    Kill(Id, String, Answer<()>),
    /// Freeze or thaw.
    Pause(Id, bool, Answer<()>),
    /// Rename.
    Rename(Id, String, Answer<()>),
    /// See [`Handle::remove`]: force, volumes.
    Remove(Id, bool, bool, Answer<()>),
    /// All containers.
    List(oneshot::Sender<Vec<Arc<View>>>),
    /// One container by id, unique id prefix or name (with or without slash).
    View(String, Answer<Arc<View>>),
    /// See [`Handle::wait`].
    Wait(Id, WaitFor, Answer<oneshot::Receiver<WaitEnd>>),
    /// See [`Handle::attach`].
    Attach(Id, AttachRequest, Answer<Attachment>),
    /// Terminal size: rows, columns.
    Resize(Id, u16, u16, Answer<()>),
    /// See [`Handle::logs`].
    Logs(Id, LogRequest, Answer<mpsc::Receiver<LogLine>>),
    /// Make an exec session.
    ExecCreate(Id, Box<ExecCreate>, Answer<Id>),
    /// Start it; an attachment unless detached.
    ExecStart(Id, ExecStart, Answer<Option<Attachment>>),
    /// Look at it.
    ExecView(Id, Answer<ExecView>),
    /// See [`Handle::exec_kill`].
    ExecKill(Id, Answer<()>),
    /// See [`Handle::health`].
    Health(Id, Health, Answer<()>),
    /// Its terminal size.
    ExecResize(Id, u16, u16, Answer<()>),
    /// See [`Handle::update`].
    Update(Id, Box<UpdateBody>, Answer<Vec<String>>),
    /// About networks.
    Network(NetworkCommand),
    /// About volumes.
    Volume(VolumeCommand),
}

/// Commands about networks. A network is named by its name, its id or a unique prefix of that.
#[derive(Debug)]
pub(crate) enum NetworkCommand {
    /// All networks, the predefined ones among them; with `Containers` filled in.
    List(oneshot::Sender<Vec<Network>>),
    /// Make one.
    Create(Box<NetworkCreate>, Answer<Id>),
    /// Remove one by its id.
    Remove(Id, Answer<()>),
    /// Connect a container (by id) to a network (by id).
    Connect(Id, Id, Box<EndpointSettings>, Answer<()>),
    /// Disconnect a container (by id) from a network (by id); `force` also when it is gone.
    Disconnect(Id, Id, bool, Answer<()>),
}

/// Commands about volumes.
#[derive(Debug)]
pub(crate) enum VolumeCommand {
    /// All volumes, `UsageData.RefCount` filled in, size -1. Anonymous ones carry the label
    /// `com.docker.volume.anonymous`.
    List(oneshot::Sender<Vec<Volume>>),
    /// Make one; the existing one when the name is taken.
    Create(Box<VolumeCreate>, Answer<Volume>),
    /// Remove one by name.
    Remove(String, bool, Answer<()>),
}

/// The way a command is answered.
pub(crate) type Answer<T> = oneshot::Sender<Result<T, Refusal>>;

/// The API's and the units' end of the owner's queue.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    queue: mpsc::Sender<Command>,
    events: broadcast::Sender<Event>,
}

/// Commands waiting for the owner at most; a full queue makes the sender wait.
pub(crate) const QUEUE_LENGTH: usize = 256;

impl Handle {
    /// A handle and the owner's end of the queue.
    pub(crate) fn new(events: broadcast::Sender<Event>) -> (Self, mpsc::Receiver<Command>) {
        let (queue, receiver) = mpsc::channel(QUEUE_LENGTH);
        (Self { queue, events }, receiver)
    }

    /// Events from now on.
    pub(crate) fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Tell of something that happened outside the owner (image pulled, removed, …).
    pub(crate) fn announce(&self, event: Event) {
        // No receiver is no error: nobody listens.
        let _ = self.events.send(event);
    }

    async fn ask<T>(&self, make: impl FnOnce(Answer<T>) -> Command) -> Result<T, Refusal> {
        self.ask_plain(make).await?
    }

    async fn ask_plain<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Refusal> {
        let gone = || Refusal::Unavailable("the agent is shutting down".to_owned());
        let (answer, receiver) = oneshot::channel();
        self.queue.send(make(answer)).await.map_err(|_| gone())?;
        receiver.await.map_err(|_| gone())
    }

    /// Make a container. The image must be present.
    pub(crate) async fn create(&self, create: Create) -> Result<Created, Refusal> {
        self.ask(|answer| Command::Create(Box::new(create), answer)).await
    }

    /// Start it; answers when its program runs.
    pub(crate) async fn start(&self, id: &str) -> Result<Changed, Refusal> {
        self.ask(|answer| Command::Start(id.to_owned(), answer)).await
    }

    /// Stop it: its stop signal, then SIGKILL after the timeout; answers when it has ended.
    pub(crate) async fn stop(
        &self,
        id: &str,
        timeout_s: Option<i64>,
        signal: Option<String>,
    ) -> Result<Changed, Refusal> {
        self.ask(|answer| Command::Stop(id.to_owned(), timeout_s, signal, answer)).await
    }

    /// Stop and start it.
    pub(crate) async fn restart(
        &self,
        id: &str,
        timeout_s: Option<i64>,
        signal: Option<String>,
    ) -> Result<(), Refusal> {
        self.ask(|answer| Command::Restart(id.to_owned(), timeout_s, signal, answer)).await
    }

    /// Send it a signal.
    pub(crate) async fn kill(&self, id: &str, signal: String) -> Result<(), Refusal> {
        self.ask(|answer| Command::Kill(id.to_owned(), signal, answer)).await
    }

    /// Freeze (`true`) or thaw it.
    pub(crate) async fn pause(&self, id: &str, freeze: bool) -> Result<(), Refusal> {
        self.ask(|answer| Command::Pause(id.to_owned(), freeze, answer)).await
    }

    /// Give it another name.
    pub(crate) async fn rename(&self, id: &str, name: String) -> Result<(), Refusal> {
        self.ask(|answer| Command::Rename(id.to_owned(), name, answer)).await
    }

    /// Remove it; a running one only with `force`. `volumes` removes its anonymous volumes.
    pub(crate) async fn remove(&self, id: &str, force: bool, volumes: bool) -> Result<(), Refusal> {
        self.ask(|answer| Command::Remove(id.to_owned(), force, volumes, answer)).await
    }

    /// All containers, newest first.
    pub(crate) async fn list(&self) -> Result<Vec<Arc<View>>, Refusal> {
        self.ask_plain(Command::List).await
    }

    /// One container by id, unique id prefix or name.
    pub(crate) async fn view(&self, name: &str) -> Result<Arc<View>, Refusal> {
        self.ask(|answer| Command::View(name.to_owned(), answer)).await
    }

    /// Wait for its end; the outer result comes at once, the receiver when it happened.
    pub(crate) async fn wait(&self, id: &str, until: WaitFor) -> Result<oneshot::Receiver<WaitEnd>, Refusal> {
        self.ask(|answer| Command::Wait(id.to_owned(), until, answer)).await
    }

    /// Attach to it; also before it is started.
    pub(crate) async fn attach(&self, id: &str, request: AttachRequest) -> Result<Attachment, Refusal> {
        self.ask(|answer| Command::Attach(id.to_owned(), request, answer)).await
    }

    /// Resize its terminal.
    pub(crate) async fn resize(&self, id: &str, rows: u16, columns: u16) -> Result<(), Refusal> {
        self.ask(|answer| Command::Resize(id.to_owned(), rows, columns, answer)).await
    }

    /// Read its log.
    pub(crate) async fn logs(
        &self,
        id: &str,
        request: LogRequest,
    ) -> Result<mpsc::Receiver<LogLine>, Refusal> {
        self.ask(|answer| Command::Logs(id.to_owned(), request, answer)).await
    }

    /// Make an exec session in a running container.
    pub(crate) async fn exec_create(&self, id: &str, create: ExecCreate) -> Result<Id, Refusal> {
        self.ask(|answer| Command::ExecCreate(id.to_owned(), Box::new(create), answer)).await
    }

    /// Start an exec session.
    pub(crate) async fn exec_start(
        &self,
        exec: &str,
        start: ExecStart,
    ) -> Result<Option<Attachment>, Refusal> {
        self.ask(|answer| Command::ExecStart(exec.to_owned(), start, answer)).await
    }

    /// Look at an exec session.
    pub(crate) async fn exec_view(&self, exec: &str) -> Result<ExecView, Refusal> {
        self.ask(|answer| Command::ExecView(exec.to_owned(), answer)).await
    }

    /// Kill an exec session's process.
    pub(crate) async fn exec_kill(&self, exec: &str) -> Result<(), Refusal> {
        self.ask(|answer| Command::ExecKill(exec.to_owned(), answer)).await
    }

    /// Show a running container's health.
    pub(crate) async fn health(&self, id: &str, health: Health) -> Result<(), Refusal> {
        self.ask(|answer| Command::Health(id.to_owned(), health, answer)).await
    }

    /// Resize an exec session's terminal.
    pub(crate) async fn exec_resize(&self, exec: &str, rows: u16, columns: u16) -> Result<(), Refusal> {
        self.ask(|answer| Command::ExecResize(exec.to_owned(), rows, columns, answer)).await
    }

    /// Change resources and restart policy; answers with warnings.
    pub(crate) async fn update(&self, id: &str, body: UpdateBody) -> Result<Vec<String>, Refusal> {
        self.ask(|answer| Command::Update(id.to_owned(), Box::new(body), answer)).await
    }

    /// All networks.
    pub(crate) async fn networks(&self) -> Result<Vec<Network>, Refusal> {
        self.ask_plain(|answer| Command::Network(NetworkCommand::List(answer))).await
    }

    /// Make a network; answers with its id.
    pub(crate) async fn network_create(&self, body: NetworkCreate) -> Result<Id, Refusal> {
        self.ask(|answer| Command::Network(NetworkCommand::Create(Box::new(body), answer))).await
    }

    /// Remove a network.
    pub(crate) async fn network_remove(&self, id: &str) -> Result<(), Refusal> {
        self.ask(|answer| Command::Network(NetworkCommand::Remove(id.to_owned(), answer))).await
    }

    /// Connect a container to a network.
    pub(crate) async fn network_connect(
        &self,
        network: &str,
        container: &str,
        settings: EndpointSettings,
    ) -> Result<(), Refusal> {
        let (network, container) = (network.to_owned(), container.to_owned());
        self.ask(|answer| {
            Command::Network(NetworkCommand::Connect(container, network, Box::new(settings), answer))
        })
        .await
    }

    /// Disconnect a container from a network.
    pub(crate) async fn network_disconnect(
        &self,
        network: &str,
        container: &str,
        force: bool,
    ) -> Result<(), Refusal> {
        let (network, container) = (network.to_owned(), container.to_owned());
        self.ask(|answer| Command::Network(NetworkCommand::Disconnect(container, network, force, answer)))
            .await
    }

    /// All volumes.
    pub(crate) async fn volumes(&self) -> Result<Vec<Volume>, Refusal> {
        self.ask_plain(|answer| Command::Volume(VolumeCommand::List(answer))).await
    }

    /// Make a volume.
    pub(crate) async fn volume_create(&self, body: VolumeCreate) -> Result<Volume, Refusal> {
        self.ask(|answer| Command::Volume(VolumeCommand::Create(Box::new(body), answer))).await
    }

    /// Remove a volume.
    pub(crate) async fn volume_remove(&self, name: &str, force: bool) -> Result<(), Refusal> {
        self.ask(|answer| Command::Volume(VolumeCommand::Remove(name.to_owned(), force, answer))).await
    }
}
