//! The event loop: one thread, one epoll, nothing that waits anywhere else.
//!
//! Order within a turn: signals, devices and buttons are noted; control sockets are drained; children are reaped;
//! then what is due is done and the agent is told. A registration always precedes its exit, because a child is
//! first only looked at ([`berth_sys::signals::peek_ended`]), then the sockets are drained, then it is reaped.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use berth_control::{Channel, PowerAction, ToInit};
use berth_sys::signals::{peek_ended, reap};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::time::{ClockId, clock_gettime};

use crate::fdstore::FdStore;
use crate::input::{BUTTONS_MAX, Button};
use crate::kmsg::{error, note, warn};
use crate::ledger::Ledger;
use crate::outbox::{Outbox, Sources};
use crate::service::{Kind, Service};
use crate::signals::{Asked, Signals};
use crate::uevent::{Uevent, Uevents};
use crate::watchdog::Watchdog;
use crate::{children, modules, rescue, shutdown, timeline};

/// How long the agent may take to stop the containers. Unit: seconds.
const STOP_DEADLINE_S: u32 = 90;
/// Messages read at once from one service: more than a socket's buffer holds.
const DRAIN_MAX: usize = 512;
/// Children reaped in one turn, so that the rest gets its turn in a storm of zombies.
const REAP_MAX: usize = 256;
/// Messages sent to the agent in one turn.
const SEND_MAX: usize = 256;
/// Device aliases that wait for a loader.
const ALIASES_MAX: usize = 256;
/// Device events read in one turn.
const UEVENTS_MAX: usize = 256;
/// Events taken from epoll at once.
const EVENTS_MAX: usize = 32;
/// The loop never waits longer, so that a lost event costs no more than this.
const TURN_MAX: Duration = Duration::from_secs(30);

mod token {
    pub(super) const SIGNALS: u64 = 1;
    pub(super) const UEVENTS: u64 = 2;
    pub(super) const AGENT: u64 = 3;
    pub(super) const LAUNCHER: u64 = 4;
    pub(super) const BUTTON: u64 = 5;
}

/// What the boot leaves for the loop.
pub(crate) struct Booted {
    /// Opened before devices were looked for.
    pub(crate) uevents: Option<Uevents>,
    /// The pid of the child that loads the boot's modules.
    pub(crate) loader: Option<i32>,
}

/// The socket for device events; without it only what was there at boot is found.
pub(crate) fn open_uevents() -> Option<Uevents> {
    Uevents::open().inspect_err(|error| warn!("no device events: {error}, continuing")).ok()
}

/// Runs for ever; comes back only when there is no loop to be had at all.
pub(crate) fn run(booted: Option<Booted>) {
    let booted = booted.unwrap_or_else(|| Booted { uevents: open_uevents(), loader: None });
    match Machine::new(booted) {
        Ok(mut machine) => rescue::keep_running(|| machine.run()),
        Err(error) => error!("no event loop: {error}"),
    }
}

/// The machine is going down.
struct Stopping {
    action: PowerAction,
    deadline: Instant,
}

struct Machine {
    epoll: OwnedFd,
    signals: Signals,
    uevents: Option<Uevents>,
    agent: Service,
    launcher: Service,
    outbox: Outbox,
    /// The agent's socket is full: wait until it is not.
    blocked: bool,
    store: FdStore,
    ledger: Ledger,
    buttons: Vec<Button>,
    watchdog: Option<Watchdog>,
    loader: Option<i32>,
    aliases: Vec<String>,
    /// Whether there are modules at all.
    modular: bool,
    /// Device events were lost: the next loader looks at everything.
    rescan: bool,
    stopping: Option<Stopping>,
    /// More children may have ended.
    reaping: bool,
    finish: Option<PowerAction>,
    /// Exits the ledger had to forget, as far as reported.
    dropped: u64,
}

