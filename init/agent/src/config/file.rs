//! The machine file's text to decided values. Strict: an unknown key, a wrong type or an impossible value is an error
//! that names file, line, key and remedy, because a setting that is silently ignored is found by the outage it causes.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;
use toml::Spanned;

use super::units::{self, Unit};

/// The machine file's version this agent reads.
const VERSION: i64 = 1;
/// Longest machine file in bytes: as much as init hands on from firmware.
pub(crate) const FILE_MAX: usize = 1 << 20;
/// Most units in one file; each is a container of this machine.
const UNITS_MAX: usize = 4096;

/// What the machine file says, decided.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// Host name.
    pub(crate) name: String,
    /// The API over TCP.
    pub(crate) api: Api,
    /// Host network.
    pub(crate) network: Network,
    /// Where images come from.
    pub(crate) registries: Registries,
    /// Containers that shall exist.
    pub(crate) units: Vec<Unit>,
}

/// The API over TCP: only with mutual TLS, so without `client_ca` it does not listen at all.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    /// Address and port.
    pub(crate) listen: SocketAddr,
    /// PEM of the authority that client certificates must chain to.
    pub(crate) client_ca: Option<String>,
    /// PEM of the server's certificate chain and key; made on first boot when absent.
    pub(crate) server: Option<(String, String)>,
}

/// The host's network.
#[derive(Clone, Debug, Default)]
pub(crate) struct Network {
    /// Name servers beside or instead of DHCP's.
    pub(crate) dns: Vec<IpAddr>,
    /// Search domains.
    pub(crate) search: Vec<String>,
    /// Interfaces; empty means DHCP on whatever there is.
    pub(crate) interfaces: Vec<Interface>,
}

/// One interface.
#[derive(Clone, Debug)]
pub(crate) struct Interface {
    /// Name, MAC address or `*`.
    pub(crate) matches: String,
    /// DHCPv4.
    pub(crate) dhcp: bool,
    /// Static addresses with prefix length.
    pub(crate) addresses: Vec<(IpAddr, u8)>,
    /// Default gateway.
    pub(crate) gateway: Option<IpAddr>,
}

/// Registries.
#[derive(Clone, Debug, Default)]
pub(crate) struct Registries {
    /// `host[:port]` that may be spoken to without TLS.
    pub(crate) insecure: Vec<String>,
    /// Extra authorities to trust for registries, PEM.
    pub(crate) ca: Option<String>,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            name: "berth".to_owned(),
            api: Api { listen: SocketAddr::from(([0, 0, 0, 0], 2376)), client_ca: None, server: None },
            network: Network::default(),
            registries: Registries::default(),
            units: Vec::new(),
        }
    }
}

/// Why a machine file is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {}{problem}; {remedy}", key_prefix(key))]
pub(crate) struct FileError {
    /// Where the file came from.
    pub(crate) file: String,
    /// Line, from 1.
    pub(crate) line: usize,
    /// The key, empty when the text has none there.
    pub(crate) key: String,
    /// What is wrong.
    pub(crate) problem: String,
    /// What to do.
    pub(crate) remedy: String,
}

fn key_prefix(key: &str) -> String {
    if key.is_empty() { String::new() } else { format!("key `{key}`: ") }
}

/// A problem before it knows its file and line.
#[derive(Debug)]
pub(super) struct Problem {
    /// Byte offset into the text.
    pub(super) at: usize,
    /// What is wrong.
    pub(super) problem: String,
    /// What to do.
    pub(super) remedy: String,
}

