//! What a container looks like to clients: pure functions from the owner's view to Docker's JSON.

use std::collections::BTreeMap;

use berth_api::docker::containers::{
    ContainerInspect, ContainerState, ContainerSummary, EndpointSettings, GraphDriver, HealthState,
    NetworkSettings, Port, PortBinding, PortMap, ProbeResult, SummaryHostConfig, SummaryNetworkSettings,
};

use super::size::CONTAINERS;
use crate::command::{Endpoint, State, View};
use crate::server::networks::PREDEFINED;
use crate::server::time::{NEVER, human_duration, rfc3339_nano};

/// `State.Status`: the one word for a state.
pub(crate) fn status_word(state: &State) -> &'static str {
    match state {
        State::Created { .. } => "created",
        State::Running { paused: false, .. } => "running",
        State::Running { paused: true, .. } => "paused",
        State::Restarting { .. } => "restarting",
        State::Exited(_) => "exited",
        State::Removing => "removing",
    }
}

/// The `STATUS` column of `docker ps`.
pub(crate) fn status_text(view: &View, now_ns: i64) -> String {
    let since = |then_ns: i64| human_duration(now_ns.saturating_sub(then_ns).max(0));
    match &view.state {
        State::Created { .. } => "Created".to_owned(),
        State::Running { started_ns, paused: true, .. } => format!("Up {} (Paused)", since(*started_ns)),
        State::Running { started_ns, .. } => match &view.health {
            None => format!("Up {}", since(*started_ns)),
            Some(health) if health.status == "starting" => {
                format!("Up {} (health: starting)", since(*started_ns))
            }
            Some(health) => format!("Up {} ({})", since(*started_ns), health.status),
        },
        State::Restarting { last, .. } => {
            format!("Restarting ({}) {} ago", last.code, since(last.finished_ns))
        }
        State::Exited(end) => format!("Exited ({}) {} ago", end.code, since(end.finished_ns)),
        State::Removing => "Removal In Progress".to_owned(),
    }
}

/// `State` of inspect.
pub(crate) fn state(view: &View) -> ContainerState {
    let mut out = ContainerState {
        status: status_word(&view.state).to_owned(),
        started_at: NEVER.to_owned(),
        finished_at: NEVER.to_owned(),
        health: view.health.as_ref().map(|health| HealthState {
            status: health.status.clone(),
            failing_streak: health.failing_streak,
            log: health
                .log
                .iter()
                .map(|(start_ns, end_ns, code, output)| ProbeResult {
                    start: rfc3339_nano(*start_ns),
                    end: rfc3339_nano(*end_ns),
                    exit_code: *code,
                    output: output.clone(),
                })
                .collect(),
        }),
        ..ContainerState::default()
    };
    match &view.state {
        State::Created { error, code } => {
            out.error = error.clone().unwrap_or_default();
            out.exit_code = *code;
        }
        State::Running { pid, started_ns, paused } => {
            (out.running, out.paused, out.pid) = (true, *paused, *pid);
            out.started_at = rfc3339_nano(*started_ns);
        }
        State::Restarting { last, .. } | State::Exited(last) => {
            // The reference engine counts a container that waits for its restart as running.
            out.restarting = matches!(view.state, State::Restarting { .. });
            out.running = out.restarting;
            (out.oom_killed, out.exit_code) = (last.oom_killed, last.code);
            out.error.clone_from(&last.error);
            out.started_at = rfc3339_nano(last.started_ns);
            out.finished_at = rfc3339_nano(last.finished_ns);
        }
        State::Removing => {}
    }
    out
}

/// `GET /containers/{id}/json`.
pub(crate) fn inspect(view: &View) -> ContainerInspect {
    let mut words = view.args.iter().cloned();
    let own = |file: &str| format!("{CONTAINERS}/{}/{file}", view.id);
    ContainerInspect {
        id: view.id.clone(),
        created: rfc3339_nano(view.created_ns),
        path: words.next().unwrap_or_default(),
        args: words.collect(),
        state: state(view),
        image: view.image_id.clone(),
        name: format!("/{}", view.name),
        restart_count: view.restart_count,
        driver: "overlay2".to_owned(),
        platform: "linux".to_owned(),
        resolv_conf_path: own("etc/resolv.conf"),
        hostname_path: own("etc/hostname"),
        hosts_path: own("etc/hosts"),
        log_path: if view.host_config.log_config.kind == "none" { String::new() } else { own("log") },
        exec_ids: (!view.exec_ids.is_empty()).then(|| view.exec_ids.clone()),
        host_config: view.host_config.clone(),
        graph_driver: GraphDriver {
            data: Some(BTreeMap::from([("ID".to_owned(), view.id.clone())])),
            name: "overlay2".to_owned(),
        },
        mounts: view.mounts.clone(),
        config: view.config.clone(),
        network_settings: network_settings(view),
        ..ContainerInspect::default()
    }
}

