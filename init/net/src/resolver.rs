//! The machine's own resolver: names to addresses without the C library, which cannot do it in a static program.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::sync::watch;

use crate::exchange::{UDP_BYTES, ask, is_truncated};
use crate::upstream::Upstreams;

/// Search domains tried for one name.
const MAX_SEARCH: usize = 6;
/// Addresses returned for one name.
const MAX_ADDRESSES: usize = 32;

/// Resolves names for the agent (registries, time servers). Clones share their sources.
#[derive(Debug, Clone)]
pub struct Resolver {
    upstreams: watch::Receiver<Upstreams>,
    hosts: Vec<(String, Vec<IpAddr>)>,
}

impl Resolver {
    /// A resolver that asks the servers in force at the time of each question.
    pub fn new(upstreams: watch::Receiver<Upstreams>) -> Resolver {
        Resolver { upstreams, hosts: Vec::new() }
    }

    /// Answers `name` from here instead of asking, as a line of /etc/hosts does.
    #[must_use]
    pub fn with_host(mut self, name: &str, addresses: Vec<IpAddr>) -> Resolver {
        self.hosts.push((canonical(name), addresses));
        self
    }

    /// The addresses of `host` (IPv4 first); an address given as text is its own answer. `NotFound` means the name
    /// does not exist, any other error that nobody could be asked.
    pub async fn lookup(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if let Ok(address) = bare.parse() {
            return Ok(vec![address]);
        }
        let name = canonical(host);
        if let Some((_, addresses)) = self.hosts.iter().find(|(known, _)| *known == name) {
            return Ok(addresses.clone());
        }
        // Never asked of the network (RFC 6761, section 6.3).
        if name == "localhost" || name.ends_with(".localhost") {
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        let Upstreams { servers, search } = self.upstreams.borrow().clone();
        let mut missing = not_found(host);
        for candidate in candidates(host, &search) {
            match addresses(&servers, &candidate).await {
                Ok(found) if !found.is_empty() => return Ok(found),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => missing = error,
            }
        }
        Err(missing)
    }
}

fn canonical(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

fn not_found(host: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("lookup {host}: no such host"))
}

/// The full names to try, in order: a name with a dot as it is first, one without a dot in the search domains first.
fn candidates(host: &str, search: &[String]) -> Vec<String> {
    let name = canonical(host);
    if host.ends_with('.') {
        return vec![name];
    }
    let mut list: Vec<String> =
        search.iter().take(MAX_SEARCH).map(|domain| format!("{name}.{domain}")).collect();
    let at = if name.contains('.') { 0 } else { list.len() };
    list.insert(at, name);
    list
}

async fn addresses(servers: &[SocketAddr], name: &str) -> io::Result<Vec<IpAddr>> {
    let (v4, v6) =
        tokio::join!(records(servers, name, RecordType::A), records(servers, name, RecordType::AAAA));
    match (v4, v6) {
        (Ok(mut v4), Ok(v6)) => {
            v4.extend(v6);
            v4.truncate(MAX_ADDRESSES);
            Ok(v4)
        }
        // One family is enough to go on with; both errors are mostly the same.
        (Ok(found), Err(_)) | (Err(_), Ok(found)) if !found.is_empty() => Ok(found),
        (Err(error), _) | (_, Err(error)) => Err(error),
    }
}

async fn records(servers: &[SocketAddr], name: &str, kind: RecordType) -> io::Result<Vec<IpAddr>> {
    let invalid = |error: &dyn std::fmt::Display| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("lookup {name}: {error}"))
    };
    let mut full = Name::from_ascii(name).map_err(|error| invalid(&error))?;
    full.set_fqdn(true);
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(full, kind));
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_BYTES);
    message.set_edns(edns);
    let query = message.to_vec().map_err(|error| invalid(&error))?;

    let mut answer = ask(servers, &query, false).await?;
    if is_truncated(&answer) {
        answer = ask(servers, &query, true).await?;
    }
    let broken = |error| io::Error::new(io::ErrorKind::InvalidData, format!("lookup {name}: {error}"));
    let answer = Message::from_vec(&answer).map_err(broken)?;
    match answer.metadata.response_code {
        ResponseCode::NoError => {}
        ResponseCode::NXDomain => return Err(not_found(name)),
        code => return Err(io::Error::other(format!("lookup {name}: the name server answered {code}"))),
    }
    // Aliases were followed by the server we asked: every address in the answer is one of the name.
    let found = answer.answers.iter().filter_map(|record| match &record.data {
        RData::A(address) if kind == RecordType::A => Some(IpAddr::V4(address.0)),
        RData::AAAA(address) if kind == RecordType::AAAA => Some(IpAddr::V6(address.0)),
        _ => None,
    });
    Ok(found.take(MAX_ADDRESSES).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_tried_in_the_usual_order() {
        let search = ["a.test".to_owned(), "b.test".to_owned()];
        assert_eq!(candidates("db", &search), ["db.a.test", "db.b.test", "db"]);
        assert_eq!(candidates("Docker.io", &search), ["docker.io", "docker.io.a.test", "docker.io.b.test"]);
        assert_eq!(candidates("db.", &search), ["db"]);
    }

    #[tokio::test]
    async fn what_needs_no_server_is_not_asked() {
        let resolver = Resolver::new(watch::channel(Upstreams::default()).1);
        let resolver = resolver.with_host("Registry.test", vec![[192, 0, 2, 9].into()]);
        let texts = |found: io::Result<Vec<IpAddr>>| {
            found.map(|found| found.iter().map(ToString::to_string).collect::<Vec<_>>()).map_err(|e| e.kind())
        };
        assert_eq!(texts(resolver.lookup("192.0.2.1").await), Ok(vec!["192.0.2.1".into()]));
        assert_eq!(texts(resolver.lookup("[2001:db8::1]").await), Ok(vec!["2001:db8::1".into()]));
        assert_eq!(texts(resolver.lookup("registry.TEST.").await), Ok(vec!["192.0.2.9".into()]));
        assert_eq!(texts(resolver.lookup("x.localhost").await), Ok(vec!["127.0.0.1".into(), "::1".into()]));
        assert_eq!(texts(resolver.lookup("other.test").await), Err(io::ErrorKind::NotConnected));
    }
}
