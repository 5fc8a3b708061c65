//! What a container may be asked to be: the reference engine's rules and words. All but one look at the request only.

use berth_api::docker::containers::{CreateBody, HealthConfig, HostConfig, RestartPolicy};

use super::mounts;
use crate::server::errors::ApiError;

type Checked = Result<(), ApiError>;

/// Least memory limit, bytes.
const MIN_MEMORY_BYTES: i64 = 6 * 1024 * 1024;
/// Shortest time of a health check, nanoseconds.
const MIN_HEALTH_NS: i64 = 1_000_000;

fn refuse<T>(message: impl Into<String>) -> Result<T, ApiError> {
    Err(ApiError::invalid(message))
}

/// A request to make a container.
pub(crate) fn create(body: &CreateBody) -> Checked {
    let (config, host) = (&body.config, &body.host_config);
    if !config.working_dir.is_empty() && !config.working_dir.starts_with('/') {
        return refuse(format!(
            "the working directory '{}' is invalid, it needs to be an absolute path",
            config.working_dir
        ));
    }
    if !config.stop_signal.is_empty() && !is_signal(&config.stop_signal) {
        return refuse(format!("invalid signal: {}", config.stop_signal));
    }
    environment(config.env.as_deref())?;
    if let Some(check) = &config.healthcheck {
        healthcheck(check)?;
    }
    for port in config.exposed_ports.iter().flat_map(|ports| ports.keys()) {
        exposed_port(port)?;
    }
    host_config(host)?;
    resources(host, false)?;
    modes(host)?;
    networking(body)?;
    mounts::check(&body.config, host)
}

fn host_config(host: &HostConfig) -> Checked {
    let policy = host.restart_policy.name.as_str();
    if host.auto_remove && !matches!(policy, "" | "no") {
        return refuse("can't create 'AutoRemove' container with restart policy");
    }
    for entry in host.extra_hosts.iter().flatten() {
        extra_host(entry)?;
    }
    port_bindings(host)?;
    restart_policy(&host.restart_policy)?;
    for (field, list) in [("CapAdd", &host.cap_add), ("CapDrop", &host.cap_drop)] {
        for name in list.iter().flatten() {
            capability(field, name)?;
        }
    }
    if !matches!(host.log_config.kind.as_str(), "" | "json-file" | "local" | "none") {
        return refuse(format!("logger: no log driver named '{}' is registered", host.log_config.kind));
    }
    if !matches!(host.isolation.as_str(), "" | "default") {
        return refuse(format!("invalid isolation '{}' on linux", host.isolation));
    }
    if host.annotations.iter().flatten().any(|(key, _)| key.is_empty()) {
        return refuse("invalid Annotations: the empty string is not permitted as an annotation key");
    }
    Ok(())
}

/// A container's name.
pub(crate) fn name(name: &str) -> Checked {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if first && name.len() > 1 && bytes.all(legal) {
        return Ok(());
    }
    refuse(format!("Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"))
}

/// Variables `NAME=value`, or `NAME` to unset one.
pub(crate) fn environment(list: Option<&[String]>) -> Checked {
    match list.unwrap_or_default().iter().find(|entry| entry.is_empty() || entry.starts_with('=')) {
        Some(entry) => refuse(format!("invalid environment variable: {entry}")),
        None => Ok(()),
    }
}

/// Whether a text names a signal.
pub(crate) fn is_signal(text: &str) -> bool {
    berth_runtime::signal::parse(text).is_some()
}

/// A platform that this machine runs.
pub(crate) fn platform(text: &str) -> Checked {
    let mut words = text.split('/');
    let os = words.next().unwrap_or_default();
    if os == "linux" || (words.next().is_none() && !os.is_empty()) {
        return Ok(());
    }
    refuse(format!("{text:?}: unknown operating system or architecture: invalid argument"))
}

fn healthcheck(check: &HealthConfig) -> Checked {
    for (field, ns) in [
        ("Interval", check.interval),
        ("Timeout", check.timeout),
        ("StartPeriod", check.start_period),
        ("StartInterval", check.start_interval),
    ] {
        if ns != 0 && ns < MIN_HEALTH_NS {
            return refuse(format!("{field} in Healthcheck cannot be less than 1ms"));
        }
    }
    if check.retries < 0 {
        return refuse("Retries in Healthcheck cannot be negative");
    }
    match check.test.as_deref().and_then(<[String]>::first).map(String::as_str) {
        None | Some("" | "NONE" | "CMD" | "CMD-SHELL") => Ok(()),
        Some(other) => refuse(format!("Unknown type {other:?} in Healthcheck")),
    }
}

fn exposed_port(text: &str) -> Checked {
    let (range, kind) = text.split_once('/').unwrap_or((text, "tcp"));
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let known = matches!(kind, "tcp" | "udp" | "sctp");
    if known && first.parse::<u16>().is_ok() && last.parse::<u16>().is_ok() {
        return Ok(());
    }
    refuse(format!("invalid port specification: {text:?}"))
}

