//! From a create request and its image to a container's record: defaults, the image's values, names.

use std::collections::BTreeMap;

use berth_api::docker::Empty;
use berth_api::docker::containers::{ContainerConfig, EndpointSettings, HealthConfig, HostConfig};
use berth_image::{Image, RunConfig};
use berth_runtime::{capability, signal};

use crate::command::{Create, Refusal};
use crate::config::legal_name;
use crate::networks::{DEFAULT, Networks, wanted_ports};
use crate::start;
use crate::store::{Record, Status};
use crate::volumes::Volumes;

/// The record format written.
const FORMAT: u32 = 1;
/// Longest container name, bytes: it is also a DNS label's neighbour and a log word.
const NAME_MAX: usize = 255;

/// Checks a name by Docker's rule.
pub(crate) fn check_name(name: &str) -> Result<&str, Refusal> {
    let name = name.strip_prefix('/').unwrap_or(name);
    if legal_name(name) && name.len() <= NAME_MAX {
        return Ok(name);
    }
    Err(Refusal::Invalid(format!(
        "Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
    )))
}

/// The record of a new container.
pub(crate) fn record(
    create: Create,
    id: String,
    name: String,
    image: &Image,
    volumes: &Volumes,
    networks: &Networks,
    now_ns: i64,
) -> Result<Record, Refusal> {
    let mut config = create.docker.config;
    let mut host = create.docker.host_config;
    merge(&mut config, &image.config.config);
    let args = start::program(config.entrypoint.as_deref(), config.cmd.as_deref());
    if args.first().is_none_or(String::is_empty) {
        return Err(Refusal::Invalid("no command specified".to_owned()));
    }
    if config.hostname.is_empty() {
        config.hostname = crate::id::short(&id).to_owned();
    }
    check(&config, &host)?;
    fill(&mut host);
    let wanted = create.docker.networking_config.endpoints_config.unwrap_or_default();
    let networks = wanted_networks(&mut host, wanted, networks)?;
    let mounts = start::resolve_mounts(&config, &host, volumes)?;
    Ok(Record {
        format: FORMAT,
        id,
        name,
        created_ns: now_ns,
        image_name: create.image,
        image_id: image.id.to_string(),
        args,
        config,
        host_config: host,
        networks,
        mounts,
        unit: create.unit,
        run: 0,
        status: Status::Created { error: None, code: 0 },
        attempt: None,
        stopped_by_user: false,
        interrupted: false,
        restart_count: 0,
    })
}

/// Fills in what the request left to the image.
fn merge(config: &mut ContainerConfig, image: &RunConfig) {
    // An entrypoint of one's own drops the image's command; `[""]` and `[]` reset the entrypoint.
    match &config.entrypoint {
        None => {
            if config.cmd.is_none() {
                config.cmd.clone_from(&image.cmd);
            }
            config.entrypoint.clone_from(&image.entrypoint);
        }
        Some(own) if own.iter().all(String::is_empty) => config.entrypoint = None,
        Some(_) => {}
    }
    let mut env = image.env.clone();
    for entry in config.env.iter().flatten() {
        let key = entry.split('=').next().unwrap_or_default();
        env.retain(|old| old.split('=').next() != Some(key));
        env.push(entry.clone());
    }
    config.env = Some(env);
    let mut labels = image.labels.clone();
    labels.extend(config.labels.take().unwrap_or_default());
    config.labels = Some(labels);
    let ports = image.exposed_ports.keys().map(|key| (key.clone(), Empty {}));
    let ports: BTreeMap<_, _> = ports.chain(config.exposed_ports.take().unwrap_or_default()).collect();
    config.exposed_ports = (!ports.is_empty()).then_some(ports);
    let paths = image.volumes.keys().map(|key| (key.clone(), Empty {}));
    let paths: BTreeMap<_, _> = paths.chain(config.volumes.take().unwrap_or_default()).collect();
    config.volumes = (!paths.is_empty()).then_some(paths);
    for (own, image) in [
        (&mut config.user, &image.user),
        (&mut config.working_dir, &image.working_dir),
        (&mut config.stop_signal, &image.stop_signal),
    ] {
        if own.is_empty() {
            own.clone_from(image);
        }
    }
    if config.healthcheck.as_ref().is_none_or(|check| check.test.as_ref().is_none_or(Vec::is_empty)) {
        let inherited = image.healthcheck.as_ref().map(|check| HealthConfig {
            test: Some(check.test.clone()),
            interval: check.interval,
            timeout: check.timeout,
            start_period: check.start_period,
            start_interval: check.start_interval,
            retries: check.retries,
        });
        config.healthcheck = inherited.or_else(|| config.healthcheck.take());
    }
}

