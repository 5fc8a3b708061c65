//! After a restart: of the agent alone, when containers run on and are taken over untouched, or of the machine, when
//! nothing of a run is left and restart policies decide. Both take the same path, record by record.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};

use berth_control::Exit;
use berth_runtime::cgroup::Group;

use super::container::{Container, Leaving, Live, Next};
use super::registry::log_limits;
use super::{Owner, save};
use crate::command::Ended;
use crate::health;
use crate::init_link::Kept;
use crate::logs::{Log, now_ns};
use crate::networks::Member;
use crate::start::{self, Ends};
use crate::store::{Record, RunRecord, Status};

/// Code of a run whose end nobody saw, as Docker shows it.
const UNSEEN: i64 = 255;

impl Owner {
    /// Takes over what is on disk and what init kept. Gives the ids to start once networks are ready.
    pub(crate) fn recover(&mut self, mut kept: Kept) -> Vec<String> {
        let loaded = self.machinery.store.load();
        let (records, errors) = match loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                crate::log::error!("containers cannot be read: {}", crate::log::chain(&error));
                return Vec::new();
            }
        };
        for error in errors {
            crate::log::error!("{}, continuing without it", crate::log::chain(&error));
        }
        let mut wanted = Vec::new();
        for record in records {
            let id = record.id.clone();
            if self.take_over(record, &mut kept) {
                wanted.push(id);
            }
        }
        self.remove_strays(&kept);
        wanted
    }

    /// Takes one container over; whether it shall be started.
    fn take_over(&mut self, mut record: Record, kept: &mut Kept) -> bool {
        let id = record.id.clone();
        let dir = self.machinery.store.dir(&id);
        let log = match Log::open(&dir.join("log"), log_limits(&record), record.run) {
            Ok(log) => log,
            Err(error) => {
                crate::log::error!("log of {}: {error}, continuing without the container", record.name);
                return false;
            }
        };
        let same_boot = |boot: &str| boot == self.boot;
        // A start that was under way is undone; who asked for it got no answer.
        let half_made = record.attempt.take();
        let retry = half_made.as_ref().is_some_and(|attempt| attempt.wait_ms.is_some());
        let running = record.running().cloned();
        let on_disk = record.clone();
        let mut container = Container::new(record, log);
        if let Some(attempt) = half_made.as_ref().filter(|attempt| same_boot(&attempt.boot)) {
            self.undo(&id, attempt.run);
        }
        let mut start = retry;
        if half_made.as_ref().is_some_and(|attempt| !same_boot(&attempt.boot)) && running.is_none() {
            // Power failed between the start and its record.
            container.record.interrupted = true;
            let last = super::view::last_end(&container.record);
            container.record.status = Status::Exited(Ended { code: UNSEEN, finished_ns: now_ns(), ..last });
        }
        match running {
            Some(run) if same_boot(&run.attempt.boot) => {
                let live = self.adopt(&mut container, &run, kept);
                self.containers.insert(id.clone(), container);
                match live {
                    Some(ends) => self.copy_output(&id, run.attempt.run, ends),
                    None => self.lost(&id, &run, kept),
                }
                return false;
            }
            Some(run) => {
                container.record.interrupted = true;
                let ended = Ended {
                    code: UNSEEN,
                    oom_killed: false,
                    started_ns: run.started_ns,
                    finished_ns: now_ns(),
                    error: String::new(),
                };
                container.record.status = Status::Exited(ended);
            }
            None => {}
        }
        if let Status::Restarting { last, .. } = &container.record.status {
            container.record.status = Status::Exited(last.clone());
            start = true;
        }
        if container.record.status == Status::Removing {
            container.record.status = Status::Exited(super::view::last_end(&container.record));
            container.next = Next::Remove { volumes: false, answers: Vec::new() };
        }
        start |= self.at_boot(&container.record);
        if container.record != on_disk || half_made.is_some() {
            let saved = save(&self.machinery, &container.record);
            if let Err(error) = saved {
                crate::log::warning!("{}: {error}, continuing", container.record.name);
            }
        }
        container.show();
        self.containers.insert(id.clone(), container);
        start || self.must_go(&id)
    }

    /// A container that does not run and is to be removed: it settles when the others start.
    fn must_go(&self, id: &str) -> bool {
        let Some(container) = self.containers.get(id) else { return false };
        let auto =
            container.record.host_config.auto_remove && matches!(container.record.status, Status::Exited(_));
        auto || matches!(container.next, Next::Remove { .. })
    }

    /// Whether the machine's boot starts it.
    fn at_boot(&self, record: &Record) -> bool {
        let ran = record.run > 0 && matches!(record.status, Status::Exited(_));
        let unit = record.unit.is_some() && record.interrupted;
        // A restart of the agent alone changes nothing for a container that had ended.
        ran && self.fresh_boot
            && (unit || record.policy().at_boot(record.stopped_by_user, record.interrupted))
    }

    /// Connects to a run that goes on. Its streams, when init has them; none when it is gone.
    fn adopt(&self, container: &mut Container, run: &RunRecord, kept: &mut Kept) -> Option<Ends> {
        let record = &container.record;
        let number = run.attempt.run;
        let (_, pidfd) = kept.running.remove(&record.process_name(number))?;
        let group = match Group::open(self.machinery.cgroups.as_fd(), &record.id) {
            Ok(group) => group,
            Err(error) => {
                crate::log::error!("cgroup of {}: {error}", record.name);
                return None;
            }
        };
        let ends = Self::take_streams(record, number, kept);
        if let Some(base) = run.attempt.base {
            self.machinery.slots.adopt(base);
        }
        self.restore_places(record, run);
        crate::log::info!("container {} taken over, pid {}", record.name, run.pid);
        container.health = health::Settings::of(&record.config).map(|_| health::starting());
        container.live = Some(Live { pidfd, group });
        container.leaving = Leaving { kernel: true, output: true };
        container.log.begin(number);
        ends
    }

    fn restore_places(&self, record: &Record, run: &RunRecord) {
        let member = match Member::of(record) {
            Ok(member) => member,
            // It was read before the container started.
            Err(error) => return crate::log::error!("networks of {}: {error}", record.name),
        };
        for (network, endpoint) in &run.endpoints {
            self.machinery.networks.restore(&member, network, endpoint);
        }
    }

    fn take_streams(record: &Record, run: u32, kept: &mut Kept) -> Option<Ends> {
        let fds = kept.stored.remove(&start::streams_name(&record.id, run)).unwrap_or_default();
        let input = kept.stored.remove(&start::input_name(&record.id, run));
        let input = input.and_then(|fds| fds.into_iter().next());
        Ends::from_kept(record.config.tty, fds, input)
    }

    /// A run of this boot without process or without streams: it ended while no agent was there, or cannot be kept.
    fn lost(&mut self, id: &str, run: &RunRecord, kept: &mut Kept) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let number = run.attempt.run;
        if container.live.is_some() {
            crate::log::warning!("output of {} is lost, continuing", container.record.name);
            return;
        }
        if let Some(base) = run.attempt.base {
            self.machinery.slots.adopt(base);
        }
        let record = container.record.clone();
        container.log.begin(number);
        container.leaving = Leaving { kernel: true, output: false };
        self.restore_places(&record, run);
        let name = record.process_name(number);
        let position = kept.exited.iter().position(|exit| exit.name.as_str() == name);
        let exit = position.map(|position| kept.exited.remove(position));
        let Ok(name) = name.parse() else { return };
        let unseen = || Exit {
            name,
            pid: run.pid,
            code: i32::try_from(UNSEEN).unwrap_or(0),
            signal: 0,
            at_unix_ns: now_ns(),
        };
        let exit = exit.unwrap_or_else(unseen);
        // What it wrote before its end is still in the pipes.
        match Self::take_streams(&record, number, kept) {
            Some(ends) => {
                if let Some(container) = self.containers.get_mut(id) {
                    container.leaving.output = true;
                }
                self.copy_output(id, number, ends);
            }
            None => {
                if let Some(container) = self.containers.get_mut(id) {
                    container.log.end(number);
                }
            }
        }
        self.exited(&exit);
    }

    /// Removes what a start left that was cut short.
    fn undo(&self, id: &str, run: u32) {
        let group = Group::open(self.machinery.cgroups.as_fd(), id).ok();
        tokio::task::block_in_place(|| start::clean(&self.machinery, id, group, None));
        start::forget_streams(&self.machinery.init, id, run);
    }

    /// Removes what belongs to no container: descriptors, exits, processes, cgroups.
    fn remove_strays(&mut self, kept: &Kept) {
        let init = &self.machinery.init;
        for name in kept.stored.keys() {
            init.remove(name);
        }
        for exit in &kept.exited {
            init.acknowledge(&exit.name);
        }
        let live: BTreeSet<&str> = self
            .containers
            .values()
            .filter(|container| !container.leaving.is_over())
            .map(|container| container.record.id.as_str())
            .collect();
        for name in groups(&self.machinery.cgroups) {
            if live.contains(name.as_str()) {
                continue;
            }
            let group = Group::open(self.machinery.cgroups.as_fd(), &name).ok();
            tokio::task::block_in_place(|| start::clean(&self.machinery, &name, group, None));
        }
    }

    /// Starts, or settles, what [`Self::recover`] named. Networks are ready.
    pub(crate) fn start_recovered(&mut self, ids: &[String]) {
        for id in ids {
            if self.must_go(id) {
                self.settle(id);
            } else {
                self.begin(id, None);
            }
        }
    }
}

/// Names of the groups below the containers' group.
fn groups(parent: &OwnedFd) -> Vec<String> {
    let Ok(entries) = rustix::fs::Dir::read_from(parent) else { return Vec::new() };
    let directory = rustix::fs::FileType::Directory;
    let names = entries.flatten().filter(|entry| entry.file_type() == directory);
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name != "." && name != "..").collect()
}
