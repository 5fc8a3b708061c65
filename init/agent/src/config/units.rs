//! `[[container]]` of the machine file: parsed against Docker's rules and turned into the same create request that the
//! API takes, so a unit is an ordinary container.

use std::collections::BTreeMap;
use std::str::FromStr;

use berth_api::docker::containers::CreateBody;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use toml::Spanned;

use super::file::Problem;

/// Label that names the unit a container belongs to.
pub(crate) const UNIT_LABEL: &str = "org.berth.unit";
/// Label with the digest of the definition it was made of.
pub(crate) const DEFINITION_LABEL: &str = "org.berth.unit.definition";

/// A container that shall exist and run.
#[derive(Clone, Debug)]
pub(crate) struct Unit {
    /// Its name, also the container's.
    pub(crate) name: String,
    /// The image as typed.
    pub(crate) image: String,
    /// The create request.
    pub(crate) docker: CreateBody,
    /// Digest of the definition; another one means the container is made anew.
    pub(crate) definition: String,
}

/// The table as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wire {
    name: Spanned<String>,
    image: Spanned<String>,
    command: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    #[serde(default)]
    env: WireEnv,
    #[serde(default)]
    ports: Vec<Spanned<String>>,
    #[serde(default)]
    volumes: Vec<Spanned<String>>,
    restart: Option<Spanned<String>>,
    user: Option<String>,
    workdir: Option<String>,
    hostname: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    memory: Option<Spanned<String>>,
    cpus: Option<Spanned<f64>>,
    #[serde(default)]
    read_only: bool,
    network: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum WireEnv {
    Map(BTreeMap<String, String>),
    List(Vec<String>),
}

impl Default for WireEnv {
    fn default() -> Self {
        Self::List(Vec::new())
    }
}

/// Check a table and decide it.
pub(super) fn decide(wire: Wire) -> Result<Unit, Problem> {
    if !legal_name(wire.name.get_ref()) {
        let problem = format!("`{}` is not a container name", wire.name.get_ref());
        let remedy = "use two or more of letters, digits, `_`, `.`, `-`, a letter or digit first";
        return Err(Problem::at(&wire.name, problem, remedy));
    }
    if berth_image::Reference::from_str(wire.image.get_ref()).is_err() {
        let problem = format!("`{}` is not an image name", wire.image.get_ref());
        return Err(Problem::at(&wire.image, problem, "write it like registry.example/name:tag, in lower case"));
    }
    let body = body(&wire)?;
    let definition = Sha256::digest(body.to_string().as_bytes());
    let definition: String = definition.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut body = body;
    if let Some(labels) = body.get_mut("Labels").and_then(Value::as_object_mut) {
        labels.insert(UNIT_LABEL.to_owned(), json!(wire.name.get_ref()));
        labels.insert(DEFINITION_LABEL.to_owned(), json!(definition));
    }
    let docker = serde_json::from_value(body).map_err(|error| {
        Problem::at(&wire.name, format!("the definition is not accepted: {error}"), "correct the container")
    })?;
    Ok(Unit { name: wire.name.into_inner(), image: wire.image.into_inner(), docker, definition })
}

/// Docker's rule for container names.
pub(crate) fn legal_name(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    name.len() >= 2
        && name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
        && name.bytes().all(legal)
}