impl Machine {
    fn new(booted: Booted) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let signals = Signals::open()?;
        let watch = |fd: &dyn AsFd, token| watch(&epoll, fd, token);
        watch(&signals, token::SIGNALS)?;
        if let Some(uevents) = &booted.uevents
            && let Err(error) = watch(uevents, token::UEVENTS)
        {
            warn!("no device events: {error}, continuing");
        }
        let mut machine = Self {
            epoll,
            signals,
            uevents: booted.uevents,
            agent: Service::new(Kind::Agent),
            launcher: Service::new(Kind::Launcher),
            outbox: Outbox::new(),
            blocked: false,
            store: FdStore::default(),
            ledger: Ledger::default(),
            buttons: Vec::new(),
            watchdog: Watchdog::open(),
            loader: booted.loader,
            aliases: Vec::new(),
            modular: modules::are_there(),
            rescan: false,
            stopping: None,
            reaping: false,
            finish: None,
            dropped: 0,
        };
        for button in Button::all() {
            machine.add_button(button);
        }
        Ok(machine)
    }

    fn run(&mut self) {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(EVENTS_MAX);
        // Whoever ended before signals were watched, or when a panic cut a turn short.
        self.reaping = true;
        loop {
            self.due(Instant::now());
            self.tell_agent();
            let timeout = self.timeout(Instant::now());
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    // Cannot happen with a good descriptor; without a wait the loop would spin.
                    error!("epoll: {error}");
                    return;
                }
            }
            for event in &events {
                match event.data.u64() {
                    token::SIGNALS => self.read_signals(),
                    token::UEVENTS => self.read_uevents(),
                    token::AGENT => self.drain(Kind::Agent),
                    token::LAUNCHER => self.drain(Kind::Launcher),
                    token::BUTTON => self.read_buttons(),
                    _ => {}
                }
            }
            if self.reaping {
                self.reap();
            }
            if let Some(action) = self.finish.take() {
                shutdown::finish(action, &self.signals, self.watchdog.as_mut());
                return;
            }
        }
    }

    /// What is due by the clock.
    fn due(&mut self, now: Instant) {
        if self.launcher.start_if_due(now) {
            self.started(Kind::Launcher);
        }
        if self.agent.start_if_due(now) {
            timeline::mark("agent-started");
            self.outbox = Outbox::new();
            if let Some(stopping) = &self.stopping {
                let left = stopping.deadline.saturating_duration_since(now).as_secs();
                self.outbox.shutdown(stopping.action, u32::try_from(left).unwrap_or(STOP_DEADLINE_S));
            }
            self.started(Kind::Agent);
        }
        self.agent.check_heartbeat(now);
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.feed_if_due(now);
        }
        if let Some(stopping) = &self.stopping
            && now >= stopping.deadline
        {
            warn!("the containers are not stopped in time, continuing");
            self.finish = Some(stopping.action);
        }
        if (self.rescan || !self.aliases.is_empty()) && self.loader.is_none() {
            let aliases = std::mem::take(&mut self.aliases);
            match children::hotplug_loader(&aliases, std::mem::take(&mut self.rescan)) {
                Ok(child) => self.loader = Some(child.pid),
                Err(error) => warn!("no modules for new devices: {error}, continuing"),
            }
        }
    }

    fn timeout(&self, now: Instant) -> Timespec {
        let dues = [
            self.agent.due(),
            self.launcher.due(),
            self.watchdog.as_ref().and_then(Watchdog::due),
            self.stopping.as_ref().map(|stopping| stopping.deadline),
        ];
        let next = dues.into_iter().flatten().min();
        let mut wait = next.map_or(TURN_MAX, |due| due.saturating_duration_since(now)).min(TURN_MAX);
        if self.reaping || self.finish.is_some() {
            wait = Duration::ZERO;
        }
        Timespec::try_from(wait).unwrap_or_default()
    }

    fn service(&mut self, kind: Kind) -> &mut Service {
        match kind {
            Kind::Agent => &mut self.agent,
            Kind::Launcher => &mut self.launcher,
        }
    }

    fn channel(&self, kind: Kind) -> Option<&Channel> {
        let service = match kind {
            Kind::Agent => &self.agent,
            Kind::Launcher => &self.launcher,
        };
        service.process.as_ref()?.channel.as_ref()
    }

    /// A service was started: watch its socket and say so.
    fn started(&mut self, kind: Kind) {
        let token = if kind == Kind::Agent { token::AGENT } else { token::LAUNCHER };
        let watched = self.channel(kind).map(|channel| watch(&self.epoll, channel, token));
        if let Some(Err(error)) = watched {
            self.service(kind).kill(&format!("its socket is not watched: {error}"));
        }
        if kind == Kind::Agent {
            self.blocked = false;
        }
        self.outbox.services_changed();
    }

    /// Reads what a service has sent, up to a bound.
    fn drain(&mut self, kind: Kind) {
        for _ in 0..DRAIN_MAX {
            let Some(received) = self.channel(kind).map(Channel::receive_to_init) else { return };
            match received {
                Ok(Some(message)) => self.take(kind, message),
                Ok(None) => return self.service(kind).kill("it closed its control socket"),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.service(kind).kill(&format!("its control socket: {error}")),
            }
        }
    }

    fn take(&mut self, kind: Kind, message: ToInit) {
        match message {
            ToInit::Register { name, pid, pidfd } => {
                if let Err(error) = self.ledger.register(name.clone(), pid, pidfd) {
                    warn!("{name} is not registered: {error}, continuing");
                }
            }
            _ if kind == Kind::Launcher => self.launcher.kill("it sent what only the agent may send"),
            ToInit::Hello => self.outbox.hello(),
            ToInit::Acknowledge { name } => self.ledger.acknowledge(&name),
            ToInit::Store { name, fds } => {
                if let Err(error) = self.store.store(name.clone(), fds) {
                    warn!("descriptors of {name} are not stored: {error}, continuing");
                }
            }
            ToInit::Remove { name } => self.store.remove(&name),
            ToInit::Alive { ready } => self.agent.heard(Instant::now(), ready),
            ToInit::Power(action) => self.finish = Some(action),
        }
    }

    /// Sends the agent what it has not been told, as far as its socket takes it.
    fn tell_agent(&mut self) {
        let services = [self.agent.health(), self.launcher.health()];
        for _ in 0..SEND_MAX {
            let Some(channel) = self.agent.process.as_ref().and_then(|process| process.channel.as_ref())
            else {
                return;
            };
            let sources = Sources { store: &self.store, ledger: &self.ledger, services: &services };
            let (message, step) = match self.outbox.next(sources) {
                Ok(Some(next)) => next,
                Ok(None) => return self.watch_writable(false),
                Err(error) => return self.agent.kill(&format!("it cannot be answered: {error}")),
            };
            match channel.send_from_init(&message) {
                Ok(()) => self.outbox.sent(step),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return self.watch_writable(true),
                // It is gone or as good as gone; its end will be reaped.
                Err(error) => return self.agent.kill(&format!("its control socket: {error}")),
            }
        }
        // More to say: the socket is writable, so the loop comes back at once.
        self.watch_writable(true);
    }

    fn watch_writable(&mut self, blocked: bool) {
        if self.blocked == blocked {
            return;
        }
        let Some(channel) = self.channel(Kind::Agent) else { return };
        let flags =
            if blocked { epoll::EventFlags::IN | epoll::EventFlags::OUT } else { epoll::EventFlags::IN };
        match epoll::modify(&self.epoll, channel, epoll::EventData::new_u64(token::AGENT), flags) {
            Ok(()) => self.blocked = blocked,
            Err(error) => self.agent.kill(&format!("its socket is not watched: {error}")),
        }
    }

    /// Reaps children in the order that keeps exits behind their registrations.
    fn reap(&mut self) {
        for _ in 0..REAP_MAX {
            let Ok(Some(seen)) = peek_ended() else {
                self.reaping = false;
                return;
            };
            self.drain(Kind::Launcher);
            self.drain(Kind::Agent);
            // Exactly the one that had ended before the sockets were drained: another may not be registered yet.
            self.reap_one(seen.pid);
            if !self.reaping {
                return;
            }
        }
    }

    fn reap_one(&mut self, pid: i32) {
        let ended = match reap(pid) {
            Ok(Some(ended)) => ended,
            Ok(None) => return,
            Err(error) => {
                // Until the next child ends: trying at once would only repeat it.
                self.reaping = false;
                return warn!("process {pid} is not reaped: {error}, continuing");
            }
        };
        let now = clock_gettime(ClockId::Realtime);
        let at_unix_ns = now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec);
        self.ledger.ended(ended, at_unix_ns);
        self.report_dropped();
        for kind in [Kind::Agent, Kind::Launcher] {
            if self.service(kind).process.as_ref().is_some_and(|process| process.pid == ended.pid) {
                self.service(kind).ended(Instant::now(), ended.code, ended.signal);
                self.outbox.services_changed();
            }
        }
        if self.loader == Some(ended.pid) {
            self.loader = None;
        }
    }

    fn report_dropped(&mut self) {
        let dropped = self.ledger.dropped();
        if dropped > self.dropped {
            self.dropped = dropped;
            warn!("{dropped} exits were forgotten, nobody acknowledged them, continuing");
        }
    }

    fn read_signals(&mut self) {
        while let Some(asked) = self.signals.next() {
            match asked {
                Asked::Reap => self.reaping = true,
                Asked::Power(action) => self.power(action, "a signal"),
            }
        }
    }

    /// Somebody wants the machine down. Asked twice, there is no more patience with the containers.
    fn power(&mut self, action: PowerAction, who: &str) {
        if let Some(stopping) = &self.stopping {
            warn!("{who} asked again: going down at once");
            self.finish = Some(stopping.action);
            return;
        }
        let text = match action {
            PowerAction::Off => "power off",
            PowerAction::Reboot => "reboot",
        };
        note!("{who} asked for {text}; {} processes of containers run", self.ledger.running_count());
        let limit = Duration::from_secs(STOP_DEADLINE_S.into());
        let deadline = Instant::now().checked_add(limit).unwrap_or_else(Instant::now);
        self.stopping = Some(Stopping { action, deadline });
        self.outbox.shutdown(action, STOP_DEADLINE_S);
    }

    fn read_buttons(&mut self) {
        let mut presses = 0_usize;
        self.buttons.retain_mut(|button| match button.presses() {
            Some(count) => {
                presses = presses.saturating_add(count);
                true
            }
            None => false,
        });
        for _ in 0..presses.min(2) {
            self.power(PowerAction::Off, "the power button");
        }
    }

    fn add_button(&mut self, button: Button) {
        if self.buttons.len() >= BUTTONS_MAX || self.buttons.iter().any(|known| known.name == button.name) {
            return;
        }
        match watch(&self.epoll, &button, token::BUTTON) {
            Ok(()) => self.buttons.push(button),
            Err(error) => warn!("power button {} is not watched: {error}, continuing", button.name),
        }
    }

    fn read_uevents(&mut self) {
        for _ in 0..UEVENTS_MAX {
            match self.uevents.as_ref().map(Uevents::next) {
                Some(Ok(Some(event))) => self.device(event),
                Some(Err(error)) => {
                    warn!("device events were lost: {error}; looking at all devices again");
                    self.rescan = self.modular;
                }
                Some(Ok(None)) | None => return,
            }
        }
    }

    fn device(&mut self, event: Uevent) {
        if !event.added() {
            return;
        }
        match event.subsystem.as_str() {
            "input" => {
                let button = event.devname.strip_prefix("input/").filter(|name| name.starts_with("event"));
                if let Some(button) = button.and_then(Button::open) {
                    self.add_button(button);
                }
            }
            "watchdog" if self.watchdog.is_none() => self.watchdog = Watchdog::open(),
            _ => {}
        }
        // While the boot's loader walks the devices it finds them itself.
        if self.modular
            && !event.modalias.is_empty()
            && self.aliases.len() < ALIASES_MAX
            && !self.aliases.contains(&event.modalias)
        {
            self.aliases.push(event.modalias);
        }
    }
}

fn watch(epoll: &OwnedFd, fd: impl AsFd, token: u64) -> io::Result<()> {
    epoll::add(epoll, fd, epoll::EventData::new_u64(token), epoll::EventFlags::IN)?;
    Ok(())
}