fn port_bindings(host: &HostConfig) -> Checked {
    for (port, bindings) in host.port_bindings.iter().flatten() {
        let (number, kind) = port.split_once('/').unwrap_or((port, "tcp"));
        if number.parse::<u16>().is_err() {
            return refuse(format!("invalid port specification: {number:?}"));
        }
        if !matches!(kind.to_ascii_lowercase().as_str(), "tcp" | "udp" | "sctp") {
            return refuse(format!("invalid port specification: {port:?}"));
        }
        for binding in bindings.iter().flatten() {
            let text = binding.host_port.split('/').next().unwrap_or_default();
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let legal = |text: &str| text.parse::<u16>().ok();
            let fits = text.is_empty() || matches!((legal(first), legal(last)), (Some(a), Some(b)) if a <= b);
            if !fits {
                return refuse(format!("invalid port specification: {:?}", binding.host_port));
            }
            if !binding.host_ip.is_empty() && binding.host_ip.parse::<std::net::IpAddr>().is_err() {
                return refuse(format!("invalid IP address: {}", binding.host_ip));
            }
        }
    }
    Ok(())
}

/// A restart policy.
pub(crate) fn restart_policy(policy: &RestartPolicy) -> Checked {
    let count = policy.maximum_retry_count;
    match policy.name.as_str() {
        "always" | "no" | "unless-stopped" if count < 0 => refuse(
            "invalid restart policy: maximum retry count can only be used with 'on-failure' and cannot be negative",
        ),
        "always" | "no" | "unless-stopped" if count != 0 => {
            refuse("invalid restart policy: maximum retry count can only be used with 'on-failure'")
        }
        "on-failure" if count < 0 => refuse("invalid restart policy: maximum retry count cannot be negative"),
        "" | "always" | "no" | "unless-stopped" | "on-failure" => Ok(()),
        other => refuse(format!(
            "invalid restart policy: unknown policy '{other}'; use one of 'no', 'always', 'on-failure', or \
             'unless-stopped'"
        )),
    }
}

fn capability(field: &str, name: &str) -> Checked {
    let upper = name.to_ascii_uppercase();
    if matches!(upper.as_str(), "ALL" | "CAP_ALL") {
        return Ok(());
    }
    if berth_runtime::capability::bit(name).is_ok() {
        return Ok(());
    }
    let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
    refuse(format!("invalid {field}: unknown capability: {full:?}"))
}

fn extra_host(entry: &str) -> Checked {
    let (name, address) = entry.split_once([':', '=']).unwrap_or((entry, ""));
    if name.is_empty() || address.is_empty() {
        return refuse(format!("bad format for add-host: {entry:?}"));
    }
    let plain = address.trim_start_matches('[').trim_end_matches(']');
    if address != "host-gateway" && plain.parse::<std::net::IpAddr>().is_err() {
        return refuse(format!("invalid IP address in add-host: {address:?}"));
    }
    Ok(())
}

/// Limits; with `update`, of a container that exists.
pub(crate) fn resources(host: &HostConfig, update: bool) -> Checked {
    if host.memory != 0 && host.memory < MIN_MEMORY_BYTES {
        return refuse("Minimum memory limit allowed is 6MB");
    }
    if host.memory > 0 && host.memory_swap > 0 && host.memory_swap < host.memory {
        return refuse("Minimum memoryswap limit should be larger than memory limit, see usage");
    }
    if host.memory == 0 && host.memory_swap > 0 && !update {
        return refuse("You should always set the Memory limit when using Memoryswap limit, see usage");
    }
    if let Some(value) = host.memory_swappiness.filter(|value| !(-1..=100).contains(value)) {
        return refuse(format!("Invalid value: {value}, valid memory swappiness range is 0-100"));
    }
    if host.memory_reservation > 0 && host.memory_reservation < MIN_MEMORY_BYTES {
        return refuse("Minimum memory reservation allowed is 6MB");
    }
    if host.memory > 0 && host.memory_reservation > host.memory {
        return refuse("Minimum memory limit can not be less than memory reservation limit, see usage");
    }
    processors(host)?;
    if host.blkio_weight > 0 && !(10..=1000).contains(&host.blkio_weight) {
        return refuse("Range of blkio weight is from 10 to 1000");
    }
    if !(-1000..=1000).contains(&host.oom_score_adj) {
        return refuse(format!(
            "Invalid value {}, range for oom score adj is [-1000, 1000]",
            host.oom_score_adj
        ));
    }
    if host.shm_size < 0 {
        return refuse("SHM size can not be less than 0");
    }
    for limit in host.ulimits.iter().flatten() {
        if limit.hard != -1 && (limit.soft > limit.hard || limit.soft == -1) {
            return refuse(format!(
                "ulimit soft limit must be less than or equal to hard limit: {} > {}",
                limit.soft, limit.hard
            ));
        }
    }
    Ok(())
}

