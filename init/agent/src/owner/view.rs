//! A container as others see it.

use std::collections::{BTreeMap, BTreeSet};

use berth_api::docker::containers::MountPoint;

use crate::command::{Ended, Endpoint, Health, Id, State, View};
use crate::store::{MountKind, MountRecord, Record, Status};

/// The view of a record.
pub(super) fn of(record: &Record, execs: &BTreeSet<Id>, health: Option<&Health>) -> View {
    View {
        id: record.id.clone(),
        name: record.name.clone(),
        created_ns: record.created_ns,
        state: state(record),
        image_name: record.image_name.clone(),
        image_id: record.image_id.clone(),
        args: record.args.clone(),
        config: record.config.clone(),
        host_config: record.host_config.clone(),
        networks: networks(record),
        ports: ports(record),
        mounts: record.mounts.iter().filter_map(mount).collect(),
        restart_count: record.restart_count,
        health: health.cloned(),
        exec_ids: execs.iter().cloned().collect(),
        unit: record.unit.clone(),
    }
}

fn state(record: &Record) -> State {
    match &record.status {
        Status::Created { error, code } => State::Created { error: error.clone(), code: *code },
        Status::Running(run) => {
            State::Running { pid: run.pid, started_ns: run.started_ns, paused: run.paused }
        }
        Status::Restarting { last, next_ns, .. } => {
            State::Restarting { last: last.clone(), next_ns: *next_ns }
        }
        Status::Exited(ended) => State::Exited(ended.clone()),
        Status::Removing => State::Removing,
    }
}

/// How the last run ended, for those who wait for it.
pub(super) fn last_end(record: &Record) -> Ended {
    match &record.status {
        Status::Exited(ended) | Status::Restarting { last: ended, .. } => ended.clone(),
        Status::Created { error, code } => Ended {
            code: *code,
            oom_killed: false,
            started_ns: 0,
            finished_ns: 0,
            error: error.clone().unwrap_or_default(),
        },
        Status::Running(_) | Status::Removing => {
            Ended { code: 0, oom_killed: false, started_ns: 0, finished_ns: 0, error: String::new() }
        }
    }
}

fn networks(record: &Record) -> BTreeMap<String, Endpoint> {
    let running = record.running();
    let wanted = record.networks.iter().map(|(name, settings)| {
        let aliases = settings.aliases.clone().unwrap_or_default();
        let place = running.and_then(|run| run.endpoints.get(name)).cloned().unwrap_or_default();
        let ip6 = (!place.ip6.is_empty()).then_some((place.ip6, place.prefix6, place.gateway6));
        let endpoint = Endpoint {
            network_id: place.network_id,
            endpoint_id: place.endpoint_id,
            ip: place.ip,
            prefix: place.prefix,
            gateway: place.gateway,
            mac: place.mac,
            ip6,
            wanted: settings.ipam_config.clone(),
            asked: settings.clone(),
            aliases,
            dns_names: record.names_in(name),
        };
        (name.clone(), endpoint)
    });
    let mut all: BTreeMap<_, _> = wanted.collect();
    let mode = record.host_config.network_mode.as_str();
    if matches!(mode, "host" | "none") {
        all.insert(mode.to_owned(), Endpoint::default());
    }
    all
}

fn ports(record: &Record) -> BTreeMap<String, Vec<(String, u16)>> {
    let Some(run) = record.running() else { return BTreeMap::new() };
    let exposed = record.config.exposed_ports.iter().flatten().map(|(key, _)| (key.clone(), Vec::new()));
    let mut all: BTreeMap<String, Vec<(String, u16)>> = exposed.collect();
    for (key, ip, port) in run.endpoints.values().flat_map(|endpoint| &endpoint.ports) {
        all.entry(key.clone()).or_default().push((ip.clone(), *port));
    }
    all
}

fn mount(mount: &MountRecord) -> Option<MountPoint> {
    let base = MountPoint {
        destination: mount.target.clone(),
        mode: mount.mode.clone(),
        rw: !mount.readonly,
        ..MountPoint::default()
    };
    match &mount.kind {
        MountKind::Volume { name, .. } => Some(MountPoint {
            kind: "volume".to_owned(),
            name: name.clone(),
            source: format!("/var/lib/berth/volumes/{name}/_data"),
            driver: "local".to_owned(),
            ..base
        }),
        MountKind::Bind { source, slave, .. } => Some(MountPoint {
            kind: "bind".to_owned(),
            source: source.clone(),
            propagation: if *slave { "rslave" } else { "rprivate" }.to_owned(),
            ..base
        }),
        // Docker lists tmpfs mounts of `Mounts` only, not those of `Tmpfs`, which say more in `HostConfig`.
        MountKind::Tmpfs { .. } => None,
    }
}