fn body(wire: &Wire) -> Result<Value, Problem> {
    let mut exposed = Map::new();
    let mut bindings = Map::new();
    for port in &wire.ports {
        let (container, binding) = publish(port)?;
        exposed.insert(container.clone(), json!({}));
        if let Some(list) = bindings.entry(container).or_insert_with(|| json!([])).as_array_mut() {
            list.push(binding);
        }
    }
    for volume in &wire.volumes {
        check_volume(volume)?;
    }
    let binds: Vec<&String> = wire.volumes.iter().map(Spanned::get_ref).collect();
    let env = match &wire.env {
        WireEnv::List(list) => list.clone(),
        WireEnv::Map(map) => map.iter().map(|(key, value)| format!("{key}={value}")).collect(),
    };
    let mut host = json!({
        "Binds": binds,
        "PortBindings": bindings,
        "RestartPolicy": restart(wire.restart.as_ref())?,
        "ReadonlyRootfs": wire.read_only,
        "Memory": memory(wire.memory.as_ref())?,
        "NanoCpus": nano_cpus(wire.cpus.as_ref())?,
    });
    if let (Some(network), Some(host)) = (&wire.network, host.as_object_mut()) {
        host.insert("NetworkMode".to_owned(), json!(network));
    }
    let mut body = json!({
        "Image": wire.image.get_ref(),
        "Env": env,
        "ExposedPorts": exposed,
        "Labels": wire.labels,
        "HostConfig": host,
    });
    let optional = [
        ("Cmd", wire.command.as_ref().map(|list| json!(list))),
        ("Entrypoint", wire.entrypoint.as_ref().map(|list| json!(list))),
        ("User", wire.user.as_ref().map(|text| json!(text))),
        ("WorkingDir", wire.workdir.as_ref().map(|text| json!(text))),
        ("Hostname", wire.hostname.as_ref().map(|text| json!(text))),
    ];
    if let Some(body) = body.as_object_mut() {
        body.extend(optional.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
    }
    Ok(body)
}

/// `[address:]host:container[/tcp|/udp]` to Docker's port key and binding.
fn publish(text: &Spanned<String>) -> Result<(String, Value), Problem> {
    let refuse = || {
        let problem = format!("`{}` is not a port to publish", text.get_ref());
        Problem::at(text, problem, "write it like 8080:80, 192.0.2.1:8080:80 or 53:53/udp")
    };
    let (ports, protocol) = text.get_ref().split_once('/').unwrap_or((text.get_ref(), "tcp"));
    if protocol != "tcp" && protocol != "udp" {
        return Err(refuse());
    }
    let (rest, container) = ports.rsplit_once(':').ok_or_else(refuse)?;
    let (address, host) = rest.rsplit_once(':').unwrap_or(("", rest));
    let address = address.trim_start_matches('[').trim_end_matches(']');
    if !address.is_empty() && address.parse::<std::net::IpAddr>().is_err() {
        return Err(refuse());
    }
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0);
    let (Some(container), Some(host)) = (port(container), port(host)) else { return Err(refuse()) };
    Ok((format!("{container}/{protocol}"), json!({ "HostIp": address, "HostPort": host.to_string() })))
}

/// `name:/path[:ro]` or `/host/path:/path[:ro]`.
fn check_volume(text: &Spanned<String>) -> Result<(), Problem> {
    let parts: Vec<&str> = text.get_ref().split(':').collect();
    let legal = match parts.as_slice() {
        [source, target] => legal_source(source) && target.starts_with('/'),
        [source, target, options] => {
            legal_source(source) && target.starts_with('/') && options.split(',').all(|o| matches!(o, "ro" | "rw" | "nocopy"))
        }
        _ => false,
    };
    if legal {
        return Ok(());
    }
    let problem = format!("`{}` is not a volume", text.get_ref());
    Err(Problem::at(text, problem, "write it like data:/data or data:/data:ro"))
}

fn legal_source(source: &str) -> bool {
    source.starts_with('/') || legal_name(source)
}

fn restart(text: Option<&Spanned<String>>) -> Result<Value, Problem> {
    // A unit shall run: that is what it is for.
    let Some(text) = text else { return Ok(json!({ "Name": "always", "MaximumRetryCount": 0 })) };
    let (name, count) = match text.get_ref().split_once(':') {
        Some(("on-failure", count)) => ("on-failure", count.parse::<u32>().ok()),
        Some(_) => ("", None),
        None => (text.get_ref().as_str(), Some(0)),
    };
    match (name, count) {
        ("no" | "always" | "unless-stopped" | "on-failure", Some(count)) => {
            Ok(json!({ "Name": name, "MaximumRetryCount": count }))
        }
        _ => {
            let problem = format!("`{}` is not a restart policy", text.get_ref());
            Err(Problem::at(text, problem, "use no, always, unless-stopped, on-failure or on-failure:5"))
        }
    }
}