impl Problem {
    /// A problem of the value at `span`.
    pub(super) fn at<T>(value: &Spanned<T>, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { at: value.span().start, problem: problem.into(), remedy: remedy.into() }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    version: Spanned<i64>,
    #[serde(default)]
    host: WireHost,
    #[serde(default)]
    api: WireApi,
    #[serde(default)]
    network: WireNetwork,
    #[serde(default)]
    registries: WireRegistries,
    #[serde(default)]
    container: Vec<Spanned<units::Wire>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireHost {
    name: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireApi {
    listen: Option<Spanned<String>>,
    client_ca: Option<Spanned<String>>,
    cert: Option<Spanned<String>>,
    key: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireNetwork {
    #[serde(default)]
    dns: Vec<Spanned<String>>,
    #[serde(default)]
    search: Vec<String>,
    #[serde(default)]
    interface: Vec<WireInterface>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireInterface {
    #[serde(rename = "match")]
    matches: Spanned<String>,
    dhcp: Option<bool>,
    #[serde(default)]
    address: Vec<Spanned<String>>,
    gateway: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireRegistries {
    #[serde(default)]
    insecure: Vec<Spanned<String>>,
    ca: Option<Spanned<String>>,
}

/// Read a machine file. `file` names it in errors.
pub(crate) fn parse(text: &str, file: &str) -> Result<Machine, FileError> {
    let located = |problem: Problem| {
        let (line, key) = locate(text, problem.at);
        FileError { file: file.to_owned(), line, key, problem: problem.problem, remedy: problem.remedy }
    };
    let wire: Wire = toml::from_str(text).map_err(|error| located(syntax(text, &error)))?;
    decide(wire).map_err(located)
}

fn decide(wire: Wire) -> Result<Machine, Problem> {
    if *wire.version.get_ref() != VERSION {
        let found = wire.version.get_ref();
        return Err(Problem::at(&wire.version, format!("version {found} is not known"), "write version = 1"));
    }
    let mut machine = Machine::default();
    if let Some(name) = wire.host.name {
        machine.name = hostname(&name)?;
    }
    machine.api = api(wire.api, machine.api.listen)?;
    machine.network = network(wire.network)?;
    machine.registries = registries(wire.registries)?;
    if let Some(extra) = wire.container.get(UNITS_MAX) {
        return Err(Problem::at(extra, format!("more than {UNITS_MAX} containers"), "remove some"));
    }
    let mut names = BTreeSet::new();
    for container in wire.container {
        let at = container.span().start;
        let unit = units::decide(container.into_inner())?;
        if !names.insert(unit.name.clone()) {
            let problem = format!("there are two containers named `{}`", unit.name);
            return Err(Problem { at, problem, remedy: "give each container its own name".to_owned() });
        }
        machine.units.push(unit);
    }
    Ok(machine)
}

/// Longest host name of Linux (`HOST_NAME_MAX`).
const HOSTNAME_MAX: usize = 64;

fn hostname(name: &Spanned<String>) -> Result<String, Problem> {
    let text = name.get_ref();
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    if text.len() > HOSTNAME_MAX || !text.split('.').all(label) {
        let remedy = "use letters, digits, `-` and `.`, at most 64 characters";
        return Err(Problem::at(name, format!("`{text}` is not a host name"), remedy));
    }
    Ok(text.clone())
}

fn api(wire: WireApi, default: SocketAddr) -> Result<Api, Problem> {
    let listen = match &wire.listen {
        None => default,
        Some(text) => text.get_ref().parse().map_err(|_| {
            let problem = format!("`{}` is not an address and port", text.get_ref());
            Problem::at(text, problem, "write it like 0.0.0.0:2376")
        })?,
    };
    for pem in [&wire.client_ca, &wire.cert].into_iter().flatten() {
        check_pem(pem, "CERTIFICATE")?;
    }
    if let Some(key) = &wire.key {
        check_pem(key, "PRIVATE KEY")?;
    }
    let server = match (wire.cert, wire.key) {
        (Some(cert), Some(key)) => Some((cert.into_inner(), key.into_inner())),
        (None, None) => None,
        (Some(lone), None) => return Err(Problem::at(&lone, "`cert` without `key`", "give both or neither")),
        (None, Some(lone)) => return Err(Problem::at(&lone, "`key` without `cert`", "give both or neither")),
    };
    Ok(Api { listen, client_ca: wire.client_ca.map(Spanned::into_inner), server })
}

fn check_pem(pem: &Spanned<String>, kind: &str) -> Result<(), Problem> {
    let text = pem.get_ref();
    if text.contains("-----BEGIN ") && text.contains(&format!("{kind}-----")) {
        return Ok(());
    }
    let remedy = format!("paste the PEM text, from -----BEGIN … {kind}----- to -----END … {kind}-----");
    Err(Problem::at(pem, "not PEM", remedy))
}

fn network(wire: WireNetwork) -> Result<Network, Problem> {
    let mut dns = Vec::new();
    for server in &wire.dns {
        dns.push(address(server)?);
    }
    let mut interfaces = Vec::new();
    for interface in wire.interface {
        let mut addresses = Vec::new();
        for text in &interface.address {
            addresses.push(address_with_prefix(text)?);
        }
        let gateway = interface.gateway.as_ref().map(address).transpose()?;
        let dhcp = interface.dhcp.unwrap_or(addresses.is_empty());
        if !dhcp && addresses.is_empty() {
            let remedy = "write dhcp = true or address = [\"192.0.2.2/24\"]";
            return Err(Problem::at(&interface.matches, "neither DHCP nor an address", remedy));
        }
        interfaces.push(Interface { matches: interface.matches.into_inner(), dhcp, addresses, gateway });
    }
    Ok(Network { dns, search: wire.search, interfaces })
}

fn address(text: &Spanned<String>) -> Result<IpAddr, Problem> {
    text.get_ref().parse().map_err(|_| {
        let problem = format!("`{}` is not an IP address", text.get_ref());
        Problem::at(text, problem, "write it like 192.0.2.1 or 2001:db8::1")
    })
}

fn address_with_prefix(text: &Spanned<String>) -> Result<(IpAddr, u8), Problem> {
    let parsed = text.get_ref().split_once('/').and_then(|(address, prefix)| {
        let address: IpAddr = address.parse().ok()?;
        let prefix: u8 = prefix.parse().ok()?;
        (prefix <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, prefix))
    });
    parsed.ok_or_else(|| {
        let problem = format!("`{}` is not an address with prefix length", text.get_ref());
        Problem::at(text, problem, "write it like 192.0.2.2/24")
    })
}

fn registries(wire: WireRegistries) -> Result<Registries, Problem> {
    for host in &wire.insecure {
        let text = host.get_ref();
        if text.is_empty() || text.contains('/') || text.contains(char::is_whitespace) {
            let problem = format!("`{text}` is not a host with optional port");
            return Err(Problem::at(host, problem, "write it like registry.example:5000, without http://"));
        }
    }
    if let Some(pem) = &wire.ca {
        check_pem(pem, "CERTIFICATE")?;
    }
    Ok(Registries {
        insecure: wire.insecure.into_iter().map(Spanned::into_inner).collect(),
        ca: wire.ca.map(Spanned::into_inner),
    })
}

/// What the TOML reader says, with a remedy.
fn syntax(text: &str, error: &toml::de::Error) -> Problem {
    let message = error.message().trim().replace('\n', ", ");
    let remedy = if message.starts_with("unknown field") {
        "remove the key or correct its name"
    } else if message.starts_with("missing field") {
        "add the key"
    } else if message.starts_with("invalid type") {
        "write a value of the expected type"
    } else {
        "correct the TOML"
    };
    let at = error.span().map_or(text.len(), |span| span.start);
    Problem { at, problem: message, remedy: remedy.to_owned() }
}

/// Line (from 1) and key at a byte offset: the text before `=` of that line or of the nearest line above that has one
/// (a value may span lines), else the table's header.
fn locate(text: &str, at: usize) -> (usize, String) {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    let before = text.get(..at).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let key = text.lines().take(line).collect::<Vec<_>>().into_iter().rev().find_map(key_of_line);
    (line, key.unwrap_or_default())
}

fn key_of_line(line: &str) -> Option<String> {
    let line = line.trim();
    if line.starts_with('[') {
        return Some(line.trim_matches(['[', ']']).to_owned());
    }
    let (key, _) = line.split_once('=')?;
    let key = key.trim();
    let legal = |character: char| character.is_ascii_alphanumeric() || "_-.\"".contains(character);
    (!key.is_empty() && key.chars().all(legal)).then(|| key.to_owned())
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
