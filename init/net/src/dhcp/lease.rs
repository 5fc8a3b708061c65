//! What a DHCP server's answer says, checked and with its contradictions resolved.

use std::net::Ipv4Addr;
use std::time::Duration;

use dhcproto::v4::{DhcpOption, Message, OptionCode};
use ipnet::Ipv4Net;

/// Lease time when the server names none.
const DEFAULT_LEASE: Duration = Duration::from_secs(3600);
/// Shortest lease time honoured: a server that says 0 must not make us ask without pause.
const MIN_LEASE: Duration = Duration::from_secs(60);
/// Routes, name servers and search domains taken from one answer, each.
const MAX_ENTRIES: usize = 32;
/// Smallest MTU believed (RFC 2132, section 5.1, says 68; nothing works below this one).
const MIN_MTU: u16 = 576;
/// Longest search domain (RFC 1035).
const MAX_DOMAIN_BYTES: usize = 253;

/// A lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The address with its prefix length.
    pub address: Ipv4Net,
    /// The server to renew it at.
    pub server: Ipv4Addr,
    /// Routes, the default route included.
    pub routes: Vec<Route>,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
    /// Search domains, without closing dot.
    pub search: Vec<String>,
    /// Time servers.
    pub ntp: Vec<Ipv4Addr>,
    /// Largest packet in bytes.
    pub mtu: Option<u16>,
    /// Time after which the server is asked to renew.
    pub renew: Duration,
    /// Time after which any server is asked.
    pub rebind: Duration,
    /// Time after which the address is no longer ours; `None` is never.
    pub valid: Option<Duration>,
}

/// A route of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Where to; a prefix length of 0 is the default route.
    pub destination: Ipv4Net,
    /// By way of; `None` when the destination is on the link itself.
    pub gateway: Option<Ipv4Addr>,
}

impl Lease {
    /// Reads an offer or acknowledgement. `None` when it has no address or server to use.
    pub fn from_message(message: &Message) -> Option<Lease> {
        let ip = message.yiaddr();
        if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast() {
            return None;
        }
        let options = message.opts();
        let server = match options.get(OptionCode::ServerIdentifier) {
            Some(DhcpOption::ServerIdentifier(server)) if !server.is_unspecified() => *server,
            _ => return None,
        };
        let mask = match options.get(OptionCode::SubnetMask) {
            Some(DhcpOption::SubnetMask(mask)) => *mask,
            _ => classful_mask(ip),
        };
        let address = Ipv4Net::with_netmask(ip, mask).ok().filter(|net| net.prefix_len() > 0)?;
        let (renew, rebind, valid) = times(message);
        Some(Lease {
            address,
            server,
            routes: routes(message),
            dns: addresses(options.get(OptionCode::DomainNameServer)),
            search: search(message),
            ntp: addresses(options.get(OptionCode::NtpServers)),
            mtu: match options.get(OptionCode::InterfaceMtu) {
                Some(DhcpOption::InterfaceMtu(mtu)) if *mtu >= MIN_MTU => Some(*mtu),
                _ => None,
            },
            renew,
            rebind,
            valid,
        })
    }

    /// The gateway of the default route.
    pub fn gateway(&self) -> Option<Ipv4Addr> {
        self.routes.iter().find(|route| route.destination.prefix_len() == 0).and_then(|route| route.gateway)
    }
}

/// Option 121 when it is there, and then nothing of option 3 (RFC 3442: a server that sends both repeats the default
/// route in 121).
fn routes(message: &Message) -> Vec<Route> {
    let options = message.opts();
    if let Some(DhcpOption::ClasslessStaticRoute(routes)) = options.get(OptionCode::ClasslessStaticRoute) {
        let route = |(destination, gateway): &(Ipv4Net, Ipv4Addr)| Route {
            destination: destination.trunc(),
            gateway: Some(*gateway).filter(|gateway| !gateway.is_unspecified()),
        };
        return routes.iter().take(MAX_ENTRIES).map(route).collect();
    }
    let gateway = addresses(options.get(OptionCode::Router)).into_iter().next();
    gateway
        .map(|gateway| Route { destination: Ipv4Net::default(), gateway: Some(gateway) })
        .into_iter()
        .collect()
}