/// `NetworkSettings` of inspect.
pub(crate) fn network_settings(view: &View) -> NetworkSettings {
    let networks: BTreeMap<String, EndpointSettings> = view
        .networks
        .iter()
        .map(|(name, endpoint)| (name.clone(), endpoint_settings(name, endpoint)))
        .collect();
    let mut out = NetworkSettings { ports: port_map(view), ..NetworkSettings::default() };
    if let Some(bridge) = networks.get("bridge") {
        out.endpoint_id.clone_from(&bridge.endpoint_id);
        out.gateway.clone_from(&bridge.gateway);
        out.ip_address.clone_from(&bridge.ip_address);
        out.ip_prefix_len = bridge.ip_prefix_len;
        out.ipv6_gateway.clone_from(&bridge.ipv6_gateway);
        out.global_ipv6_address.clone_from(&bridge.global_ipv6_address);
        out.global_ipv6_prefix_len = bridge.global_ipv6_prefix_len;
        out.mac_address.clone_from(&bridge.mac_address);
    }
    if let State::Running { pid, .. } = view.state {
        out.sandbox_id.clone_from(&view.id);
        out.sandbox_key = format!("/proc/{pid}/ns/net");
    }
    out.networks = networks;
    out
}

fn port_map(view: &View) -> PortMap {
    if !matches!(view.state, State::Running { .. }) {
        return PortMap::new();
    }
    let bindings = |list: &Vec<(String, u16)>| {
        let binding =
            |(ip, port): &(String, u16)| PortBinding { host_ip: ip.clone(), host_port: port.to_string() };
        (!list.is_empty()).then(|| list.iter().map(binding).collect())
    };
    view.ports.iter().map(|(port, list)| (port.clone(), bindings(list))).collect()
}

fn endpoint_settings(network: &str, endpoint: &Endpoint) -> EndpointSettings {
    let list = |values: &Vec<String>| (!values.is_empty()).then(|| values.clone());
    let (ip6, prefix6, gateway6) = endpoint.ip6.clone().unwrap_or_default();
    EndpointSettings {
        ipam_config: endpoint.wanted.clone(),
        aliases: list(&endpoint.aliases),
        // Names are answered on networks that users made only.
        dns_names: list(&endpoint.dns_names).filter(|_| !PREDEFINED.contains(&network)),
        links: endpoint.asked.links.clone(),
        driver_opts: endpoint.asked.driver_opts.clone(),
        gw_priority: endpoint.asked.gw_priority,
        // What was asked for is shown of a container that does not run, too.
        mac_address: if endpoint.mac.is_empty() { &endpoint.asked.mac_address } else { &endpoint.mac }
            .clone(),
        network_id: endpoint.network_id.clone(),
        endpoint_id: endpoint.endpoint_id.clone(),
        gateway: endpoint.gateway.clone(),
        ip_address: endpoint.ip.clone(),
        ip_prefix_len: endpoint.prefix,
        ipv6_gateway: gateway6,
        global_ipv6_address: ip6,
        global_ipv6_prefix_len: prefix6,
    }
}

/// An entry of `GET /containers/json`.
pub(crate) fn summary(view: &View, now_ns: i64) -> ContainerSummary {
    let networks =
        view.networks.iter().map(|(name, endpoint)| (name.clone(), endpoint_settings(name, endpoint)));
    let mut mounts = view.mounts.clone();
    mounts.sort_by(|a, b| a.destination.cmp(&b.destination));
    ContainerSummary {
        id: view.id.clone(),
        names: vec![format!("/{}", view.name)],
        image: view.image_name.clone(),
        image_id: view.image_id.clone(),
        command: command_text(&view.args),
        created: view.created_ns.div_euclid(1_000_000_000),
        ports: ports(view),
        labels: view.config.labels.clone().unwrap_or_default(),
        state: status_word(&view.state).to_owned(),
        status: status_text(view, now_ns),
        host_config: SummaryHostConfig {
            network_mode: view.host_config.network_mode.clone(),
            annotations: view.host_config.annotations.clone(),
        },
        network_settings: SummaryNetworkSettings { networks: networks.collect() },
        mounts,
        ..ContainerSummary::default()
    }
}

fn command_text(words: &[String]) -> String {
    let Some((first, rest)) = words.split_first() else { return String::new() };
    let mut text = first.clone();
    for word in rest {
        text.push(' ');
        if word.contains(' ') {
            text.push('\'');
            text.push_str(word);
            text.push('\'');
        } else {
            text.push_str(word);
        }
    }
    text
}

/// `Ports` of a list entry: one per host address, one without for a port that is only exposed.
pub(crate) fn ports(view: &View) -> Vec<Port> {
    if !matches!(view.state, State::Running { .. }) {
        return Vec::new();
    }
    let mut out = Vec::new();
    for (name, bindings) in &view.ports {
        let (number, kind) = name.split_once('/').unwrap_or((name, "tcp"));
        let Ok(private_port) = number.parse() else { continue };
        let port = Port { private_port, kind: kind.to_owned(), ..Port::default() };
        if bindings.is_empty() {
            out.push(port.clone());
        }
        out.extend(bindings.iter().map(|(ip, public_port)| Port {
            ip: ip.clone(),
            public_port: *public_port,
            ..port.clone()
        }));
    }
    out.sort_by(|a, b| (a.private_port, &a.kind, &a.ip).cmp(&(b.private_port, &b.kind, &b.ip)));
    out
}