fn processors(host: &HostConfig) -> Checked {
    if host.nano_cpus > 0 && host.cpu_period > 0 {
        return refuse("Conflicting options: Nano CPUs and CPU Period cannot both be set");
    }
    if host.nano_cpus > 0 && host.cpu_quota > 0 {
        return refuse("Conflicting options: Nano CPUs and CPU Quota cannot both be set");
    }
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let most = i64::try_from(count).unwrap_or(i64::MAX).saturating_mul(1_000_000_000);
    if host.nano_cpus < 0 || host.nano_cpus > most {
        return refuse(format!(
            "range of CPUs is from 0.01 to {count}.00, as there are only {count} CPUs available"
        ));
    }
    if host.cpu_shares < 0 {
        return refuse(format!("invalid CPU shares ({}): value must be a positive integer", host.cpu_shares));
    }
    if host.cpu_period != 0 && !(1_000..=1_000_000).contains(&host.cpu_period) {
        return refuse(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
        );
    }
    if host.cpu_quota > 0 && host.cpu_quota < 1_000 {
        return refuse("CPU cfs quota can not be less than 1ms (i.e. 1000)");
    }
    for (field, value) in [("cpus", &host.cpuset_cpus), ("mems", &host.cpuset_mems)] {
        if !is_cpu_list(value) {
            return refuse(format!("Invalid value {value} for cpuset {field}"));
        }
    }
    Ok(())
}

/// `0-2,4`, or nothing.
fn is_cpu_list(text: &str) -> bool {
    let number = |text: &str| text.trim().parse::<u16>().ok();
    text.is_empty()
        || text.split(',').all(|part| match part.split_once('-') {
            Some((first, last)) => matches!((number(first), number(last)), (Some(a), Some(b)) if a <= b),
            None => number(part).is_some(),
        })
}

fn modes(host: &HostConfig) -> Checked {
    let container = |mode: &str| mode.strip_prefix("container:").is_some_and(|name| !name.is_empty());
    let ipc = host.ipc_mode.as_str();
    if !matches!(ipc, "" | "none" | "private" | "shareable" | "host") && !container(ipc) {
        return refuse(format!("invalid IPC mode: {ipc}"));
    }
    let pid = host.pid_mode.as_str();
    if !matches!(pid, "" | "host") && !container(pid) {
        return refuse(format!("invalid PID mode: {pid}"));
    }
    if !host.privileged && host.userns_mode != "host" {
        // A namespace of the host's belongs to the host's users.
        for (what, mode) in [("PID", pid), ("IPC", ipc)] {
            if mode == "host" {
                return refuse(format!(
                    "cannot share the host {what} namespace when user namespaces are enabled"
                ));
            }
        }
    }
    for (what, mode, legal) in [
        ("UTS mode", &host.uts_mode, &["", "host"][..]),
        ("user namespace mode", &host.userns_mode, &["", "host"]),
        ("cgroup namespace mode", &host.cgroupns_mode, &["", "private", "host"]),
    ] {
        if !legal.contains(&mode.as_str()) {
            return refuse(format!("invalid {what}: {mode}"));
        }
    }
    if let Some(name) = host.network_mode.strip_prefix("container:")
        && name.is_empty()
    {
        return refuse("Invalid network mode: invalid container format container:<name|id>");
    }
    if !matches!(host.runtime.as_str(), "" | "runc" | "io.containerd.runc.v2") {
        return refuse(format!("unknown or invalid runtime name: {}", host.runtime));
    }
    Ok(())
}

fn networking(body: &CreateBody) -> Checked {
    for (network, endpoint) in body.networking_config.endpoints_config.iter().flatten() {
        let Some(endpoint) = endpoint else {
            return refuse(format!("no EndpointSettings for {network}"));
        };
        if !matches!(network.as_str(), "default" | "bridge" | "host" | "none") {
            continue;
        }
        let mut wrong = Vec::new();
        if endpoint
            .ipam_config
            .as_ref()
            .is_some_and(|ipam| !ipam.ipv4_address.is_empty() || !ipam.ipv6_address.is_empty())
        {
            wrong.push("user specified IP address is supported on user defined networks only");
        }
        if endpoint.aliases.as_ref().is_some_and(|aliases| !aliases.is_empty()) {
            wrong.push("network-scoped alias is supported only for containers in user defined networks");
        }
        if !wrong.is_empty() {
            let name = if network == "default" { "bridge" } else { network };
            return refuse(format!(
                "invalid config for network {name}: invalid endpoint settings:\n{}",
                wrong.join("\n")
            ));
        }
    }
    Ok(())
}

async fn is_there(source: &str) -> bool {
    let place = crate::binds::place(source);
    tokio::task::spawn_blocking(move || place.exists()).await.unwrap_or(false)
}

/// Looks whether the sources of long-form bind mounts are there; short ones are made when missing.
pub(crate) async fn bind_sources(host: &HostConfig) -> Checked {
    for mount in host.mounts.iter().flatten().filter(|mount| mount.kind == "bind") {
        let made = mount.bind_options.as_ref().is_some_and(|options| options.create_mountpoint);
        if !made && !is_there(&mount.source).await {
            return refuse(format!(
                "invalid mount config for type \"bind\": bind source path does not exist: {}",
                mount.source
            ));
        }
    }
    Ok(())
}
