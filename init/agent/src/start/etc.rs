//! `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of a container.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::store::{EndpointRecord, Record};

/// The machine's own, kept up to date by the network.
const HOST_RESOLV: &str = "/run/berth/resolv.conf";
/// Gateway of the default network: what `host-gateway` means.
const HOST_GATEWAY: &str = "172.17.0.1";

/// Writes the three files below a container's directory and gives theirs.
pub(super) fn write(dir: &Path, record: &Record, endpoints: &[(String, EndpointRecord)]) -> io::Result<PathBuf> {
    let etc = dir.join("etc");
    fs::create_dir_all(&etc)?;
    fs::write(etc.join("hostname"), format!("{}\n", record.config.hostname))?;
    fs::write(etc.join("hosts"), hosts(record, endpoints))?;
    let machine = fs::read_to_string(HOST_RESOLV).unwrap_or_default();
    fs::write(etc.join("resolv.conf"), resolv(record, &machine))?;
    Ok(etc)
}

fn hosts(record: &Record, endpoints: &[(String, EndpointRecord)]) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
        ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
        .to_owned();
    for entry in record.host_config.extra_hosts.iter().flatten() {
        if let Some((name, address)) = entry.split_once([':', '=']) {
            let address = if address == "host-gateway" { HOST_GATEWAY } else { address };
            let _ = writeln!(text, "{address}\t{name}");
        }
    }
    let host = &record.config.hostname;
    let names = match record.config.domainname.as_str() {
        "" => host.clone(),
        domain => format!("{host}.{domain} {host}"),
    };
    for (_, endpoint) in endpoints.iter().filter(|(_, endpoint)| !endpoint.ip.is_empty()) {
        let _ = writeln!(text, "{}\t{names}", endpoint.ip);
    }
    text
}

fn resolv(record: &Record, machine: &str) -> String {
    let host = &record.host_config;
    let wanted = |list: &Option<Vec<String>>| list.clone().filter(|list| !list.is_empty());
    let from_machine = |key: &str| -> Vec<String> {
        let lines = machine.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        lines.flat_map(str::split_whitespace).map(str::to_owned).collect()
    };
    let mut text = String::new();
    let servers = wanted(&host.dns).unwrap_or_else(|| {
        // A loopback server of the machine is nobody's server inside a container.
        from_machine("nameserver").into_iter().filter(|server| !server.starts_with("127.") && server != "::1").collect()
    });
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    let search = wanted(&host.dns_search).unwrap_or_else(|| from_machine("search"));
    if !search.is_empty() && search != ["."] {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    let options = wanted(&host.dns_options).unwrap_or_else(|| from_machine("options"));
    if !options.is_empty() {
        let _ = writeln!(text, "options {}", options.join(" "));
    }
    text
}
