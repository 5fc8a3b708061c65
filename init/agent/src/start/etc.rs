//! `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of a container.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::networks::DEFAULT;
use crate::store::{EndpointRecord, Record};

/// The machine's own, kept up to date by the network.
const HOST_RESOLV: &str = "/run/berth/resolv.conf";
/// Gateway of the default network: what `host-gateway` means.
const HOST_GATEWAY: &str = "172.17.0.1";

/// Writes the three files below a container's directory and gives theirs.
pub(super) fn write(
    dir: &Path,
    record: &Record,
    endpoints: &[(String, EndpointRecord)],
    links: &[(IpAddr, String)],
) -> io::Result<PathBuf> {
    let etc = dir.join("etc");
    fs::create_dir_all(&etc)?;
    fs::write(etc.join("hostname"), format!("{}\n", record.config.hostname))?;
    let mut text = hosts(record, endpoints);
    for (address, names) in links {
        let _ = writeln!(text, "{address}\t{names}");
    }
    fs::write(etc.join("hosts"), text)?;
    fs::write(etc.join("resolv.conf"), resolv_conf(record, endpoints))?;
    Ok(etc)
}

/// Follows a change of a running container's networks. Lines that are not ours stay; the files stay the same files,
/// because the container has them mounted.
pub(crate) fn change(
    dir: &Path,
    record: &Record,
    before: &[(String, EndpointRecord)],
    after: &[(String, EndpointRecord)],
) -> io::Result<()> {
    let etc = dir.join("etc");
    let (old, new) = (own_lines(record, before), own_lines(record, after));
    let text = fs::read_to_string(etc.join("hosts"))?;
    let kept = text.lines().filter(|line| new.contains(*line) || !old.contains(*line));
    let mut text: String = kept.flat_map(|line| [line, "\n"]).collect();
    for line in new.difference(&old) {
        let _ = writeln!(text, "{line}");
    }
    fs::write(etc.join("hosts"), text)?;
    let (old, new) = (resolv_conf(record, before), resolv_conf(record, after));
    if old != new {
        fs::write(etc.join("resolv.conf"), new)?;
    }
    Ok(())
}

fn resolv_conf(record: &Record, endpoints: &[(String, EndpointRecord)]) -> String {
    let machine = fs::read_to_string(HOST_RESOLV).unwrap_or_default();
    // Directly on the machine's network there is no name server of ours.
    let mut named = endpoints.iter().filter(|(network, it)| network != DEFAULT && !it.host_name.is_empty());
    match named.next() {
        Some((_, endpoint)) if endpoint.gateway.is_empty() => {
            resolv_named(record, &endpoint.gateway6, &machine)
        }
        Some((_, endpoint)) => resolv_named(record, &endpoint.gateway, &machine),
        None => resolv(record, &machine),
    }
}

/// The lines of `/etc/hosts` with the container's own addresses.
fn own_lines(record: &Record, endpoints: &[(String, EndpointRecord)]) -> BTreeSet<String> {
    let host = &record.config.hostname;
    let names = match record.config.domainname.as_str() {
        "" => host.clone(),
        domain => format!("{host}.{domain} {host}"),
    };
    let addresses = endpoints.iter().flat_map(|(_, endpoint)| [&endpoint.ip, &endpoint.ip6]);
    addresses.filter(|address| !address.is_empty()).map(|address| format!("{address}\t{names}")).collect()
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
    for line in own_lines(record, endpoints) {
        let _ = writeln!(text, "{line}");
    }
    text
}

/// In a network of the user's, its name server answers, and asks the machine's for what it does not know.
fn resolv_named(record: &Record, gateway: &str, machine: &str) -> String {
    let rest = resolv(record, machine);
    let rest = rest.lines().filter(|line| !line.starts_with("nameserver") && !line.starts_with("options"));
    let mut text = format!("nameserver {gateway}\n");
    for line in rest {
        text.push_str(line);
        text.push('\n');
    }
    text.push_str("options ndots:0\n");
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
        from_machine("nameserver")
            .into_iter()
            .filter(|server| !server.starts_with("127.") && server != "::1")
            .collect()
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
