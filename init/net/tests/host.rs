//! The machine's own interfaces against a DHCP server in another namespace.

mod lab;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use berth_net::bridge::{self, BridgeConfig};
use berth_net::host::{self, Config, Event, InterfaceConfig, Match, Source, Status};
use berth_net::netlink::Route;
use berth_net::veth::{Port, attach, detach};
use berth_net::{Mac, sysctl};
use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable};
use lab::{here, ip, namespace, net, on_machine, within};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{setsockopt, sockopt};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with};
use tokio::sync::watch;

/// Longest wait for something that shall happen.
const PATIENCE: Duration = Duration::from_secs(10);

/// A network beside the machine, with a bridge called lan0 at 192.0.2.1.
struct Lan {
    netns: OwnedFd,
    machine: OwnedFd,
}

impl Lan {
    fn new() -> Lan {
        let lan = Lan { netns: namespace(), machine: here() };
        within(&lan.netns, || {
            let gateways = vec![net("192.0.2.1/24"), net("2001:db8::1/64")];
            bridge::ensure(&BridgeConfig {
                name: "lan0".into(),
                gateways,
                mtu: 1500,
                mac: Mac([2, 0, 0, 0, 0, 1]),
            })
            .unwrap();
        });
        lan
    }

    /// Plugs a cable into the machine: an interface called `name` there.
    fn plug(&self, name: &str) {
        let port = Port {
            bridge: "lan0".into(),
            host_name: format!("to-{name}"),
            container_name: name.into(),
            mac: Mac([2, 0, 0, 0, 0, 7]),
            addresses: vec![],
            gateways: vec![],
            mtu: 1500,
            isolated: false,
        };
        within(&self.netns, || attach(self.machine.as_fd(), &port).unwrap());
    }

    fn unplug(&self, name: &str) {
        within(&self.netns, || detach(&format!("to-{name}")).unwrap());
    }

    /// Serves `script` of answers, the next one to the next message it fits; a message asked again gets its answer
    /// again. What came is reported.
    fn serve(&self, script: Vec<Answer>) -> mpsc::Receiver<Message> {
        let (report, received) = mpsc::channel();
        let netns = self.netns.try_clone().unwrap();
        let (ready, wait) = mpsc::channel();
        thread::spawn(move || {
            setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
            let socket = UdpSocket::bind("0.0.0.0:67").unwrap();
            socket.set_broadcast(true).unwrap();
            setsockopt(&socket, sockopt::BindToDevice, &"lan0".into()).unwrap();
            ready.send(()).unwrap();
            let mut script: VecDeque<Answer> = script.into();
            let mut given: Option<(MessageType, Answer)> = None;
            let mut buffer = [0; 1500];
            while let Ok((count, from)) = socket.recv_from(&mut buffer) {
                let question = Message::decode(&mut Decoder::new(&buffer[..count])).unwrap();
                let kind = question.opts().msg_type().unwrap();
                if script.front().is_some_and(|answer| answer.fits(kind)) {
                    given = script.pop_front().map(|answer| (kind, answer));
                }
                let answer = given.as_ref().filter(|(to, _)| *to == kind);
                if let Some(answer) = answer.and_then(|(_, answer)| answer.to(&question)) {
                    let to =
                        if from.ip().is_unspecified() { "255.255.255.255:68".parse().unwrap() } else { from };
                    socket.send_to(&answer.to_vec().unwrap(), to).unwrap();
                }
                if report.send(question).is_err() {
                    return;
                }
            }
        });
        wait.recv().unwrap();
        received
    }
}

struct Answer {
    kind: Option<MessageType>,
    address: Ipv4Addr,
    options: Vec<DhcpOption>,
}

fn answer(kind: MessageType, address: &str, options: &[DhcpOption]) -> Answer {
    Answer { kind: Some(kind), address: address.parse().unwrap(), options: options.to_vec() }
}

fn silence() -> Answer {
    Answer { kind: None, address: Ipv4Addr::UNSPECIFIED, options: vec![] }
}

impl Answer {
    fn fits(&self, question: MessageType) -> bool {
        match self.kind {
            None => true,
            Some(MessageType::Offer) => question == MessageType::Discover,
            Some(_) => question == MessageType::Request,
        }
    }