/// Docker's least memory limit in bytes.
const MEMORY_MIN: i64 = 6 << 20;

fn memory(text: Option<&Spanned<String>>) -> Result<i64, Problem> {
    let Some(text) = text else { return Ok(0) };
    let lower = text.get_ref().to_ascii_lowercase();
    let (digits, shift) = match lower.as_bytes().last() {
        Some(b'k') => (lower.trim_end_matches('k'), 10),
        Some(b'm') => (lower.trim_end_matches('m'), 20),
        Some(b'g') => (lower.trim_end_matches('g'), 30),
        _ => (lower.as_str(), 0),
    };
    let bytes = digits.parse::<i64>().ok().and_then(|number| number.checked_mul(1 << shift));
    match bytes {
        Some(bytes) if bytes >= MEMORY_MIN => Ok(bytes),
        Some(_) => Err(Problem::at(text, "less than Docker's minimum of 6m", "raise it")),
        None => {
            let problem = format!("`{}` is not an amount of memory", text.get_ref());
            Err(Problem::at(text, problem, "write it like 64m or 1g"))
        }
    }
}

/// Most CPUs that can be asked for; Linux's own limit.
const CPUS_MAX: f64 = 8192.0;

fn nano_cpus(cpus: Option<&Spanned<f64>>) -> Result<i64, Problem> {
    let Some(cpus) = cpus else { return Ok(0) };
    let value = *cpus.get_ref();
    if !(0.01..=CPUS_MAX).contains(&value) {
        return Err(Problem::at(cpus, format!("{value} CPUs are not possible"), "write it like 0.5 or 2"));
    }
    // In range by the check above: at most 8192e9.
    #[allow(clippy::cast_possible_truncation)]
    let nano = (value * 1e9).round() as i64;
    Ok(nano)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(text: &str) -> Option<(String, String, String)> {
        let spanned = Spanned::new(0..0, text.to_owned());
        let (key, value) = publish(&spanned).ok()?;
        let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        Some((key, text("HostIp"), text("HostPort")))
    }

    #[test]
    fn ports_are_read_in_every_form() {
        let cases = [
            ("8080:80", Some(("80/tcp", "", "8080"))),
            ("53:53/udp", Some(("53/udp", "", "53"))),
            ("192.0.2.1:8080:80", Some(("80/tcp", "192.0.2.1", "8080"))),
            ("[::1]:8080:80", Some(("80/tcp", "::1", "8080"))),
            ("80", None),
            ("0:80", None),
            ("8080:80/icmp", None),
            ("65536:80", None),
            ("name:8080:80", None),
        ];
        for (text, expected) in cases {
            let expected = expected.map(|(a, b, c)| (a.to_owned(), b.to_owned(), c.to_owned()));
            assert_eq!(port(text), expected, "{text}");
        }
    }

    #[test]
    fn amounts_are_bounded() {
        let read = |text: &str| memory(Some(&Spanned::new(0..0, text.to_owned()))).ok();
        assert_eq!(read("64m"), Some(64 << 20));
        assert_eq!(read("6291456"), Some(6 << 20));
        assert_eq!(read("6291455"), None);
        assert_eq!(read("99999999999999999g"), None);
        let cpus = |value| nano_cpus(Some(&Spanned::new(0..0, value))).ok();
        assert_eq!(cpus(0.5), Some(500_000_000));
        assert_eq!(cpus(0.0), None);
        assert_eq!(cpus(f64::NAN), None);
    }

    #[test]
    fn the_definition_changes_with_any_setting_and_only_then() {
        let unit = |text: &str| {
            let text = format!("version = 1\n[[container]]\nname = \"web\"\nimage = \"demo\"\n{text}");
            super::super::file::parse(&text, "f").expect("a legal file").units.remove(0).definition
        };
        assert_eq!(unit(""), unit("# comment\n"));
        assert_ne!(unit(""), unit("ports = [\"80:80\"]\n"));
        assert_ne!(unit("env = { A = \"1\" }\n"), unit("env = { A = \"2\" }\n"));
    }
}
