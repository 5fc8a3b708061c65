//! From a container's record to a running process, in visible steps, each undone when a later one fails.
//!
//! Everything here blocks and runs on a blocking thread; the owner gets the result as a message.

mod bounds;
mod devices;
mod error;
mod etc;
mod mounts;
mod plan;
mod streams;

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use berth_image::Store as ImageStore;
use berth_runtime::cgroup::Group;

pub(crate) use bounds::{check as check_bounds, limits};
pub(crate) use error::StartError;
pub(crate) use etc::change as change_etc;
pub(crate) use mounts::resolve as resolve_mounts;
pub(crate) use plan::{ended, environment, program, user_process};
pub(crate) use streams::{Ends, input_name, pipes, streams_name};

use crate::files::hold;
use crate::init_link::Init;
use crate::launcher::{self, OwnedSlot, Slots};
use crate::networks::{Member, Networks};
use crate::store::{Attempt, EndpointRecord, Record, Store};
use crate::volumes::Volumes;

/// What starting needs of the machine.
#[derive(Clone)]
pub(crate) struct Machinery {
    /// init.
    pub(crate) init: Init,
    /// Namespaces.
    pub(crate) slots: Slots,
    /// Networks.
    pub(crate) networks: Arc<Networks>,
    /// Volumes.
    pub(crate) volumes: Arc<Volumes>,
    /// Images.
    pub(crate) images: ImageStore,
    /// Containers' directories.
    pub(crate) store: Store,
    /// The cgroup that containers' cgroups are made in.
    pub(crate) cgroups: Arc<OwnedFd>,
}

/// Network namespace of another container, for `--network container:…`.
#[derive(Debug)]
pub(crate) struct Joined {
    /// Pidfd of that container's first process.
    pub(crate) pidfd: OwnedFd,
    /// Its pid.
    pub(crate) pid: i32,
    /// Its `/etc` files.
    pub(crate) id: String,
}

/// A container that runs.
#[derive(Debug)]
pub(crate) struct Launched {
    /// Host pid.
    pub(crate) pid: i32,
    /// Its pidfd.
    pub(crate) pidfd: OwnedFd,
    /// Our ends of its streams.
    pub(crate) ends: Ends,
    /// Its cgroup.
    pub(crate) group: Group,
    /// First host id of its user namespace.
    pub(crate) base: Option<u32>,
    /// Its places in networks, by network name.
    pub(crate) endpoints: Vec<(String, EndpointRecord)>,
}

/// How long a start waits for those who copy the stopped container's files.
const COPY_PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// Starts run `attempt.run` of a container.
pub(crate) fn start(
    machinery: &Machinery,
    record: &Record,
    attempt: &Attempt,
    joined: Option<&Joined>,
) -> Result<Launched, StartError> {
    let mut undo = Undo { machinery, record, run: attempt.run, group: None, base: None };
    match start_steps(machinery, record, attempt, joined, &mut undo) {
        Ok(launched) => Ok(launched),
        Err(error) => {
            undo.all();
            Err(error)
        }
    }
}

fn start_steps(
    machinery: &Machinery,
    record: &Record,
    attempt: &Attempt,
    joined: Option<&Joined>,
    undo: &mut Undo<'_>,
) -> Result<Launched, StartError> {
    let image = machinery.images.find(&record.image_id).map_err(|error| StartError::image(&error))?;
    let lease = machinery.images.hold(&image);
    let layers = machinery.images.layer_dirs(&image);
    let hold = hold::take(&machinery.store.dir(&record.id).join("rw"), COPY_PATIENCE)
        .map_err(StartError::io("files"))?;

    let group = Group::create(machinery.cgroups.as_fd(), &record.id).map_err(StartError::io("cgroup"))?;
    group.set(&limits(record)).map_err(StartError::io("cgroup"))?;
    undo.group = Group::open(machinery.cgroups.as_fd(), &record.id).ok();
    devices::confine(group.dir(), record)?;

    let slot = slot(machinery, record)?;
    undo.base = slot.as_ref().map(|slot| slot.base);

    let net = namespace(record, slot.as_ref(), joined)?;
    let endpoints = network(machinery, record, net.as_ref())?;
    let etc = if let Some(joined) = joined {
        machinery.store.dir(&joined.id).join("etc")
    } else {
        let links = linked(machinery, record)?;
        let dir = machinery.store.dir(&record.id);
        etc::write(&dir, record, &endpoints, &links).map_err(StartError::io("etc"))?
    };
    let streams = streams::make(record, undo.base).map_err(StartError::io("streams"))?;
    streams.keep(&machinery.init, &record.id, attempt.run).map_err(StartError::io("streams"))?;

    let places = plan::Places {
        name: record.process_name(attempt.run),
        group: &group,
        slot: slot.as_ref(),
        net: net.as_ref(),
        joined,
        layers: &layers,
        dir: machinery.store.dir(&record.id),
        etc,
        volumes: &machinery.volumes,
    };
    let (plan, fds) = plan::build(record, &places, &streams)?;
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let started = launcher::connect()
        .and_then(|mut launcher| launcher.launch(&plan, &fds))
        .map_err(StartError::launch)?;
    drop(hold);
    drop(lease);
    let ends = streams.started(started.terminal, &machinery.init, &record.id, attempt.run)?;
    let base = slot.map(|slot| slot.base);
    Ok(Launched { pid: started.pid, pidfd: started.pidfd, ends, group, base, endpoints })
}

