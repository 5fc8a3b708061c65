//! Name servers and search domains from router advertisements. The kernel takes addresses and routes out of them and
//! hands these options on (RFC 8106).

use std::net::Ipv6Addr;
use std::time::Duration;

const HEADER_BYTES: usize = 16;
const RECURSIVE_SERVERS: u8 = 25;
const SEARCH_LIST: u8 = 31;
/// Servers or domains taken from one option.
const MAX_ENTRIES: usize = 16;
/// Longest search domain (RFC 1035).
const MAX_DOMAIN_BYTES: usize = 253;

/// What an advertisement said about name service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Advice {
    /// These servers, for so long; zero takes them back.
    Servers(Vec<Ipv6Addr>, Duration),
    /// These search domains, for so long.
    Search(Vec<String>, Duration),
}

/// Reads a `nduseroptmsg`: interface number and what was said.
pub(super) fn parse(message: &[u8]) -> Option<(u32, Vec<Advice>)> {
    let index = u32::from_ne_bytes(message.get(4..8)?.try_into().ok()?);
    let length = usize::from(u16::from_ne_bytes(message.get(2..4)?.try_into().ok()?));
    let mut options = message.get(HEADER_BYTES..HEADER_BYTES + length)?;
    let mut advice = Vec::new();
    while let [kind, units, ..] = *options {
        // A length of zero would never end.
        let option = options.get(..usize::from(units) * 8).filter(|option| option.len() >= 8)?;
        let seconds = u32::from_be_bytes(option.get(4..8)?.try_into().ok()?);
        let lifetime = Duration::from_secs(seconds.into());
        match kind {
            RECURSIVE_SERVERS => {
                let servers = option[8..].chunks_exact(16).take(MAX_ENTRIES);
                let address = |bytes: &[u8]| <[u8; 16]>::try_from(bytes).ok().map(Ipv6Addr::from);
                advice.push(Advice::Servers(servers.filter_map(address).collect(), lifetime));
            }
            SEARCH_LIST => advice.push(Advice::Search(domains(&option[8..]), lifetime)),
            _ => {}
        }
        options = &options[option.len()..];
    }
    Some((index, advice))
}

/// Names as DNS writes them, without pointers, the rest filled with zeros.
fn domains(mut bytes: &[u8]) -> Vec<String> {
    let mut domains = Vec::new();
    let mut labels: Vec<&str> = Vec::new();
    while let [length, rest @ ..] = bytes {
        let Some((label, after)) = rest.split_at_checked(usize::from(*length)) else { break };
        bytes = after;
        if label.is_empty() {
            let name = labels.join(".").to_ascii_lowercase();
            if !name.is_empty() && name.len() <= MAX_DOMAIN_BYTES && domains.len() < MAX_ENTRIES {
                domains.push(name);
            }
            labels.clear();
            continue;
        }
        match std::str::from_utf8(label) {
            Ok(label) if label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') => {
                labels.push(label);
            }
            _ => break,
        }
    }
    domains
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(options: &[u8]) -> Vec<u8> {
        let mut bytes = vec![10, 0];
        bytes.extend(u16::try_from(options.len()).unwrap().to_ne_bytes());
        bytes.extend(3_u32.to_ne_bytes());
        bytes.extend([134, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend(options);
        bytes
    }

    #[test]
    fn servers_and_domains_are_read() {
        let server: Ipv6Addr = "2001:db8::53".parse().unwrap();
        let mut options = vec![25, 3, 0, 0, 0, 0, 0, 60];
        options.extend(server.octets());
        options.extend([31, 3, 0, 0, 0, 0, 0, 0]);
        options.extend(b"\x04corp\x07example\0\0\0");
        let expected = vec![
            Advice::Servers(vec![server], Duration::from_secs(60)),
            Advice::Search(vec!["corp.example".into()], Duration::ZERO),
        ];
        assert_eq!(parse(&message(&options)), Some((3, expected)));
    }

    proptest::proptest! {
        #[test]
        fn no_advertisement_of_a_stranger_does_harm(
            options in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300),
        ) {
            let _ = parse(&message(&options));
            let _ = parse(&options);
        }
    }

    #[test]
    fn broken_options_end_the_reading() {
        assert_eq!(parse(&message(&[25, 0, 0, 0, 0, 0, 0, 0])), None);
        assert_eq!(parse(&message(&[25, 9, 0, 0, 0, 0, 0, 0])), None);
        assert_eq!(parse(&[0; 4]), None);
        assert_eq!(domains(b"\x09cut"), Vec::<String>::new());
        assert_eq!(domains(b"\x03a b\0"), Vec::<String>::new());
    }
}
