//! Views against what a real engine answered about the same container.

use std::collections::BTreeMap;

use berth_api::docker::containers::{ContainerInspect, ContainerSummary, EndpointSettings};
use serde_json::Value;

use crate::command::{Ended, Endpoint, Health, State, View};
use crate::server::containers::view;

const INSPECT: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../api/tests/goldens/responses/container-inspect.json"
));
const LIST: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../api/tests/goldens/responses/containers-json.json"));

/// What depends on where an engine keeps its files and on how it names network namespaces.
const LOCAL: [&str; 7] =
    ["GraphDriver", "HostnamePath", "HostsPath", "LogPath", "ResolvConfPath", "SizeRootFs", "SizeRw"];

fn ns(text: &str) -> i64 {
    i64::try_from(text.parse::<jiff::Timestamp>().unwrap().as_nanosecond()).unwrap()
}

fn endpoint(settings: &EndpointSettings) -> Endpoint {
    Endpoint {
        network_id: settings.network_id.clone(),
        endpoint_id: settings.endpoint_id.clone(),
        ip: settings.ip_address.clone(),
        prefix: settings.ip_prefix_len,
        gateway: settings.gateway.clone(),
        mac: settings.mac_address.clone(),
        ..Endpoint::default()
    }
}

/// The container of the recording as the owner would know it.
fn recorded() -> View {
    let golden: ContainerInspect = serde_json::from_str(INSPECT).unwrap();
    let health = golden.state.health.unwrap();
    let probe = |probe: &berth_api::docker::containers::ProbeResult| {
        (ns(&probe.start), ns(&probe.end), probe.exit_code, probe.output.clone())
    };
    let binding = |binding: &berth_api::docker::containers::PortBinding| {
        (binding.host_ip.clone(), binding.host_port.parse().unwrap())
    };
    let networks = golden.network_settings.networks.iter().map(|(name, it)| (name.clone(), endpoint(it)));
    let ports = golden.network_settings.ports.iter();
    View {
        id: golden.id,
        name: golden.name.trim_start_matches('/').to_owned(),
        created_ns: ns(&golden.created),
        state: State::Running {
            pid: golden.state.pid,
            started_ns: ns(&golden.state.started_at),
            paused: false,
        },
        image_name: golden.config.image.clone(),
        image_id: golden.image,
        args: std::iter::once(golden.path).chain(golden.args).collect(),
        networks: networks.collect(),
        ports: ports.map(|(key, list)| (key.clone(), list.iter().flatten().map(binding).collect())).collect(),
        mounts: golden.mounts,
        restart_count: 0,
        health: Some(Health {
            status: health.status,
            failing_streak: health.failing_streak,
            log: health.log.iter().map(probe).collect(),
        }),
        exec_ids: Vec::new(),
        unit: None,
        config: golden.config,
        host_config: golden.host_config,
    }
}

fn without_local(mut value: Value) -> Value {
    let entries = value.as_object_mut().unwrap();
    entries.retain(|key, _| !LOCAL.contains(&key.as_str()));
    if let Some(settings) = entries.get_mut("NetworkSettings").and_then(Value::as_object_mut) {
        settings.retain(|key, _| !key.starts_with("Sandbox"));
    }
    value
}

#[test]
fn inspect_says_what_the_real_engine_said() {
    let ours = without_local(serde_json::to_value(view::inspect(&recorded())).unwrap());
    let golden = without_local(serde_json::from_str(INSPECT).unwrap());
    for (key, value) in golden.as_object().unwrap() {
        assert_eq!(ours.get(key), Some(value), "{key}");
    }
    assert_eq!(ours.as_object().unwrap().len(), golden.as_object().unwrap().len());
}

#[test]
fn the_list_says_what_the_real_engine_said() {
    let golden: Vec<Value> = serde_json::from_str(LIST).unwrap();
    let now_ns = ns("2026-11-21T13:19:40Z");
    let ours = without_local(serde_json::to_value(view::summary(&recorded(), now_ns)).unwrap());
    assert_eq!(ours, without_local(golden[0].clone()));
}

/// Every state in its words.
#[test]
fn states_are_told_in_the_words_of_docker_ps() {
    let ended = |code| Ended {
        code,
        oom_killed: true,
        started_ns: 1,
        finished_ns: 5_000_000_000,
        error: String::new(),
    };
    let running = |paused| State::Running { pid: 7, started_ns: 2_000_000_000, paused };
    let now_ns = 7_205_000_000_000;
    let health = |status: &str| Some(Health { status: status.into(), failing_streak: 0, log: Vec::new() });
    for (state, health, text, word) in [
        (State::Created { error: None, code: 0 }, None, "Created", "created"),
        (running(false), None, "Up 2 hours", "running"),
        (running(false), health("starting"), "Up 2 hours (health: starting)", "running"),
        (running(false), health("unhealthy"), "Up 2 hours (unhealthy)", "running"),
        (running(true), health("healthy"), "Up 2 hours (Paused)", "paused"),
        (State::Exited(ended(0)), health("healthy"), "Exited (0) 2 hours ago", "exited"),
        (State::Restarting { last: ended(3), next_ns: 0 }, None, "Restarting (3) 2 hours ago", "restarting"),
        (State::Removing, None, "Removal In Progress", "removing"),
    ] {
        let view = View { state, health, ..recorded() };
        assert_eq!(view::status_text(&view, now_ns), text);
        assert_eq!(view::status_word(&view.state), word);
    }
}

/// Ports and addresses of a container that ended are not shown.
#[test]
fn a_container_that_ended_has_no_ports_and_keeps_its_times() {
    let (started_ns, finished_ns) = (1_600_000_000_000_000_000, 1_600_000_001_500_000_000);
    let end = Ended { code: 137, oom_killed: true, started_ns, finished_ns, error: String::new() };
    let view = View { state: State::Exited(end), ..recorded() };
    let ours = view::inspect(&view);
    assert_eq!(ours.network_settings.ports, BTreeMap::new());
    assert_eq!((ours.state.exit_code, ours.state.oom_killed, ours.state.pid), (137, true, 0));
    assert_eq!(ours.state.started_at, "2020-09-13T12:26:40Z");
    assert_eq!(ours.state.finished_at, "2020-09-13T12:26:41.5Z");
    let summary: ContainerSummary = view::summary(&view, finished_ns);
    assert_eq!(summary.ports, []);
}
