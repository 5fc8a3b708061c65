//! A scripted owner: containers that exist in memory only. Their "program" is played by what the command says: `echo
//! WORDS`, `exit N`, `cat` (output is input), `sleep`.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_api::docker::networks::Network;
use berth_api::docker::volumes::{UsageData, Volume};
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::command::{
    Attachment, Changed, Chunk, Command, Create, Created, Ended, Event, ExecView, Handle, LogLine,
    NetworkCommand, Refusal, State, Stream, View, VolumeCommand, WaitEnd, WaitFor,
};

struct Container {
    view: View,
    waiting: Vec<(WaitFor, oneshot::Sender<WaitEnd>)>,
    attached: Vec<mpsc::Sender<Chunk>>,
    input: Option<mpsc::Receiver<Bytes>>,
    log: Vec<(Stream, Bytes)>,
}

/// An exit of a played program: container, code.
type Exit = (String, i64);

pub(super) struct Script {
    handle: Handle,
    image: String,
    containers: BTreeMap<String, Container>,
    execs: BTreeMap<String, ExecView>,
    networks: Vec<Network>,
    volumes: Vec<Volume>,
    exits: (mpsc::UnboundedSender<Exit>, mpsc::UnboundedReceiver<Exit>),
    made: u64,
}

impl Script {
    pub(super) fn new(handle: Handle, image: String) -> Self {
        let network = |name: &str, driver: &str, digit: &str| Network {
            name: name.into(),
            id: digit.repeat(64),
            created: "2026-11-21T12:23:37.680402868Z".into(),
            scope: "local".into(),
            driver: driver.into(),
            enable_ipv4: true,
            ..Network::default()
        };
        Self {
            handle,
            image,
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            networks: vec![
                network("bridge", "bridge", "b"),
                network("host", "host", "c"),
                network("none", "null", "d"),
            ],
            volumes: Vec::new(),
            exits: mpsc::unbounded_channel(),
            made: 0,
        }
    }

    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        loop {
            tokio::select! {
                command = queue.recv() => match command {
                    Some(command) => self.act(command),
                    None => return,
                },
                Some((id, code)) = self.exits.1.recv() => self.ended(&id, code),
            }
        }
    }

    fn tell(&self, action: &str, view: &View) {
        let mut attributes = view.config.labels.clone().unwrap_or_default();
        attributes.insert("image".into(), view.image_name.clone());
        attributes.insert("name".into(), view.name.clone());
        let at_ns = crate::server::time::now_ns();
        self.handle.announce(Event {
            kind: "container",
            action: action.into(),
            id: view.id.clone(),
            attributes,
            at_ns,
        });
    }

    fn act(&mut self, command: Command) {
        match command {
            Command::Create(create, answer) => drop(answer.send(self.create(*create))),
            Command::Start(id, answer) => drop(answer.send(self.start(&id))),
            Command::Stop(id, _, _, answer) => {
                let running = self.is_running(&id);
                if running {
                    self.ended(&id, 137);
                }
                let _ = answer.send(Ok(if running { Changed::Yes } else { Changed::No }));
            }
            Command::Restart(id, _, _, answer) => {
                self.ended(&id, 137);
                drop(answer.send(self.start(&id).map(|_| ())));
            }
            Command::Kill(id, _, answer) => {
                self.ended(&id, 137);
                let _ = answer.send(Ok(()));
            }
            Command::Pause(id, freeze, answer) => {
                if let Some(State::Running { paused, .. }) =
                    self.containers.get_mut(&id).map(|c| &mut c.view.state)
                {
                    *paused = freeze;
                }
                let _ = answer.send(Ok(()));
            }
            Command::Rename(id, name, answer) => drop(answer.send(self.rename(&id, name))),
            Command::Remove(id, _, _, answer) => {
                self.ended(&id, 137);
                self.forget(&id);
                let _ = answer.send(Ok(()));
            }
            Command::List(answer) => {
                let mut all: Vec<_> = self.containers.values().map(|c| Arc::new(c.view.clone())).collect();
                all.sort_by_key(|view| std::cmp::Reverse(view.created_ns));
                let _ = answer.send(all);
            }
            Command::View(name, answer) => drop(answer.send(self.view(&name))),
            Command::Wait(id, until, answer) => drop(answer.send(Ok(self.wait(&id, until)))),
            Command::Attach(id, _, answer) => {
                let (sender, output) = mpsc::channel(16);
                let (input, receiver) = mpsc::channel(16);
                let container = self.containers.get_mut(&id).unwrap();
                container.attached.push(sender);
                let open = container.view.config.open_stdin;
                container.input = open.then_some(receiver);
                let tty = container.view.config.tty;
                let _ = answer.send(Ok(Attachment { tty, output, input: open.then_some(input) }));
            }
            Command::Logs(id, request, answer) => {
                let (sender, receiver) = mpsc::channel(64);
                for (number, (stream, bytes)) in self.containers[&id].log.iter().enumerate() {
                    let at_ns = 1_600_000_000_000_000_000 + i64::try_from(number).unwrap();
                    let wanted = if *stream == Stream::Out { request.stdout } else { request.stderr };
                    if wanted {
                        sender.try_send(LogLine { stream: *stream, at_ns, bytes: bytes.clone() }).unwrap();
                    }
                }
                let _ = answer.send(Ok(receiver));
            }
            Command::Resize(_, _, _, answer) | Command::ExecResize(_, _, _, answer) => {
                let _ = answer.send(Ok(()));
            }
            Command::Update(_, _, answer) => drop(answer.send(Ok(Vec::new()))),
            other => self.act_on_others(other),
        }
    }

    fn act_on_others(&mut self, command: Command) {
        match command {
            Command::ExecCreate(container, create, answer) => {
                self.made += 1;
                let id = format!("{:064x}", 0xe000 + self.made);
                let view = ExecView {
                    id: id.clone(),
                    container,
                    pid: 0,
                    running: false,
                    code: None,
                    body: create.docker,
                };
                self.execs.insert(id.clone(), view);
                let _ = answer.send(Ok(id));
            }
            Command::ExecStart(id, start, answer) => {
                let exec = self.execs.get_mut(&id).unwrap();
                let words = exec.body.cmd.clone().unwrap();
                let (sender, output) = mpsc::channel(16);
                let (input, receiver) = mpsc::channel(16);
                let (code, _) = play(&words, sender, Some(receiver));
                exec.code = Some(code);
                let attachment = Attachment { tty: start.tty, output, input: Some(input) };
                let _ = answer.send(Ok((!start.detach).then_some(attachment)));
            }
            Command::ExecView(id, answer) => {
                let missing = || Refusal::NotFound(format!("No such exec instance: {id}"));
                let _ = answer.send(self.execs.get(&id).cloned().ok_or_else(missing));
            }
            Command::Network(command) => self.network(command),
            Command::Volume(command) => self.volume(command),
            _ => unreachable!("handled before"),
        }
    }

    fn network(&mut self, command: NetworkCommand) {
        match command {
            NetworkCommand::List(answer) => drop(answer.send(self.networks.clone())),
            NetworkCommand::Create(body, answer) => {
                if self.networks.iter().any(|network| network.name == body.name) {
                    let text = format!("network with name {} already exists", body.name);
                    drop(answer.send(Err(Refusal::Conflict(text))));
                    return;
                }
                self.made += 1;
                let id = format!("{:064x}", 0xf000 + self.made);
                self.networks.push(Network {
                    name: body.name,
                    id: id.clone(),
                    created: "2026-11-21T12:23:37Z".into(),
                    driver: body.driver,
                    labels: body.labels,
                    scope: "local".into(),
                    ..Network::default()
                });
                let _ = answer.send(Ok(id));
            }
            NetworkCommand::Remove(id, answer) => {
                self.networks.retain(|network| network.id != id);
                let _ = answer.send(Ok(()));
            }
            NetworkCommand::Connect(_, _, _, answer) | NetworkCommand::Disconnect(_, _, _, answer) => {
                let _ = answer.send(Ok(()));
            }
        }
    }

    fn volume(&mut self, command: VolumeCommand) {
        match command {
            VolumeCommand::List(answer) => drop(answer.send(self.volumes.clone())),
            VolumeCommand::Create(body, answer) => {
                let volume = Volume {
                    created_at: "2026-11-21T13:18:36Z".into(),
                    driver: "local".into(),
                    labels: body.labels,
                    mountpoint: format!("/var/lib/berth/volumes/{}/_data", body.name),
                    name: body.name,
                    scope: "local".into(),
                    usage_data: Some(UsageData { ref_count: 0, size: -1 }),
                    ..Volume::default()
                };
                if !self.volumes.iter().any(|known| known.name == volume.name) {
                    self.volumes.push(volume.clone());
                }
                let _ = answer.send(Ok(volume));
            }
            VolumeCommand::Remove(name, _, answer) => {
                let before = self.volumes.len();
                self.volumes.retain(|volume| volume.name != name);
                let missing = || Err(Refusal::NotFound(format!("get {name}: no such volume")));
                let _ = answer.send(if self.volumes.len() < before { Ok(()) } else { missing() });
            }
        }
    }

    fn create(&mut self, create: Create) -> Result<Created, Refusal> {
        self.made += 1;
        let id = format!("{:064x}", 0xabc_0000_0000_0000_u64 + self.made);
        let id: String = id.chars().rev().collect();
        let name = create.name.unwrap_or_else(|| format!("made_{}", self.made));
        self.check_name(&name)?;
        let mut config = create.docker.config;
        if config.hostname.is_empty() {
            config.hostname = id.chars().take(12).collect();
        }
        let view = View {
            id: id.clone(),
            name,
            created_ns: crate::server::time::now_ns(),
            state: State::Created { error: None, code: 0 },
            image_name: create.image,
            image_id: self.image.clone(),
            args: config.cmd.clone().unwrap_or_else(|| vec!["/bin/sh".into()]),
            ports: config
                .exposed_ports
                .iter()
                .flatten()
                .map(|(port, _)| (port.clone(), Vec::new()))
                .collect(),
            config,
            host_config: create.docker.host_config,
            networks: BTreeMap::new(),
            mounts: Vec::new(),
            restart_count: 0,
            health: None,
            exec_ids: Vec::new(),
            unit: create.unit,
        };
        self.tell("create", &view);
        let (waiting, attached, log) = (Vec::new(), Vec::new(), Vec::new());
        self.containers.insert(id.clone(), Container { view, waiting, attached, input: None, log });
        Ok(Created { id, warnings: Vec::new() })
    }

    fn check_name(&self, name: &str) -> Result<(), Refusal> {
        match self.containers.values().find(|container| container.view.name == name) {
            None => Ok(()),
            Some(other) => Err(Refusal::Conflict(format!(
                "Conflict. The container name \"/{name}\" is already in use by container \"{}\". You have to remove \
                 (or rename) that container to be able to reuse that name.",
                other.view.id
            ))),
        }
    }

    fn rename(&mut self, id: &str, name: String) -> Result<(), Refusal> {
        self.check_name(&name)?;
        self.containers.get_mut(id).unwrap().view.name = name;
        Ok(())
    }

    fn is_running(&self, id: &str) -> bool {
        self.containers.get(id).is_some_and(|c| matches!(c.view.state, State::Running { .. }))
    }

    fn start(&mut self, id: &str) -> Result<Changed, Refusal> {
        if self.is_running(id) {
            return Ok(Changed::No);
        }
        let container = self.containers.get_mut(id).unwrap();
        let words = container.view.args.clone();
        if words.first().is_some_and(|word| word == "/nope") {
            let text =
                "failed to create task for container: exec: \"/nope\": stat /nope: no such file or directory";
            container.view.state = State::Created { error: Some(text.into()), code: 127 };
            if container.view.host_config.auto_remove {
                self.forget(id);
            }
            return Err(Refusal::Invalid(text.into()));
        }
        container.view.state =
            State::Running { pid: 4242, started_ns: crate::server::time::now_ns(), paused: false };
        let (sender, mut output) = mpsc::channel::<Chunk>(16);
        let (code, ends) = play(&words, sender, container.input.take());
        let attached = std::mem::take(&mut container.attached);
        if let ["echo", rest @ ..] = words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            container.log.push((Stream::Out, format!("{}\n", rest.join(" ")).into()));
        }
        let view = container.view.clone();
        let (exits, id) = (self.exits.0.clone(), id.to_owned());
        tokio::spawn(async move {
            while let Some(chunk) = output.recv().await {
                for reader in &attached {
                    let _ = reader.send(chunk.clone()).await;
                }
            }
            if ends {
                // Output first, exit after: as the real owner does.
                drop(attached);
                let _ = exits.send((id, code));
            }
        });
        self.tell("start", &view);
        Ok(Changed::Yes)
    }

    fn ended(&mut self, id: &str, code: i64) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let State::Running { started_ns, .. } = container.view.state else { return };
        container.view.state = State::Exited(Ended {
            code,
            oom_killed: false,
            started_ns,
            finished_ns: crate::server::time::now_ns(),
            error: String::new(),
        });
        let (over, waiting) = std::mem::take(&mut container.waiting)
            .into_iter()
            .partition::<Vec<_>, _>(|(until, _)| *until != WaitFor::Removed);
        container.waiting = waiting;
        for (_, waiter) in over {
            let _ = waiter.send(WaitEnd { code, error: None });
        }
        let view = container.view.clone();
        self.tell("die", &view);
        if view.host_config.auto_remove {
            self.forget(id);
        }
    }

    fn forget(&mut self, id: &str) {
        let Some(container) = self.containers.remove(id) else { return };
        let code = match &container.view.state {
            State::Exited(end) => end.code,
            State::Created { code, .. } => *code,
            _ => 0,
        };
        for (_, waiter) in container.waiting {
            let _ = waiter.send(WaitEnd { code, error: None });
        }
        self.tell("destroy", &container.view);
    }

    fn view(&self, name: &str) -> Result<Arc<View>, Refusal> {
        let plain = name.trim_start_matches('/');
        let fits = |view: &View| view.name == plain || view.id.starts_with(name);
        let found = self.containers.values().find(|container| fits(&container.view));
        found
            .map(|container| Arc::new(container.view.clone()))
            .ok_or_else(|| Refusal::NotFound(format!("No such container: {name}")))
    }

    fn wait(&mut self, id: &str, until: WaitFor) -> oneshot::Receiver<WaitEnd> {
        let (sender, receiver) = oneshot::channel();
        let container = self.containers.get_mut(id).unwrap();
        match (&container.view.state, until) {
            (State::Exited(end), WaitFor::NotRunning) => {
                let _ = sender.send(WaitEnd { code: end.code, error: None });
            }
            (State::Created { code, .. }, WaitFor::NotRunning) => {
                let _ = sender.send(WaitEnd { code: *code, error: None });
            }
            _ => container.waiting.push((until, sender)),
        }
        receiver
    }
}

/// Plays a program: its exit code, and whether it ends by itself once its output was read.
fn play(words: &[String], output: mpsc::Sender<Chunk>, input: Option<mpsc::Receiver<Bytes>>) -> (i64, bool) {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["echo", rest @ ..] => {
            let bytes = format!("{}\n", rest.join(" ")).into();
            output.try_send(Chunk { stream: Stream::Out, bytes }).unwrap();
            (0, true)
        }
        ["exit", code] => (code.parse().unwrap(), true),
        ["cat"] => {
            tokio::spawn(async move {
                let Some(mut input) = input else { return };
                while let Some(bytes) = input.recv().await {
                    let _ = output.send(Chunk { stream: Stream::Out, bytes }).await;
                }
            });
            (0, true)
        }
        _ => (0, false),
    }
}