fn addresses(option: Option<&DhcpOption>) -> Vec<Ipv4Addr> {
    let Some(DhcpOption::DomainNameServer(list) | DhcpOption::NtpServers(list) | DhcpOption::Router(list)) =
        option
    else {
        return Vec::new();
    };
    list.iter().copied().filter(|address| !address.is_unspecified()).take(MAX_ENTRIES).collect()
}

/// Option 119, or else the machine's own domain of option 15.
fn search(message: &Message) -> Vec<String> {
    let options = message.opts();
    let names: Vec<String> = match options.get(OptionCode::DomainSearch) {
        Some(DhcpOption::DomainSearch(names)) => names.iter().map(ToString::to_string).collect(),
        _ => match options.get(OptionCode::DomainName) {
            Some(DhcpOption::DomainName(name)) => vec![name.clone()],
            _ => Vec::new(),
        },
    };
    let clean = |name: &String| {
        let name = name.trim_end_matches(['.', '\0']).to_ascii_lowercase();
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.' || b == b'_');
        // It ends up in resolv.conf: no space or line end may get there.
        (plain && !name.is_empty() && name.len() <= MAX_DOMAIN_BYTES).then_some(name)
    };
    names.iter().filter_map(clean).take(MAX_ENTRIES).collect()
}

fn times(message: &Message) -> (Duration, Duration, Option<Duration>) {
    let options = message.opts();
    let seconds = |code| match options.get(code) {
        Some(
            DhcpOption::AddressLeaseTime(seconds)
            | DhcpOption::Renewal(seconds)
            | DhcpOption::Rebinding(seconds),
        ) => Some(*seconds),
        _ => None,
    };
    let lease = seconds(OptionCode::AddressLeaseTime);
    let valid = match lease {
        Some(u32::MAX) => None,
        Some(seconds) => Some(Duration::from_secs(seconds.into()).max(MIN_LEASE)),
        None => Some(DEFAULT_LEASE),
    };
    // 136 years stand for "never" in the times below.
    let whole = valid.unwrap_or(Duration::from_secs(u32::MAX.into()));
    let given = |code| seconds(code).map(|seconds| Duration::from_secs(seconds.into()));
    let rebind = given(OptionCode::Rebinding).filter(|t| *t < whole && !t.is_zero()).unwrap_or(whole / 8 * 7);
    let renew = given(OptionCode::Renewal)
        .filter(|t| *t <= rebind && !t.is_zero())
        .unwrap_or((whole / 2).min(rebind));
    (renew, rebind, valid)
}

/// The mask before there were masks: some servers still send none.
fn classful_mask(address: Ipv4Addr) -> Ipv4Addr {
    match address.octets()[0] {
        0..=127 => Ipv4Addr::new(255, 0, 0, 0),
        128..=191 => Ipv4Addr::new(255, 255, 0, 0),
        _ => Ipv4Addr::new(255, 255, 255, 0),
    }
}

#[cfg(test)]
mod tests {
    use dhcproto::{Decodable, Decoder, Encodable};

    use super::*;

    fn answer(options: Vec<DhcpOption>) -> Message {
        let mut message = Message::default();
        message.set_yiaddr([192, 0, 2, 7]);
        message.opts_mut().insert(DhcpOption::ServerIdentifier([192, 0, 2, 1].into()));
        for option in options {
            message.opts_mut().insert(option);
        }
        // Through the wire, so the codec is part of what is tested.
        let bytes = message.to_vec().unwrap();
        Message::decode(&mut Decoder::new(&bytes)).unwrap()
    }

    fn lease(options: Vec<DhcpOption>) -> Lease {
        Lease::from_message(&answer(options)).unwrap()
    }

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    fn route(destination: &str, gateway: Option<&str>) -> Route {
        Route { destination: destination.parse().unwrap(), gateway: gateway.map(ip) }
    }