fn slot(machinery: &Machinery, record: &Record) -> Result<Option<OwnedSlot>, StartError> {
    if plan::host_users(record) {
        return Ok(None);
    }
    machinery.slots.take().map(Some).map_err(|error| StartError::failed(crate::log::chain(&error)))
}

/// The network namespace of its own that the container gets: from the pool, or made for one with the host's users.
fn namespace(
    record: &Record,
    slot: Option<&OwnedSlot>,
    joined: Option<&Joined>,
) -> Result<Option<OwnedFd>, StartError> {
    if joined.is_some() || record.host_config.network_mode == "host" {
        return Ok(None);
    }
    let own = match slot {
        Some(slot) => slot.slot.net.as_fd().try_clone_to_owned(),
        None => berth_net::veth::namespace(),
    };
    own.map(Some).map_err(StartError::io("network namespace"))
}

/// Gives the container its networks, as its mode says.
fn network(
    machinery: &Machinery,
    record: &Record,
    net: Option<&OwnedFd>,
) -> Result<Vec<(String, EndpointRecord)>, StartError> {
    let Some(net) = net else { return Ok(Vec::new()) };
    if record.networks.is_empty() || record.config.network_disabled {
        berth_net::veth::prepare(net.as_fd()).map_err(|error| StartError::network(&error))?;
        return Ok(Vec::new());
    }
    let member = Member::of(record).map_err(StartError::failed)?;
    machinery.networks.join(&member, net.as_fd()).map_err(|error| StartError::network(&error))
}

/// The containers this one has links to on the default network.
fn linked(machinery: &Machinery, record: &Record) -> Result<Vec<(IpAddr, String)>, StartError> {
    let member = Member::of(record).map_err(StartError::failed)?;
    machinery.networks.linked(&member).map_err(|error| StartError::failed(error.to_string()))
}

/// What a failed start leaves, and a run that ended.
struct Undo<'a> {
    machinery: &'a Machinery,
    record: &'a Record,
    run: u32,
    group: Option<Group>,
    base: Option<u32>,
}

impl Undo<'_> {
    fn all(self) {
        clean(self.machinery, &self.record.id, self.group, self.base);
        forget_streams(&self.machinery.init, &self.record.id, self.run);
    }
}

/// Has init close a run's streams.
pub(crate) fn forget_streams(init: &Init, id: &str, run: u32) {
    init.remove(&streams_name(id, run));
    init.remove(&input_name(id, run));
}

/// Removes what a run leaves in the kernel: processes, cgroup, interfaces, addresses, ids.
pub(crate) fn clean(machinery: &Machinery, id: &str, group: Option<Group>, base: Option<u32>) {
    if let Some(group) = group
        && let Err(error) = remove_group(&group)
    {
        crate::log::warning!("cgroup of {}: {error}, continuing", crate::id::short(id));
    }
    machinery.networks.leave(id);
    if let Some(base) = base {
        machinery.slots.release(base);
    }
}

/// How long killed processes may take to go: they may sit in a disk wait.
const GONE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

fn remove_group(group: &Group) -> std::io::Result<()> {
    if group.populated()? {
        group.kill()?;
        wait_until_empty(group)?;
    }
    group.remove()
}

fn wait_until_empty(group: &Group) -> std::io::Result<()> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let events = group.events()?;
    let deadline = std::time::Instant::now() + GONE_TIMEOUT;
    while group.populated()? {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        if left.is_zero() {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        let left = Timespec::try_from(left).map_err(|_| std::io::ErrorKind::InvalidInput)?;
        poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&left))?;
        // A change is told once; the file must be read before the next one is.
        let mut text = [0; 256];
        rustix::io::pread(&events, &mut text, 0)?;
    }
    Ok(())
}