/// Refuses what cannot be started later.
fn check(config: &ContainerConfig, host: &HostConfig) -> Result<(), Refusal> {
    if !config.stop_signal.is_empty() && signal::parse(&config.stop_signal).is_none() {
        return Err(Refusal::Invalid(format!("Invalid signal: {}", config.stop_signal)));
    }
    if let Some(bad) = config.env.iter().flatten().find(|entry| entry.is_empty() || entry.starts_with('=')) {
        return Err(Refusal::Invalid(format!("invalid environment variable: {bad}")));
    }
    start::check_bounds(host).map_err(Refusal::Invalid)?;
    wanted_ports(config, host).map_err(Refusal::Invalid)?;
    for (list, what) in [(&host.cap_add, "CapAdd"), (&host.cap_drop, "CapDrop")] {
        let list = list.as_deref().unwrap_or_default();
        if let Err(error) = capability::from_add_drop(list, &[], false) {
            return Err(Refusal::Invalid(format!("invalid {what}: unknown capability: {:?}", error.0)));
        }
    }
    let policy = &host.restart_policy;
    match policy.name.as_str() {
        "" | "no" | "always" | "unless-stopped" | "on-failure" => {}
        other => {
            return Err(Refusal::Invalid(format!(
                "invalid restart policy: unknown policy '{other}'; use one of 'no', 'always', 'on-failure', or \
                 'unless-stopped'"
            )));
        }
    }
    if policy.maximum_retry_count != 0 && policy.name != "on-failure" {
        return Err(Refusal::Invalid(
            "invalid restart policy: maximum retry count can only be used with 'on-failure'".to_owned(),
        ));
    }
    if host.auto_remove && !matches!(policy.name.as_str(), "" | "no") {
        return Err(Refusal::Invalid("can't create 'AutoRemove' container with restart policy".to_owned()));
    }
    if host.ipc_mode.starts_with("container:") || host.pid_mode.starts_with("container:") {
        return Err(Refusal::Unsupported("joining another container's IPC or PID namespace is not offered".to_owned()));
    }
    Ok(())
}

/// Docker's defaults where the request said nothing.
fn fill(host: &mut HostConfig) {
    if host.log_config.kind.is_empty() {
        host.log_config.kind = "json-file".to_owned();
        host.log_config.config.get_or_insert_default();
    }
    if host.restart_policy.name.is_empty() {
        host.restart_policy.name = "no".to_owned();
    }
    if host.shm_size == 0 {
        host.shm_size = 64 << 20;
    }
    if host.ipc_mode.is_empty() {
        host.ipc_mode = "private".to_owned();
    }
    if host.cgroupns_mode.is_empty() {
        host.cgroupns_mode = "private".to_owned();
    }
    if host.runtime.is_empty() {
        host.runtime = "runc".to_owned();
    }
}

/// The networks a container shall be in, by their names.
fn wanted_networks(
    host: &mut HostConfig,
    wanted: BTreeMap<String, Option<EndpointSettings>>,
    networks: &Networks,
) -> Result<BTreeMap<String, EndpointSettings>, Refusal> {
    if matches!(host.network_mode.as_str(), "" | "default") {
        host.network_mode = DEFAULT.to_owned();
    }
    let mode = host.network_mode.clone();
    if matches!(mode.as_str(), "none" | "host") || mode.starts_with("container:") {
        return Ok(BTreeMap::new());
    }
    // A network that does not exist is refused at the start, as Docker does: it may be made until then.
    let name = |text: &str| {
        let text = if text == "default" { DEFAULT } else { text };
        networks.resolve(text).unwrap_or_else(|| text.to_owned())
    };
    let mut all = BTreeMap::from([(name(&mode), EndpointSettings::default())]);
    for (network, settings) in wanted {
        let settings = settings.unwrap_or_default();
        let network = name(&network);
        if network == DEFAULT && settings.aliases.as_ref().is_some_and(|aliases| !aliases.is_empty()) {
            return Err(Refusal::Invalid(
                "invalid config for network bridge: invalid endpoint settings:\nnetwork-scoped alias is supported \
                 only for containers in user defined networks"
                    .to_owned(),
            ));
        }
        all.insert(network, settings);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(words: &[&str]) -> Option<Vec<String>> {
        Some(words.iter().map(|word| (*word).to_owned()).collect())
    }

    #[test]
    fn entrypoint_and_command_follow_docker() {
        let image = RunConfig { entrypoint: list(&["ie"]), cmd: list(&["ic"]), ..RunConfig::default() };
        let cases = [
            (None, None, vec!["ie", "ic"]),
            (None, list(&["c"]), vec!["ie", "c"]),
            (list(&["e"]), None, vec!["e"]),
            (list(&["e"]), list(&["c"]), vec!["e", "c"]),
            (list(&[""]), list(&["c"]), vec!["c"]),
            (list(&[]), list(&["c"]), vec!["c"]),
        ];
        for (entrypoint, cmd, expected) in cases {
            let mut config = ContainerConfig { entrypoint, cmd, ..ContainerConfig::default() };
            merge(&mut config, &image);
            assert_eq!(start::program(config.entrypoint.as_deref(), config.cmd.as_deref()), expected);
        }
    }

    #[test]
    fn the_requests_environment_wins_over_the_images() {
        let image = RunConfig { env: list(&["A=1", "B=1"]).unwrap_or_default(), ..RunConfig::default() };
        let mut config = ContainerConfig { env: list(&["B=2", "C"]), ..ContainerConfig::default() };
        merge(&mut config, &image);
        assert_eq!(config.env, list(&["A=1", "B=2", "C"]));
    }

    #[test]
    fn impossible_policies_are_refused() {
        let host = |name: &str, count, auto_remove| {
            let mut host = HostConfig { auto_remove, ..HostConfig::default() };
            host.restart_policy.name = name.to_owned();
            host.restart_policy.maximum_retry_count = count;
            check(&ContainerConfig::default(), &host).is_ok()
        };
        assert!(host("always", 0, false) && host("on-failure", 3, false) && host("", 0, true));
        assert!(!host("always", 3, false) && !host("sometimes", 0, false) && !host("always", 0, true));
    }
}
