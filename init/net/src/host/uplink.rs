//! One interface that is looked after: bringing it up, putting a lease in force, taking it back.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with, sockopt};

use super::config::InterfaceConfig;
use super::router::Advice;
use crate::dhcp::{Client, Lease};
use crate::netlink::{
    Interface, Path, Request, Route, add_route, default_path, delete_address, delete_route, lend_address,
    new_link, switch_on,
};
use crate::sysctl;

/// Metric of default routes from the configuration: before learnt ones.
const FIXED_METRIC: u32 = 50;
/// Metric of routes from leases; the interface number is added, so two interfaces do not replace each other's.
const LEASE_METRIC: u32 = 100;
/// Type of a router solicitation (RFC 4861).
const ROUTER_SOLICITATION: u8 = 133;
/// Hops of neighbour discovery messages: routers drop those that came from farther.
const ND_HOPS: u32 = 255;
/// How long after a change the addresses are read again: routers' advertisements change several at once.
pub(super) const SETTLE: Duration = Duration::from_millis(50);
/// Servers and domains remembered of routers' advertisements on one interface, each.
const MAX_LEARNT: usize = 16;
/// All routers of a link.
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// An interface looked after.
#[derive(Debug)]
pub(super) struct Uplink {
    pub(super) interface: Interface,
    pub(super) config: InterfaceConfig,
    pub(super) client: Option<Client>,
    pub(super) lease: Option<Lease>,
    /// The cable has been in since the interface is looked after.
    pub(super) had_carrier: bool,
    servers: Vec<(Ipv6Addr, Instant)>,
    search: Vec<(String, Instant)>,
}

impl Uplink {
    /// Takes charge of an interface.
    pub(super) fn new(interface: Interface, config: InterfaceConfig) -> Uplink {
        Uplink {
            had_carrier: interface.carrier,
            interface,
            config,
            client: None,
            lease: None,
            servers: Vec::new(),
            search: Vec::new(),
        }
    }

