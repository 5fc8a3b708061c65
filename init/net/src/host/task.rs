//! The task that owns the machine's interfaces.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::StartError;
use super::config::{Config, InterfaceConfig, Match};
use super::identity::{client_id, machine_id, write_aside};
use super::monitor::{Monitor, Notice};
use super::status::{Event, InterfaceStatus, Source, Status};
use super::uplink::{SETTLE, Uplink, solicit_routers};
use crate::dhcp::{Carrier, Client, Identity, Update};
use crate::netlink::{Interface, Route, link_up};
use crate::sysctl;
use crate::upstream::Upstreams;

/// News of DHCP clients waiting to be read.
const UPDATE_QUEUE: usize = 64;
/// Name service advice of routers is checked for its end this often.
const EXPIRY_CHECK: Duration = Duration::from_secs(30);
/// Pause after the monitor failed, before everything is read again.
const MONITOR_PAUSE: Duration = Duration::from_secs(1);
/// Name servers and search domains in force, each.
const MAX_NAMES: usize = 16;
/// Port of name servers.
const DNS_PORT: u16 = 53;
/// Format of the file that remembers a lease.
const LEASE_FORMAT: &str = "1";

pub(super) struct Task {
    config: watch::Receiver<Config>,
    state_dir: PathBuf,
    machine_id: [u8; 16],
    route: Route,
    monitor: Monitor,
    uplinks: BTreeMap<u32, Uplink>,
    updates: mpsc::Receiver<(u32, Update)>,
    update_sender: mpsc::Sender<(u32, Update)>,
    events: mpsc::Sender<Event>,
    status: watch::Sender<Status>,
    upstreams: watch::Sender<Upstreams>,
    /// When the kernel's IPv6 addresses and routes are to be read again.
    refresh: Option<Instant>,
    /// Something published may have changed.
    dirty: bool,
}

impl Task {
    pub(super) fn open(
        config: watch::Receiver<Config>,
        state_dir: &Path,
        events: mpsc::Sender<Event>,
    ) -> Result<Task, StartError> {
        let machine_id = machine_id(state_dir).map_err(StartError::MachineId)?;
        let monitor = Monitor::open().map_err(StartError::Netlink)?;
        let mut route = Route::open().map_err(StartError::Netlink)?;
        let loopback = route.apply(&[link_up(1)]).map_err(StartError::Loopback)?;
        loopback.map_err(|(_, failure)| StartError::Loopback(failure.errno.into()))?;
        // Bridges and the machine's sides of containers must not listen to routers; uplinks are told to one by one.
        // Without IPv6 there is nothing to set.
        let _ = sysctl::write("net/ipv6/conf/default/accept_ra", "0");
        let (update_sender, updates) = mpsc::channel(UPDATE_QUEUE);
        let mut task = Task {
            config,
            state_dir: state_dir.to_owned(),
            machine_id,
            route,
            monitor,
            uplinks: BTreeMap::new(),
            updates,
            update_sender,
            events,
            status: watch::Sender::new(Status::default()),
            upstreams: watch::Sender::new(Upstreams::default()),
            refresh: None,
            dirty: true,
        };
        task.rescan();
        task.publish();
        Ok(task)
    }

    pub(super) fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    pub(super) fn upstreams(&self) -> watch::Receiver<Upstreams> {
        self.upstreams.subscribe()
    }

