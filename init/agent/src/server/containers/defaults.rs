//! The values the reference engine puts in place of "not given", as inspect shows them afterwards.

use std::collections::BTreeMap;

use berth_api::docker::containers::CreateBody;

/// Size of `/dev/shm` unless told otherwise, bytes.
const SHM_BYTES: i64 = 64 * 1024 * 1024;

/// Paths of `/proc` and `/sys` that are covered in a container.
const MASKED_PATHS: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Paths of `/proc` that are read-only in a container.
const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Fills in the host configuration's defaults. Filling in twice changes nothing.
pub(crate) fn fill(body: &mut CreateBody) {
    let host = &mut body.host_config;
    let text = |field: &mut String, value: &str| {
        if field.is_empty() {
            value.clone_into(field);
        }
    };
    if host.network_mode == "default" {
        host.network_mode.clear();
    }
    text(&mut host.network_mode, "bridge");
    text(&mut host.restart_policy.name, "no");
    text(&mut host.log_config.kind, "json-file");
    text(&mut host.ipc_mode, "private");
    text(&mut host.cgroupns_mode, if host.privileged { "host" } else { "private" });
    text(&mut host.runtime, "runc");
    host.log_config.config.get_or_insert_with(BTreeMap::new);
    if host.shm_size == 0 {
        host.shm_size = SHM_BYTES;
    }
    if host.memory > 0 && host.memory_swap == 0 {
        host.memory_swap = host.memory.saturating_mul(2);
    }
    // What the command line sends for "not given".
    host.memory_swappiness = host.memory_swappiness.filter(|value| *value != -1);
    host.pids_limit = host.pids_limit.filter(|value| *value != 0);
    let owned = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
    if host.privileged {
        (host.masked_paths, host.readonly_paths) = (None, None);
    } else {
        host.masked_paths.get_or_insert_with(|| owned(&MASKED_PATHS));
        host.readonly_paths.get_or_insert_with(|| owned(&READONLY_PATHS));
    }
    if let Some(endpoints) = &mut body.networking_config.endpoints_config
        && let Some(endpoint) = endpoints.remove("default")
    {
        endpoints.entry(host.network_mode.clone()).or_insert(endpoint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_command_line_sends_for_nothing_becomes_what_inspect_shows() {
        let text = include_bytes!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../api/tests/goldens/requests/cli_containers_create000.json"
        ));
        let mut body: CreateBody = berth_api::decode::from_slice(text).unwrap();
        fill(&mut body);
        let host = &body.host_config;
        assert_eq!(host.network_mode, "bridge");
        assert_eq!((host.memory_swappiness, host.pids_limit, host.shm_size), (None, None, SHM_BYTES));
        assert_eq!(host.masked_paths.as_ref().map(Vec::len), Some(MASKED_PATHS.len()));
        let endpoints = body.networking_config.endpoints_config.as_ref().unwrap();
        assert!(endpoints.contains_key("bridge") && !endpoints.contains_key("default"));
        let once = body.clone();
        fill(&mut body);
        assert_eq!(body, once);
    }
}
