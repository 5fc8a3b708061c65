//! Which containers there are: create, find, list, rename, update, remove.

use std::collections::BTreeMap;

use berth_api::docker::containers::UpdateBody;
use berth_api::docker::volumes::{UsageData, Volume};
use tokio::sync::oneshot;

use super::container::{Container, Next};
use super::view::last_end;
use super::{Happening, Owner, Views, save};
use crate::command::{Answer, Create, Created, Id, Refusal, WaitEnd, WaitFor};
use crate::logs::{Limits, Log, now_ns};
use crate::phase::{Event as PhaseEvent, Phase};
use crate::store::{MountKind, Record, Status};
use crate::{create, id, start};

/// Most containers of one machine: each costs memory here and a line in every list.
const CONTAINERS_MAX: usize = 10_000;

impl Owner {
    pub(super) fn create(&mut self, wanted: Create) -> Result<Created, Refusal> {
        if self.going_down.is_some() {
            return Err(Refusal::Unavailable("the machine is going down".to_owned()));
        }
        if self.containers.len() >= CONTAINERS_MAX {
            return Err(Refusal::Failed(format!("there are {CONTAINERS_MAX} containers already")));
        }
        let id = id::random().map_err(|error| Refusal::Failed(error.to_string()))?;
        let name = match &wanted.name {
            Some(name) => create::check_name(name)?.to_owned(),
            None => self.free_name(&id),
        };
        self.check_free(&name)?;
        let image = self.machinery.images.find(&wanted.image);
        let image = image.map_err(|_| Refusal::NotFound(format!("No such image: {}", wanted.image)))?;
        let (volumes, networks) = (&self.machinery.volumes, &self.machinery.networks);
        let record = create::record(wanted, id.clone(), name, &image, volumes, networks, now_ns())?;
        let made = self.make(record);
        if made.is_err()
            && let Err(error) = self.machinery.store.remove(&id)
        {
            crate::log::warning!("removing a half-made container: {}, continuing", crate::log::chain(&error));
        }
        self.containers.insert(id.clone(), made?);
        self.announce(&id, "create", &[]);
        Ok(Created { id, warnings: Vec::new() })
    }

    fn make(&self, record: Record) -> Result<Container, Refusal> {
        let dir = self.machinery.store.make(&record.id);
        let dir = dir.map_err(|error| Refusal::Failed(crate::log::chain(&error)))?;
        let log = Log::open(&dir.join("log"), log_limits(&record), 0);
        let log = log.map_err(|error| Refusal::Failed(format!("make the log: {error}")))?;
        save(&self.machinery, &record)?;
        Ok(Container::new(record, log))
    }

    fn free_name(&self, id: &str) -> String {
        let names = (0..).map(|attempt| id::name(id, attempt));
        let mut free = names.take(CONTAINERS_MAX + 1).filter(|name| self.by_name(name).is_none());
        free.next().unwrap_or_else(|| id.to_owned())
    }

    fn by_name(&self, name: &str) -> Option<&Container> {
        self.containers.values().find(|container| container.record.name == name)
    }

    fn check_free(&self, name: &str) -> Result<(), Refusal> {
        match self.by_name(name) {
            None => Ok(()),
            Some(other) => Err(Refusal::Conflict(format!(
                "Conflict. The container name \"/{name}\" is already in use by container \"{}\". You have to remove \
                 (or rename) that container to be able to reuse that name.",
                other.record.id
            ))),
        }
    }

    /// By id, name (with or without slash) or unique id prefix, in Docker's order.
    pub(super) fn find(&self, text: &str) -> Result<&Container, Refusal> {
        let missing = || Refusal::NotFound(format!("No such container: {text}"));
        if let Some(container) = self.containers.get(text) {
            return Ok(container);
        }
        let name = text.strip_prefix('/').unwrap_or(text);
        if let Some(container) = self.by_name(name) {
            return Ok(container);
        }
        if text.is_empty() {
            return Err(missing());
        }
        let mut fits = self.containers.range(text.to_owned()..).take_while(|(id, _)| id.starts_with(text));
        match (fits.next(), fits.next()) {
            (Some((_, container)), None) => Ok(container),
            (Some(_), Some(_)) => {
                Err(Refusal::Invalid(format!("multiple IDs found with provided prefix: {text}")))
            }
            _ => Err(missing()),
        }
    }

    /// The container with what goes with it, by whatever names it.
    pub(super) fn get(&mut self, text: &str) -> Result<&mut Container, Refusal> {
        let id = self.find(text)?.record.id.clone();
        self.containers.get_mut(&id).ok_or_else(|| Refusal::NotFound(format!("No such container: {text}")))
    }

    /// Newest first.
    pub(super) fn list(&self) -> Views {
        let mut all: Views = self.containers.values().map(|container| container.view.clone()).collect();
        all.sort_by_key(|view| std::cmp::Reverse(view.created_ns));
        all
    }