    fn to(&self, question: &Message) -> Option<Message> {
        let kind = self.kind?;
        let mut message = question.clone();
        message.set_opcode(Opcode::BootReply).set_yiaddr(self.address);
        let options = message.opts_mut();
        options.clear();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ServerIdentifier([192, 0, 2, 1].into()));
        for option in &self.options {
            options.insert(option.clone());
        }
        Some(message)
    }
}

fn usual() -> Vec<DhcpOption> {
    vec![
        DhcpOption::SubnetMask([255, 255, 255, 0].into()),
        DhcpOption::AddressLeaseTime(3600),
        DhcpOption::Router(vec![[192, 0, 2, 1].into()]),
        DhcpOption::DomainNameServer(vec![[192, 0, 2, 53].into()]),
        DhcpOption::DomainName("example.test".into()),
        DhcpOption::NtpServers(vec![[192, 0, 2, 123].into()]),
        DhcpOption::InterfaceMtu(1400),
    ]
}

fn config() -> Config {
    let interface = InterfaceConfig { matches: Match::Name("up0".into()), ..InterfaceConfig::automatic() };
    Config { hostname: Some("berth".into()), dns: vec![], search: vec![], interfaces: vec![interface] }
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

async fn reach(status: &mut watch::Receiver<Status>, wanted: impl Fn(&Status) -> bool) -> Status {
    if let Ok(reached) = tokio::time::timeout(PATIENCE, status.wait_for(|status| wanted(status))).await {
        return reached.unwrap().clone();
    }
    panic!("not reached: {:?}", status.borrow())
}

fn address(status: &Status) -> Option<String> {
    status.interfaces.first()?.addresses.first().map(|(net, _)| net.to_string())
}

#[test]
fn a_plugged_in_interface_gets_its_lease_and_asks_for_it_again_after_a_restart() {
    on_machine(|| {
        let lan = Lan::new();
        let options = usual();
        let script = vec![
            silence(),
            answer(MessageType::Offer, "192.0.2.77", &options),
            answer(MessageType::Ack, "192.0.2.77", &options),
            answer(MessageType::Ack, "192.0.2.77", &options),
        ];
        let received = lan.serve(script);
        let state = tempfile::tempdir().unwrap();
        run(async {
            let mut handle = host::start(config(), state.path()).unwrap();
            let mut events = handle.take_events().unwrap();
            let mut status = handle.status();
            assert!(status.borrow().interfaces.is_empty());
            lan.plug("up0");
            let reached = reach(&mut status, |s| s.is_online() && s.uplink_mtu() == 1400).await;
            let up0 = &reached.interfaces[0];
            assert_eq!(up0.addresses, [(net("192.0.2.77/24"), Source::Dhcp)]);
            assert_eq!(up0.gateways, [ip("192.0.2.1")]);
            assert_eq!(up0.dhcp_server, Some([192, 0, 2, 1].into()));
            assert_eq!(reached.ntp, [ip("192.0.2.123")]);
            assert_eq!(
                reached.resolv_conf(),
                "nameserver 192.0.2.53\nsearch example.test\noptions timeout:2 attempts:2\n"
            );
            let servers = handle.upstreams().borrow().servers.clone();
            assert_eq!(servers, ["192.0.2.53:53".parse::<SocketAddr>().unwrap()]);
            assert_eq!(events.recv().await, Some(Event::Added("up0".into())));
        });
        let first: Vec<Message> = received.try_iter().collect();
        assert!(first.iter().any(|message| message.opts().has_msg_type(MessageType::Discover)));
        // The program starts again: the address it had is asked for at once.
        run(async {
            let handle = host::start(config(), state.path()).unwrap();
            let mut status = handle.status();
            reach(&mut status, |s| s.interfaces.first().is_some_and(|i| i.dhcp_server.is_some())).await;
            lan.unplug("up0");
            reach(&mut status, |s| s.interfaces.is_empty()).await;
        });
        let again: Vec<Message> = received.try_iter().collect();
        assert!(!again.is_empty());
        let kinds: Vec<_> = again.iter().map(|message| message.opts().msg_type().unwrap()).collect();
        assert!(kinds.iter().all(|kind| *kind == MessageType::Request), "{kinds:?}");
    });
}

#[test]
fn a_host_route_lease_reaches_its_gateway_on_the_link() {
    on_machine(|| {
        let lan = Lan::new();
        let options = vec![
            DhcpOption::SubnetMask(Ipv4Addr::BROADCAST),
            DhcpOption::ClasslessStaticRoute(vec![("0.0.0.0/0".parse().unwrap(), [192, 0, 2, 1].into())]),
            DhcpOption::Router(vec![[192, 0, 2, 99].into()]),
        ];
        let script = vec![
            answer(MessageType::Offer, "203.0.113.9", &options),
            answer(MessageType::Ack, "203.0.113.9", &options),
        ];
        let _received = lan.serve(script);
        let state = tempfile::tempdir().unwrap();
        run(async {
            let handle = host::start(config(), state.path()).unwrap();
            lan.plug("up0");
            let reached = reach(&mut handle.status(), Status::is_online).await;
            assert_eq!(address(&reached).as_deref(), Some("203.0.113.9/32"));
            assert_eq!(reached.interfaces[0].gateways, [ip("192.0.2.1")]);
        });
    });
}

#[test]
fn a_returned_carrier_asks_again_and_a_refusal_brings_another_address() {
    on_machine(|| {
        let lan = Lan::new();
        let options = usual();
        let script = vec![
            answer(MessageType::Offer, "192.0.2.77", &options),
            answer(MessageType::Ack, "192.0.2.77", &options),
            answer(MessageType::Nak, "0.0.0.0", &[]),
            answer(MessageType::Offer, "192.0.2.88", &options),
            answer(MessageType::Ack, "192.0.2.88", &options),
        ];
        let received = lan.serve(script);
        let state = tempfile::tempdir().unwrap();
        run(async {
            let handle = host::start(config(), state.path()).unwrap();
            let mut status = handle.status();
            lan.plug("up0");
            reach(&mut status, |s| address(s).as_deref() == Some("192.0.2.77/24")).await;
            let cable = |on: bool| {
                let state = if on { "up" } else { "down" };
                within(&lan.netns, || {
                    let ip = std::process::Command::new("ip").args(["link", "set", "to-up0", state]).status();
                    assert!(ip.unwrap().success());
                });
            };
            cable(false);
            reach(&mut status, |s| !s.interfaces[0].carrier).await;
            cable(true);
            let reached = reach(&mut status, |s| address(s).as_deref() == Some("192.0.2.88/24")).await;
            assert_eq!(reached.interfaces[0].addresses.len(), 1);
            assert_eq!(reached.interfaces[0].gateways, [ip("192.0.2.1")]);
        });
        let mut asked: Vec<_> = received
            .try_iter()
            .map(|message| match message.opts().get(OptionCode::RequestedIpAddress) {
                Some(DhcpOption::RequestedIpAddress(address)) => Some(address.to_string()),
                _ => None,
            })
            .collect();
        asked.dedup();
        let text = |address: &str| Some(address.to_owned());
        assert_eq!(asked, [None, text("192.0.2.77"), None, text("192.0.2.88")]);
    });
}

#[test]
fn a_new_configuration_leaves_the_lease_alone_until_it_ends_it() {
    on_machine(|| {
        let lan = Lan::new();
        let options = usual();
        let script = vec![
            answer(MessageType::Offer, "192.0.2.77", &options),
            answer(MessageType::Ack, "192.0.2.77", &options),
        ];
        let received = lan.serve(script);
        let state = tempfile::tempdir().unwrap();
        run(async {
            let mut wanted = config();
            let handle = host::start(wanted.clone(), state.path()).unwrap();
            let mut status = handle.status();
            lan.plug("up0");
            reach(&mut status, |s| address(s).as_deref() == Some("192.0.2.77/24")).await;
            let asked = received.try_iter().count();
            wanted.interfaces[0].addresses = vec![net("198.51.100.5/24")];
            handle.reconfigure(wanted.clone());
            let reached = reach(&mut status, |s| s.interfaces[0].addresses.len() == 2).await;
            assert!(reached.interfaces[0].addresses.contains(&(net("192.0.2.77/24"), Source::Dhcp)));
            assert!(
                received.try_iter().count() <= 1,
                "{asked} questions before, none after but a late report"
            );
            wanted.interfaces[0].dhcp4 = false;
            handle.reconfigure(wanted);
            let fixed = [(net("198.51.100.5/24"), Source::Fixed)];
            let reached = reach(&mut status, |s| s.interfaces[0].addresses == fixed).await;
            assert_eq!(reached.dns, Vec::<IpAddr>::new());
        });
    });
}

#[test]
fn fixed_addresses_are_set_and_taken_back() {
    on_machine(|| {
        let lan = Lan::new();
        lan.plug("up0");
        sysctl::write("net/ipv6/conf/up0/disable_ipv6", "0").unwrap();
        let state = tempfile::tempdir().unwrap();
        run(async {
            let mut wanted = config();
            wanted.dns = vec![ip("192.0.2.53")];
            wanted.interfaces[0] = InterfaceConfig {
                matches: "02:00:00:00:00:07".parse().unwrap(),
                dhcp4: false,
                addresses: vec![net("192.0.2.5/24"), net("2001:db8::5/64")],
                gateways: vec![ip("192.0.2.1"), ip("fe80::1")],
                ..wanted.interfaces[0].clone()
            };
            let handle = host::start(wanted.clone(), state.path()).unwrap();
            let mut status = handle.status();
            let both =
                |s: &Status| s.interfaces[0].addresses.len() == 2 && s.interfaces[0].gateways.len() == 2;
            let reached = reach(&mut status, both).await;
            assert!(reached.interfaces[0].addresses.contains(&(net("2001:db8::5/64"), Source::Fixed)));
            assert_eq!(reached.dns, [ip("192.0.2.53")]);
            wanted.interfaces[0].addresses = vec![net("192.0.2.6/24")];
            wanted.interfaces[0].gateways = vec![];
            handle.reconfigure(wanted);
            let changed = |s: &Status| {
                s.interfaces.first().is_some_and(|i| i.addresses == [(net("192.0.2.6/24"), Source::Fixed)])
            };
            let reached = reach(&mut status, changed).await;
            assert_eq!(reached.interfaces[0].gateways, Vec::<IpAddr>::new());
        });
    });
}

#[test]
fn routers_bring_addresses_a_gateway_and_name_servers() {
    on_machine(|| {
        let lan = Lan::new();
        lan.plug("up0");
        sysctl::write("net/ipv6/conf/up0/disable_ipv6", "0").unwrap();
        sysctl::write("net/ipv6/conf/all/forwarding", "1").unwrap();
        let state = tempfile::tempdir().unwrap();
        run(async {
            let mut wanted = config();
            wanted.interfaces[0].dhcp4 = false;
            let handle = host::start(wanted, state.path()).unwrap();
            // The last word is how long the name server is good for.
            let advertise = |lifetime: u32| within(&lan.netns, || advertise(lifetime));
            advertise(600);
            let mut status = handle.status();
            let reached = reach(&mut status, |s| s.is_online() && !s.dns.is_empty()).await;
            let up0 = &reached.interfaces[0];
            assert_eq!(up0.addresses, [(net("2001:db8::ff:fe00:7/64"), Source::Router)]);
            assert!(matches!(up0.gateways[..], [IpAddr::V6(gateway)] if gateway.is_unicast_link_local()));
            assert_eq!(reached.dns, [ip("2001:db8::53")]);
            assert_eq!(
                handle.upstreams().borrow().servers,
                ["[2001:db8::53]:53".parse::<SocketAddr>().unwrap()]
            );
            advertise(0);
            reach(&mut status, |s| s.dns.is_empty()).await;
        });
    });
}

/// Sends a router advertisement from lan0 with prefix 2001:db8::/64 and name server 2001:db8::53.
fn advertise(server_lifetime_s: u32) {
    let family = AddressFamily::INET6;
    let socket = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::ICMPV6)).unwrap();
    rustix::net::sockopt::set_ipv6_multicast_hops(&socket, 255).unwrap();
    let address = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
    let mut message = vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    message.extend([3, 4, 64, 0xc0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    message.extend(address("2001:db8::"));
    message.extend([25, 3, 0, 0]);
    message.extend(server_lifetime_s.to_be_bytes());
    message.extend(address("2001:db8::53"));
    let index = Route::open().unwrap().find("lan0").unwrap().unwrap().index;
    let everybody = SocketAddrV6::new(Ipv6Addr::from(address("ff02::1")), 0, 0, index);
    sendto(socket.as_fd(), &message, SendFlags::empty(), &everybody).unwrap();
}