    #[test]
    fn classless_routes_replace_the_router() {
        let classless = vec![
            ("0.0.0.0/0".parse().unwrap(), ip("192.0.2.254")),
            ("10.1.2.3/9".parse().unwrap(), ip("192.0.2.2")),
            ("169.254.169.254/32".parse().unwrap(), ip("0.0.0.0")),
        ];
        let both = lease(vec![
            DhcpOption::Router(vec![ip("192.0.2.1")]),
            DhcpOption::ClasslessStaticRoute(classless),
        ]);
        let expected = [
            route("0.0.0.0/0", Some("192.0.2.254")),
            route("10.0.0.0/9", Some("192.0.2.2")),
            route("169.254.169.254/32", None),
        ];
        assert_eq!(both.routes, expected);
        assert_eq!(both.gateway(), Some(ip("192.0.2.254")));
        let router = lease(vec![DhcpOption::Router(vec![ip("0.0.0.0"), ip("192.0.2.1")])]);
        assert_eq!(router.routes, [route("0.0.0.0/0", Some("192.0.2.1"))]);
        // A 121 without default route means there is none.
        let none = lease(vec![
            DhcpOption::Router(vec![ip("192.0.2.1")]),
            DhcpOption::ClasslessStaticRoute(vec![("10.0.0.0/8".parse().unwrap(), ip("192.0.2.2"))]),
        ]);
        assert_eq!(none.gateway(), None);
    }

    #[test]
    fn times_are_ordered_whatever_the_server_says() {
        let secs =
            |lease: &Lease| (lease.renew.as_secs(), lease.rebind.as_secs(), lease.valid.map(|v| v.as_secs()));
        assert_eq!(secs(&lease(vec![])), (1800, 3150, Some(3600)));
        assert_eq!(secs(&lease(vec![DhcpOption::AddressLeaseTime(0)])), (30, 52, Some(60)));
        let given =
            vec![DhcpOption::AddressLeaseTime(1000), DhcpOption::Renewal(100), DhcpOption::Rebinding(200)];
        assert_eq!(secs(&lease(given)), (100, 200, Some(1000)));
        let wrong =
            vec![DhcpOption::AddressLeaseTime(800), DhcpOption::Renewal(900), DhcpOption::Rebinding(900)];
        assert_eq!(secs(&lease(wrong)), (400, 700, Some(800)));
        assert_eq!(lease(vec![DhcpOption::AddressLeaseTime(u32::MAX)]).valid, None);
    }

    #[test]
    fn domains_cannot_break_out_of_resolv_conf() {
        let one = |name: &str| lease(vec![DhcpOption::DomainName(name.to_owned())]).search;
        assert_eq!(one("Example.ORG."), ["example.org"]);
        assert!(one("a b").is_empty());
        assert!(one("a\nnameserver 6.6.6.6").is_empty());
        let list = vec!["one.example.".parse().unwrap(), "two.example.".parse().unwrap()];
        let both = lease(vec![DhcpOption::DomainName("x.example".into()), DhcpOption::DomainSearch(list)]);
        assert_eq!(both.search, ["one.example", "two.example"]);
    }

    #[test]
    fn answers_without_a_usable_address_are_no_lease() {
        let mut message = answer(vec![]);
        message.set_yiaddr([0, 0, 0, 0]);
        assert_eq!(Lease::from_message(&message), None);
        let mut message = answer(vec![]);
        message.opts_mut().remove(OptionCode::ServerIdentifier);
        assert_eq!(Lease::from_message(&message), None);
        let mask = |mask: &str| Lease::from_message(&answer(vec![DhcpOption::SubnetMask(ip(mask))]));
        assert_eq!(mask("255.0.255.0"), None);
        assert_eq!(mask("0.0.0.0"), None);
        assert_eq!(mask("255.255.255.255").unwrap().address.prefix_len(), 32);
        assert_eq!(lease(vec![]).address.prefix_len(), 24);
        assert_eq!(lease(vec![DhcpOption::InterfaceMtu(100)]).mtu, None);
    }
}