    pub(super) fn wait(&mut self, id: &str, until: WaitFor) -> Result<oneshot::Receiver<WaitEnd>, Refusal> {
        let container = self.get(id)?;
        let (sender, receiver) = oneshot::channel();
        let rests = matches!(container.record.phase(), Phase::Created | Phase::Exited);
        if until == WaitFor::NotRunning && rests {
            let end = last_end(&container.record);
            let error = Some(end.error).filter(|error| !error.is_empty());
            // The receiver is in our hand.
            let _ = sender.send(WaitEnd { code: end.code, error });
        } else {
            container.waiters.push((until, sender));
        }
        Ok(receiver)
    }

    pub(super) fn rename(&mut self, id: &str, name: &str) -> Result<(), Refusal> {
        let name = create::check_name(name)?.to_owned();
        if self.find(id)?.record.name == name {
            return Err(Refusal::Invalid(
                "Renaming a container with the same name as its current name".to_owned(),
            ));
        }
        self.check_free(&name)?;
        let machinery = self.machinery.clone();
        let container = self.get(id)?;
        let old = std::mem::replace(&mut container.record.name, name);
        if let Err(error) = save(&machinery, &container.record) {
            container.record.name = old;
            return Err(error);
        }
        container.show();
        let id = container.record.id.clone();
        self.announce(&id, "rename", &[("oldName", format!("/{old}"))]);
        Ok(())
    }

    pub(super) fn update(&mut self, id: &str, body: &UpdateBody) -> Result<Vec<String>, Refusal> {
        let machinery = self.machinery.clone();
        let container = self.get(id)?;
        let old = container.record.clone();
        merge_update(&mut container.record.host_config, body);
        let host = &container.record.host_config;
        let changed =
            start::check_bounds(host).map_err(Refusal::Invalid).and_then(|()| match &container.live {
                Some(live) => {
                    let limits = start::limits(&container.record);
                    live.group.set(&limits).map_err(|error| Refusal::Failed(error.to_string()))
                }
                None => Ok(()),
            });
        if let Err(error) = changed.and_then(|()| save(&machinery, &container.record)) {
            container.record = old;
            return Err(error);
        }
        container.show();
        let id = container.record.id.clone();
        self.announce(&id, "update", &[]);
        Ok(Vec::new())
    }

    pub(super) fn remove(&mut self, id: &str, force: bool, volumes: bool, answer: Answer<()>) {
        let container = match self.get(id) {
            Ok(container) => container,
            Err(error) => return drop(answer.send(Err(error))),
        };
        let (id, name) = (container.record.id.clone(), container.record.name.clone());
        let phase = container.record.phase();
        let refusal = match phase {
            Phase::Removing => Some(format!("removal of container {id} is already in progress")),
            Phase::Paused if !force => Some(format!(
                "cannot remove container \"{name}\": container is paused and must be unpaused first"
            )),
            Phase::Running | Phase::Starting | Phase::Restarting if !force => Some(format!(
                "cannot remove container \"{name}\": container is {}: stop the container before removing or force \
                 remove",
                if phase == Phase::Restarting { "restarting" } else { "running" }
            )),
            _ => None,
        };
        if let Some(text) = refusal {
            return drop(answer.send(Err(Refusal::Conflict(text))));
        }
        match &mut container.next {
            Next::Remove { answers, volumes: also } => {
                *also |= volumes;
                answers.push(answer);
            }
            next => *next = Next::Remove { volumes, answers: vec![answer] },
        }
        if phase.is_live() {
            container.record.stopped_by_user = true;
            if let Some(live) = &container.live
                && let Err(error) = live.group.kill()
            {
                crate::log::warning!("killing {name}: {error}, continuing");
            }
            if phase == Phase::Starting {
                container.stop_after_start = Some((9, None));
            }
        } else if container.leaving.is_over() {
            self.remove_now(&id);
        }
    }

    /// Removes a container of which nothing is left in the kernel.
    pub(super) fn remove_now(&mut self, id: &str) {
        let machinery = self.machinery.clone();
        let Some(container) = self.containers.get_mut(id) else { return };
        container.disarm();
        let Some(Phase::Removing) = container.record.phase().after(PhaseEvent::Remove) else { return };
        let end = last_end(&container.record);
        container.tell_waiters(
            &[WaitFor::NotRunning, WaitFor::NextExit],
            &WaitEnd { code: end.code, error: None },
        );
        let with_volumes = match &container.next {
            Next::Remove { volumes, .. } => *volumes,
            _ => false,
        };
        // `--rm` takes anonymous volumes along.
        let with_volumes = with_volumes || container.record.host_config.auto_remove;
        let mut anonymous = Vec::new();
        for mount in &container.record.mounts {
            if let MountKind::Volume { name, anonymous: true, .. } = &mount.kind {
                anonymous.push(name.clone());
            }
        }
        container.removed_code = end.code;
        container.record.status = Status::Removing;
        container.show();
        if let Err(error) = save(&machinery, &container.record) {
            crate::log::warning!("{error}, continuing");
        }
        let id = id.to_owned();
        self.spawn(move || {
            let removed = machinery.store.remove(&id).map_err(|error| crate::log::chain(&error));
            if removed.is_ok() && with_volumes {
                for name in anonymous {
                    if let Err(error) = machinery.volumes.remove(&name) {
                        crate::log::warning!("volume {name}: {error}, continuing");
                    }
                }
            }
            Happening::Removed(id, removed)
        });
    }