    pub(super) async fn run(mut self) {
        let mut expiry = interval(EXPIRY_CHECK);
        expiry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let refresh = self.refresh;
            tokio::select! {
                changed = self.config.changed() => match changed {
                    Ok(()) => self.reconfigure(),
                    Err(_) => return,
                },
                notices = self.monitor.next() => match notices {
                    Ok(notices) => notices.into_iter().for_each(|notice| self.notice(notice)),
                    Err(error) => {
                        self.tell(failed("netlink", &error.to_string()));
                        tokio::time::sleep(MONITOR_PAUSE).await;
                        self.rescan();
                    }
                },
                update = self.updates.recv() => if let Some((index, update)) = update {
                    self.update(index, update);
                },
                _ = expiry.tick() => {
                    self.uplinks.values_mut().for_each(Uplink::expire);
                    self.dirty = true;
                }
                () = sleep_until(refresh.unwrap_or_else(Instant::now)), if refresh.is_some() => {
                    self.refresh = None;
                    self.dirty = true;
                }
            }
            if std::mem::take(&mut self.dirty) {
                self.publish();
            }
        }
    }

    fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Link(interface) => self.link(interface),
            Notice::Gone(index) => self.gone(index),
            Notice::Ipv6 => self.refresh = Some(Instant::now() + SETTLE),
            Notice::Router(index, advice) => {
                if let Some(uplink) = self.uplinks.get_mut(&index).filter(|u| u.config.router_advertisements)
                {
                    uplink.advised(advice);
                    self.dirty = true;
                }
            }
            Notice::Overrun => self.rescan(),
        }
    }

    /// Looks at every interface there is.
    fn rescan(&mut self) {
        let interfaces = match self.route.list() {
            Ok(interfaces) => interfaces,
            Err(error) => return self.tell(failed("netlink", &format!("list interfaces: {error}"))),
        };
        let there: BTreeSet<u32> = interfaces.iter().map(|interface| interface.index).collect();
        let gone: Vec<u32> = self.uplinks.keys().copied().filter(|index| !there.contains(index)).collect();
        for index in gone {
            self.gone(index);
        }
        for interface in interfaces {
            self.link(interface);
        }
    }

    fn link(&mut self, interface: Interface) {
        let Some(uplink) = self.uplinks.get_mut(&interface.index) else {
            let wanted = select(&self.config.borrow(), &interface).cloned();
            if let Some(config) = wanted {
                self.add(interface, config);
            }
            return;
        };
        let (index, name) = (interface.index, interface.name.clone());
        let before = std::mem::replace(&mut uplink.interface, interface);
        self.dirty |= before != uplink.interface;
        let carrier = uplink.interface.carrier;
        if before.carrier == carrier {
            return;
        }
        if carrier {
            let again = std::mem::replace(&mut uplink.had_carrier, true);
            if let Some(client) = &uplink.client {
                client.carrier(if again { Carrier::Returned } else { Carrier::Arrived });
            }
            self.solicit(index);
        }
        self.tell(Event::Carrier(name, carrier));
    }

    fn add(&mut self, interface: Interface, config: InterfaceConfig) {
        let index = interface.index;
        self.tell(Event::Added(interface.name.clone()));
        let uplink = Uplink::new(interface, config);
        let carrier = uplink.interface.carrier;
        self.uplinks.insert(index, uplink);
        self.configure(index);
        if carrier {
            self.solicit(index);
        }
    }

    /// Puts the configuration of an interface in force, starting or ending its DHCP client as it says.
    fn configure(&mut self, index: u32) {
        self.dirty = true;
        let Some(uplink) = self.uplinks.get_mut(&index) else { return };
        let name = uplink.interface.name.clone();
        let mut failures = uplink.bring_up(&mut self.route);
        if !uplink.config.dhcp4 {
            uplink.client = None;
            failures.extend(uplink.unbind(&mut self.route));
        }
        let wanted =
            (uplink.config.dhcp4 && uplink.client.is_none()).then_some(uplink.interface.mac).flatten();
        self.tell_failures(&name, &failures);
        if let Some(mac) = wanted {
            let client_id = client_id(self.machine_id, mac);
            let identity = Identity { mac, client_id, hostname: self.config.borrow().hostname.clone() };
            let earlier = self.remembered(&name);
            let client = Client::start(index, identity, earlier, self.update_sender.clone());
            if let Some(uplink) = self.uplinks.get_mut(&index) {
                uplink.client = Some(client);
            }
        }
    }

    fn solicit(&mut self, index: u32) {
        if self.uplinks.get(&index).is_some_and(|uplink| uplink.config.router_advertisements) {
            // Without a link-local address yet the kernel asks by itself once it has one.
            let _ = solicit_routers(index);
        }
    }

    fn gone(&mut self, index: u32) {
        if let Some(uplink) = self.uplinks.remove(&index) {
            self.dirty = true;
            self.tell(Event::Removed(uplink.interface.name));
        }
    }

    fn reconfigure(&mut self) {
        let config = self.config.borrow_and_update().clone();
        let changed: Vec<u32> = self
            .uplinks
            .iter()
            .filter(|(_, uplink)| select(&config, &uplink.interface) != Some(&uplink.config))
            .map(|(index, _)| *index)
            .collect();
        for index in changed {
            let Some(uplink) = self.uplinks.get_mut(&index) else { continue };
            let name = uplink.interface.name.clone();
            let wanted = select(&config, &uplink.interface);
            let mut failures = uplink.retire(wanted, &mut self.route);
            if let Some(wanted) = wanted {
                uplink.config = wanted.clone();
                self.configure(index);
            } else {
                failures.extend(uplink.unbind(&mut self.route));
                self.uplinks.remove(&index);
            }
            self.tell_failures(&name, &failures);
        }
        self.dirty = true;
        self.rescan();
    }

    fn update(&mut self, index: u32, update: Update) {
        // News of a client that was ended meanwhile is of no use.
        let Some(uplink) = self.uplinks.get_mut(&index).filter(|uplink| uplink.client.is_some()) else {
            return;
        };
        self.dirty = true;
        let name = uplink.interface.name.clone();
        let failures = match update {
            Update::Bound(lease) => {
                let same = uplink.lease.as_ref() == Some(&*lease);
                let address = lease.address;
                let event = Event::Bound {
                    interface: name.clone(),
                    address: IpNet::V4(address),
                    gateway: lease.gateway().map(IpAddr::V4),
                    lease_s: lease.valid.map_or(u32::MAX, |v| u32::try_from(v.as_secs()).unwrap_or(u32::MAX)),
                };
                let mut failures = uplink.bind(*lease, &mut self.route);
                if !same {
                    self.tell(event);
                }
                if let Err(error) = self.remember(&name, address.addr()) {
                    failures.push(format!("remember the lease: {error}"));
                }
                failures
            }
            Update::Lost => {
                let failures = uplink.unbind(&mut self.route);
                self.tell(Event::Lost(name.clone()));
                failures
            }
            Update::Failed(error) => vec![format!("DHCP: {error}")],
        };
        self.tell_failures(&name, &failures);
    }

    fn remembered(&self, name: &str) -> Option<Ipv4Addr> {
        let text = fs::read_to_string(self.state_dir.join(lease_file(name))).ok()?;
        let mut words = text.split_whitespace();
        let format = words.next()?;
        words.next().filter(|_| format == LEASE_FORMAT)?.parse().ok()
    }

    fn remember(&self, name: &str, address: Ipv4Addr) -> io::Result<()> {
        if self.remembered(name) == Some(address) {
            return Ok(());
        }
        write_aside(&self.state_dir, &lease_file(name), format!("{LEASE_FORMAT} {address}\n").as_bytes())
    }

    fn tell(&self, event: Event) {
        // A reader that does not read loses events, never holds up the network.
        let _ = self.events.try_send(event);
    }

    fn tell_failures(&self, name: &str, failures: &[String]) {
        for reason in failures {
            self.tell(failed(name, reason));
        }
    }

    /// Puts together what is known now and publishes it where it changed.
    fn publish(&mut self) {
        let addresses = self.route.addresses().unwrap_or_default();
        let gateways = self.route.gateways().unwrap_or_default();
        let config = self.config.borrow();
        let mut status = Status::default();
        let mut upstreams = Upstreams::default();
        for server in &config.dns {
            push(&mut status.dns, *server);
            push(&mut upstreams.servers, SocketAddr::new(*server, DNS_PORT));
        }
        for domain in &config.search {
            push(&mut status.search, domain.clone());
        }
        for (index, uplink) in &self.uplinks {
            status.interfaces.push(describe(*index, uplink, &addresses, &gateways));
            for server in uplink.servers() {
                push(&mut status.dns, server);
                push(&mut upstreams.servers, reachable(server, *index));
            }
            for domain in uplink.search() {
                push(&mut status.search, domain.clone());
            }
            for server in uplink.lease.iter().flat_map(|lease| &lease.ntp) {
                push(&mut status.ntp, IpAddr::V4(*server));
            }
        }
        upstreams.search.clone_from(&status.search);
        publish_if_changed(&self.status, status);
        publish_if_changed(&self.upstreams, upstreams);
    }
}

