//! The engine itself: ping, version, info, disk use.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_api::docker::containers::ContainerSummary;
use berth_api::docker::system::{
    BuildPruneAnswer, Component, DiskUsage, FirewallBackend, IndexConfig, Info, Platform, Plugins,
    RegistryConfig, Runtime, Swarm, VersionAnswer,
};
use berth_api::version::{API_VERSION, MIN_API_VERSION};
use hyper::header::{CACHE_CONTROL, HeaderName, HeaderValue, PRAGMA};
use hyper::{Response, StatusCode};

use super::containers::{size, view};
use super::errors::ApiError;
use super::request::Request;
use super::respond::{self, Body};
use super::routes::Answer;
use super::{Api, ENGINE_VERSION, images, time};
use crate::command::{State, View};

pub(crate) fn ping() -> Response<Body> {
    let mut answer = respond::whole(StatusCode::OK, "text/plain; charset=utf-8", "OK".into());
    let headers = answer.headers_mut();
    headers.insert(HeaderName::from_static("builder-version"), HeaderValue::from_static("1"));
    headers.insert(HeaderName::from_static("swarm"), HeaderValue::from_static("inactive"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, must-revalidate"));
    headers.insert(PRAGMA, HeaderValue::from_static("no-cache"));
    answer
}

pub(crate) fn version() -> Response<Body> {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let details = [
        ("ApiVersion", API_VERSION.to_string()),
        ("Arch", architecture().0.to_owned()),
        ("Experimental", "false".to_owned()),
        ("KernelVersion", kernel.clone()),
        ("MinAPIVersion", MIN_API_VERSION.to_string()),
        ("Os", "linux".to_owned()),
    ];
    respond::ok(&VersionAnswer {
        platform: Platform { name: format!("Berth {}", env!("CARGO_PKG_VERSION")) },
        components: vec![Component {
            name: "Engine".to_owned(),
            version: ENGINE_VERSION.to_owned(),
            details: details.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        }],
        version: ENGINE_VERSION.to_owned(),
        api_version: API_VERSION.to_string(),
        min_api_version: MIN_API_VERSION.to_string(),
        os: "linux".to_owned(),
        arch: architecture().0.to_owned(),
        kernel_version: kernel,
        ..VersionAnswer::default()
    })
}

/// The processor as Go and as uname name it.
fn architecture() -> (&'static str, &'static str) {
    match std::env::consts::ARCH {
        "x86_64" => ("amd64", "x86_64"),
        "aarch64" => ("arm64", "aarch64"),
        other => (other, other),
    }
}

pub(crate) async fn info(request: Request) -> Answer {
    let api = &request.api;
    let views = api.owner.list().await?;
    let count = |fits: fn(&State) -> bool| views.iter().filter(|view| fits(&view.state)).count() as u64;
    let facts = api.machine.facts();
    let memory = tokio::fs::read_to_string("/proc/meminfo").await.unwrap_or_default();
    let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let pair = |key: &str, value: &str| [key.to_owned(), value.to_owned()];
    Ok(respond::ok(&Info {
        id: facts.id,
        containers: views.len() as u64,
        containers_running: count(|state| matches!(state, State::Running { paused: false, .. })),
        containers_paused: count(|state| matches!(state, State::Running { paused: true, .. })),
        containers_stopped: count(|state| !matches!(state, State::Running { .. })),
        images: api.images.list().len() as u64,
        driver: "overlay2".to_owned(),
        driver_status: vec![
            pair("Backing Filesystem", "extfs"),
            pair("Supports d_type", "true"),
            pair("Native Overlay Diff", "true"),
        ],
        plugins: Plugins {
            volume: words(&["local"]),
            network: words(&["bridge", "host", "null"]),
            authorization: None,
            log: words(&["json-file", "local"]),
        },
        memory_limit: true,
        swap_limit: true,
        cpu_cfs_period: true,
        cpu_cfs_quota: true,
        cpu_shares: true,
        cpu_set: true,
        pids_limit: true,
        ipv4_forwarding: true,
        system_time: time::rfc3339_nano(time::now_ns()),
        logging_driver: "json-file".to_owned(),
        cgroup_driver: "cgroupfs".to_owned(),
        cgroup_version: "2".to_owned(),
        n_events_listener: api.journal.listeners() as u64,
        kernel_version: rustix::system::uname().release().to_string_lossy().into_owned(),
        operating_system: facts.operating_system,
        os_type: "linux".to_owned(),
        architecture: architecture().1.to_owned(),
        index_server_address: "https://index.docker.io/v1/".to_owned(),
        registry_config: registries(&facts.insecure_registries),
        n_cpu: std::thread::available_parallelism().map_or(1, |count| count.get() as u64),
        mem_total: memory_total_bytes(&memory),
        docker_root_dir: "/var/lib/berth".to_owned(),
        name: facts.name,
        server_version: ENGINE_VERSION.to_owned(),
        runtimes: BTreeMap::from([("runc".to_owned(), Runtime { path: "runc".to_owned(), status: None })]),
        default_runtime: "runc".to_owned(),
        swarm: Swarm { local_node_state: "inactive".to_owned(), ..Swarm::default() },
        // Containers go on while the agent restarts.
        live_restore_enabled: true,
        init_binary: "docker-init".to_owned(),
        security_options: words(&["name=seccomp,profile=builtin", "name=userns", "name=cgroupns"]),
        firewall_backend: Some(FirewallBackend { driver: "nftables".to_owned() }),
        ..Info::default()
    }))
}

fn registries(insecure: &[String]) -> RegistryConfig {
    let config = |name: &str, secure| IndexConfig {
        mirrors: Vec::new(),
        name: name.to_owned(),
        official: name == "docker.io",
        secure,
    };
    let mut index_configs = BTreeMap::from([("docker.io".to_owned(), config("docker.io", true))]);
    index_configs.extend(insecure.iter().map(|host| (host.clone(), config(host, false))));
    RegistryConfig { index_configs, ..RegistryConfig::default() }
}

/// `MemTotal` of `/proc/meminfo`.
pub(crate) fn memory_total_bytes(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

pub(crate) async fn disk_usage(request: Request) -> Answer {
    let api = &request.api;
    let kinds: Vec<&str> = request.query.all("type").collect();
    for kind in &kinds {
        if !matches!(*kind, "container" | "image" | "volume" | "build-cache") {
            return Err(ApiError::invalid(format!("unknown object type: {kind}")));
        }
    }
    let wanted = |kind: &str| kinds.is_empty() || kinds.contains(&kind);
    let views = api.owner.list().await?;
    let images = wanted("image").then(|| images::summaries(api, &views));
    let containers = if wanted("container") { Some(with_sizes(api, views.clone()).await?) } else { None };
    let volumes = if wanted("volume") { Some(api.owner.volumes().await?) } else { None };
    Ok(respond::ok(&DiskUsage {
        layers_size: if wanted("image") {
            i64::try_from(api.images.disk_usage()).unwrap_or(i64::MAX)
        } else {
            0
        },
        images,
        containers,
        volumes,
        build_cache: wanted("build-cache").then(Vec::new),
    }))
}

/// Containers with what each has written.
async fn with_sizes(api: &Arc<Api>, views: Vec<Arc<View>>) -> Result<Vec<ContainerSummary>, ApiError> {
    let (api, now_ns) = (api.clone(), time::now_ns());
    let summary = move |found: &Arc<View>| {
        let mut summary = view::summary(found, now_ns);
        summary.size_rw = size::written_bytes(&found.id).filter(|bytes| *bytes > 0);
        summary.size_root_fs = Some(api.image_size(&found.image_id) + summary.size_rw.unwrap_or(0));
        summary
    };
    images::blocking(move || views.iter().map(summary).collect()).await
}

/// Nothing is built, so there is no cache to prune.
pub(crate) fn build_prune() -> Response<Body> {
    respond::ok(&BuildPruneAnswer::default())
}

/// The answer to everything about a swarm.
pub(crate) fn not_a_swarm_manager() -> ApiError {
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to \
         swarm and try again.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_meminfo() {
        assert_eq!(memory_total_bytes("MemTotal:         984 kB\nMemFree: 1 kB\n"), 984 * 1024);
        assert_eq!(memory_total_bytes(""), 0);
    }
}