    /// A container's files are gone, or not.
    pub(super) fn removed(&mut self, id: &str, result: Result<(), String>) {
        if let Err(error) = result {
            let Some(container) = self.containers.get_mut(id) else { return };
            crate::log::error!("removing {}: {error}", container.record.name);
            if let Next::Remove { answers, .. } = std::mem::take(&mut container.next) {
                for answer in answers {
                    let _ = answer.send(Err(Refusal::Failed(error.clone())));
                }
            }
            // It can be tried again.
            container.record.status = Status::Created { error: Some(error), code: 128 };
            container.show();
            return;
        }
        self.announce(id, "destroy", &[]);
        let Some(mut container) = self.containers.remove(id) else { return };
        container.log.close();
        let end = WaitEnd { code: container.removed_code, error: None };
        container.tell_waiters(&[WaitFor::Removed, WaitFor::NotRunning, WaitFor::NextExit], &end);
        if let Next::Remove { answers, .. } = container.next {
            for answer in answers {
                let _ = answer.send(Ok(()));
            }
        }
    }

    /// All volumes with the number of containers that use them.
    pub(super) fn volumes(&self) -> Vec<Volume> {
        let mut uses: BTreeMap<&str, i64> = BTreeMap::new();
        for mount in self.containers.values().flat_map(|container| &container.record.mounts) {
            if let MountKind::Volume { name, .. } = &mount.kind {
                *uses.entry(name).or_default() += 1;
            }
        }
        let mut all = self.machinery.volumes.list();
        for volume in &mut all {
            let ref_count = uses.get(volume.name.as_str()).copied().unwrap_or(0);
            volume.usage_data = Some(UsageData { ref_count, size: -1 });
        }
        all
    }

    /// Tells that a container's volumes are mounted, or no more.
    pub(super) fn tell_volumes(&self, id: &str, action: &str) {
        let Some(container) = self.containers.get(id) else { return };
        for mount in &container.record.mounts {
            let MountKind::Volume { name, .. } = &mount.kind else { continue };
            let more = [
                ("container", id),
                ("destination", mount.target.as_str()),
                ("propagation", ""),
                ("read/write", if mount.readonly { "false" } else { "true" }),
            ];
            let told = if action == "mount" { &more[..] } else { &more[..1] };
            self.machinery.volumes.announce(name, action, told);
        }
    }

    /// A container that uses a volume.
    pub(super) fn volume_user(&self, volume: &str) -> Option<Id> {
        let uses = |container: &&Container| {
            let named = |kind: &MountKind| matches!(kind, MountKind::Volume { name, .. } if name == volume);
            container.record.mounts.iter().any(|mount| named(&mount.kind))
        };
        self.containers.values().find(uses).map(|container| container.record.id.clone())
    }
}

/// Zero and empty mean unchanged.
fn merge_update(host: &mut berth_api::docker::containers::HostConfig, body: &UpdateBody) {
    for (own, new) in [
        (&mut host.cpu_shares, body.cpu_shares),
        (&mut host.memory, body.memory),
        (&mut host.nano_cpus, body.nano_cpus),
        (&mut host.cpu_period, body.cpu_period),
        (&mut host.cpu_quota, body.cpu_quota),
        (&mut host.memory_reservation, body.memory_reservation),
        (&mut host.memory_swap, body.memory_swap),
    ] {
        if new != 0 {
            *own = new;
        }
    }
    for (own, new) in [(&mut host.cpuset_cpus, &body.cpuset_cpus), (&mut host.cpuset_mems, &body.cpuset_mems)]
    {
        if !new.is_empty() {
            own.clone_from(new);
        }
    }
    if body.blkio_weight != 0 {
        host.blkio_weight = body.blkio_weight;
    }
    if body.pids_limit.is_some_and(|limit| limit != 0) {
        host.pids_limit = body.pids_limit;
    }
    if !body.restart_policy.name.is_empty() {
        host.restart_policy = body.restart_policy.clone();
    }
}

/// How much of a container's log is kept: Docker's `max-size` and `max-file`, else the default.
pub(super) fn log_limits(record: &Record) -> Limits {
    let mut limits = Limits::default();
    let options = record.host_config.log_config.config.as_ref();
    let option = |name: &str| options.and_then(|options| options.get(name));
    if let Some(bytes) = option("max-size").and_then(|text| size(text)) {
        limits.segment_bytes = bytes.max(4096);
    }
    if let Some(files) = option("max-file").and_then(|text| text.parse::<usize>().ok()) {
        limits.segments = files.clamp(1, 1000);
    }
    limits
}

/// `10m`, `512k`, `1g`.
fn size(text: &str) -> Option<u64> {
    let text = text.trim().trim_end_matches(['b', 'B']);
    let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let shift = match text.get(digits.len()..)?.to_ascii_lowercase().as_str() {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}