fn publish_if_changed<T: PartialEq>(sender: &watch::Sender<T>, value: T) {
    sender.send_if_modified(|old| {
        let changed = *old != value;
        *old = value;
        changed
    });
}

fn push<T: PartialEq>(list: &mut Vec<T>, value: T) {
    if list.len() < MAX_NAMES && !list.contains(&value) {
        list.push(value);
    }
}

/// A link-local name server is reached by its interface only.
fn reachable(server: IpAddr, index: u32) -> SocketAddr {
    match server {
        IpAddr::V6(address) if address.is_unicast_link_local() => {
            SocketAddr::V6(SocketAddrV6::new(address, DNS_PORT, 0, index))
        }
        server => SocketAddr::new(server, DNS_PORT),
    }
}

fn describe(
    index: u32,
    uplink: &Uplink,
    addresses: &[(u32, IpNet)],
    gateways: &[(u32, IpAddr)],
) -> InterfaceStatus {
    let source = |net: &IpNet| {
        if uplink.config.addresses.contains(net) {
            Source::Fixed
        } else if uplink.leased_address().map(IpAddr::V4) == Some(net.addr()) {
            Source::Dhcp
        } else {
            Source::Router
        }
    };
    InterfaceStatus {
        index,
        name: uplink.interface.name.clone(),
        mac: uplink.interface.mac,
        mtu: uplink.interface.mtu,
        carrier: uplink.interface.carrier,
        addresses: addresses
            .iter()
            .filter(|(at, _)| *at == index)
            .map(|(_, net)| (*net, source(net)))
            .collect(),
        gateways: gateways.iter().filter(|(at, _)| *at == index).map(|(_, gateway)| *gateway).collect(),
        dhcp_server: uplink.lease.as_ref().map(|lease| lease.server),
    }
}

/// The entry of the configuration an interface is looked after by.
fn select<'a>(config: &'a Config, interface: &Interface) -> Option<&'a InterfaceConfig> {
    if interface.loopback || interface.controller.is_some() {
        return None;
    }
    config.interfaces.iter().find(|entry| match &entry.matches {
        Match::Any => interface.kind.is_empty() && interface.mac.is_some(),
        Match::Name(name) => *name == interface.name,
        Match::Mac(mac) => Some(*mac) == interface.mac,
    })
}

fn lease_file(name: &str) -> String {
    // Interface names have no slash, and the prefix keeps "." and ".." from being one.
    format!("dhcp-{name}.lease")
}

fn failed(name: &str, reason: &str) -> Event {
    Event::Failed { interface: name.to_owned(), reason: reason.to_owned() }
}