    /// Brings the interface up as configured. Every step is tried; the failures are returned.
    pub(super) fn bring_up(&self, route: &mut Route) -> Vec<String> {
        let mut failures = Vec::new();
        let (index, config) = (self.interface.index, &self.config);
        let accept = if config.router_advertisements { "2" } else { "0" };
        // 2: also when the machine forwards packets, which it does for its containers.
        let setting = format!("net/ipv6/conf/{}/accept_ra", self.interface.name);
        match sysctl::write(&setting, accept) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                failures.push(format!("set {setting}: {error}"));
            }
            _ => {}
        }
        let mut on = LinkMessage::default();
        on.header.index = index;
        switch_on(&mut on);
        if let Some(mtu) = config.mtu {
            on.attributes.push(LinkAttribute::Mtu(mtu));
        }
        let mut requests = vec![new_link(&on, 0)];
        requests.extend(config.addresses.iter().map(|address| lend_address(index, *address, None)));
        let gateways =
            config.gateways.iter().map(|gateway| Path { metric: FIXED_METRIC, ..default_path(*gateway) });
        requests.extend(gateways.map(|path| add_route(index, &path)));
        failures.extend(each(route, &requests, "bring up"));
        failures
    }

    /// Puts a lease in force in place of the one before.
    pub(super) fn bind(&mut self, lease: Lease, route: &mut Route) -> Vec<String> {
        let index = self.interface.index;
        let before = self.lease.take();
        let mut requests = Vec::new();
        if let (Some(mtu), None) = (lease.mtu, self.config.mtu) {
            let mut change = LinkMessage::default();
            change.header.index = index;
            change.attributes.push(LinkAttribute::Mtu(mtu.into()));
            requests.push(new_link(&change, 0));
        }
        let valid = lease.valid.map(|valid| u32::try_from(valid.as_secs()).unwrap_or(u32::MAX - 1));
        requests.push(lend_address(index, IpNet::V4(lease.address), valid));
        let paths = self.paths(&lease);
        requests.extend(paths.iter().map(|path| add_route(index, path)));
        let failures = each(route, &requests, "put the lease in force");
        if let Some(before) = before {
            let stale = self.paths(&before).into_iter().filter(|path| !paths.contains(path));
            let mut requests: Vec<Request> = stale.map(|path| delete_route(index, &path)).collect();
            if before.address != lease.address {
                requests.push(delete_address(index, IpNet::V4(before.address)));
            }
            // What is not there any more need not be removed.
            let _ = each(route, &requests, "remove the earlier lease");
        }
        self.lease = Some(lease);
        failures
    }

    /// Takes the lease out of force. Its routes go with its address.
    pub(super) fn unbind(&mut self, route: &mut Route) -> Vec<String> {
        let Some(lease) = self.lease.take() else { return Vec::new() };
        each(route, &[delete_address(self.interface.index, IpNet::V4(lease.address))], "remove the lease")
    }

    /// Takes away what the configuration `wanted` from now on does not have any more.
    pub(super) fn retire(&mut self, wanted: Option<&InterfaceConfig>, route: &mut Route) -> Vec<String> {
        let index = self.interface.index;
        let dropped = |address: &&IpNet| !wanted.is_some_and(|wanted| wanted.addresses.contains(address));
        let unused = |gateway: &&IpAddr| !wanted.is_some_and(|wanted| wanted.gateways.contains(gateway));
        let paths = self.config.gateways.iter().filter(unused);
        let paths = paths.map(|gateway| Path { metric: FIXED_METRIC, ..default_path(*gateway) });
        let mut requests: Vec<Request> = paths.map(|path| delete_route(index, &path)).collect();
        let addresses = self.config.addresses.iter().filter(dropped);
        requests.extend(addresses.map(|address| delete_address(index, *address)));
        each(route, &requests, "apply the new configuration")
    }

    /// The routes of a lease in an order in which each gateway is known when it is needed.
    fn paths(&self, lease: &Lease) -> Vec<Path> {
        let mut paths: Vec<Path> = lease
            .routes
            .iter()
            .map(|route| Path {
                destination: IpNet::V4(route.destination),
                gateway: route.gateway.map(IpAddr::V4),
                source: Some(IpAddr::V4(lease.address.addr())),
                metric: LEASE_METRIC + self.interface.index,
            })
            .collect();
        paths.sort_by_key(|path| (path.gateway.is_some(), path.destination.prefix_len() == 0));
        paths
    }

    /// Remembers what a router said about name service.
    pub(super) fn advised(&mut self, advice: Vec<Advice>) {
        let now = Instant::now();
        for advice in advice {
            match advice {
                Advice::Servers(servers, lifetime) => {
                    for server in servers {
                        self.servers.retain(|(known, _)| *known != server);
                        self.servers.extend(now.checked_add(lifetime).map(|until| (server, until)));
                    }
                }
                Advice::Search(domains, lifetime) => {
                    for domain in domains {
                        self.search.retain(|(known, _)| *known != domain);
                        self.search.extend(now.checked_add(lifetime).map(|until| (domain, until)));
                    }
                }
            }
        }
        self.expire();
        self.servers.truncate(MAX_LEARNT);
        self.search.truncate(MAX_LEARNT);
    }

    /// Forgets what has run out.
    pub(super) fn expire(&mut self) {
        let now = Instant::now();
        self.servers.retain(|(_, until)| *until > now);
        self.search.retain(|(_, until)| *until > now);
    }

    /// Name servers learnt on this interface.
    pub(super) fn servers(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let leased = self.lease.iter().flat_map(|lease| lease.dns.iter().map(|server| IpAddr::V4(*server)));
        leased.chain(self.servers.iter().map(|(server, _)| IpAddr::V6(*server)))
    }

    /// Search domains learnt on this interface.
    pub(super) fn search(&self) -> impl Iterator<Item = &String> + '_ {
        let leased = self.lease.iter().flat_map(|lease| lease.search.iter());
        leased.chain(self.search.iter().map(|(domain, _)| domain))
    }

    /// The address a lease gave.
    pub(super) fn leased_address(&self) -> Option<Ipv4Addr> {
        self.lease.as_ref().map(|lease| lease.address.addr())
    }
}

/// Sends the requests and describes those refused.
fn each(route: &mut Route, requests: &[Request], what: &str) -> Vec<String> {
    let mut failures = Vec::new();
    for request in requests {
        match route.apply(std::slice::from_ref(request)) {
            Ok(Ok(())) => {}
            Ok(Err((_, failure))) if failure.errno == Errno::EXIST => {}
            Ok(Err((_, failure))) => failures.push(format!("{what}: {failure}")),
            Err(error) => failures.push(format!("{what}: {error}")),
        }
    }
    failures
}

/// Asks the routers of the link to introduce themselves: the kernel asks only when the interface comes up, and what
/// they said before this program started is lost.
pub(super) fn solicit_routers(index: u32) -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET6, SocketType::RAW, flags, Some(ipproto::ICMPV6))?;
    sockopt::set_ipv6_multicast_hops(&socket, ND_HOPS)?;
    let to = SocketAddrV6::new(ALL_ROUTERS, 0, 0, index);
    sendto(&socket, &[ROUTER_SOLICITATION, 0, 0, 0, 0, 0, 0, 0], SendFlags::empty(), &to)?;
    Ok(())
}
