//! False sender addresses against real bridges: each attack works without the guard and fails with it.

mod lab;

use std::net::{IpAddr, SocketAddrV6};
use std::os::fd::AsFd;
use std::process::Command;

use berth_net::bridge::{self, BridgeConfig};
use berth_net::firewall::{self, Bridge, Guard, Rules};
use berth_net::netlink::Route;
use berth_net::{IpNet, Mac, sysctl};
use lab::{Container, get, net, on_machine, within};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with, sockopt};

struct Net {
    rules: Rules,
    victim: Container,
    attacker: Container,
}

fn two_containers() -> Net {
    let gateways = vec![net("10.9.0.1/24"), net("fd09::1/64")];
    let mac = Mac([2, 0x42, 10, 9, 0, 1]);
    bridge::ensure(&BridgeConfig { name: "br0".into(), gateways: gateways.clone(), mtu: 1500, mac }).unwrap();
    let victim =
        Container::new("victim", "br0", &["10.9.0.2/24", "fd09::2/64"], &["10.9.0.1", "fd09::1"], false);
    let attacker =
        Container::new("bad", "br0", &["10.9.0.3/24", "fd09::3/64"], &["10.9.0.1", "fd09::1"], false);
    victim.serve(80);
    let guard = |container: &Container| Guard {
        host_name: container.port.host_name.clone(),
        mac: container.port.mac,
        addresses: container.port.addresses.iter().map(IpNet::addr).collect(),
    };
    let rules = Rules {
        bridges: vec![Bridge { name: "br0".into(), gateways, internal: false, icc: true, masquerade: true }],
        publish: vec![],
        guards: vec![guard(&victim), guard(&attacker)],
        host_ports: vec![],
    };
    firewall::enable_forwarding().unwrap();
    Net { rules, victim, attacker }
}

impl Net {
    fn guarded(&self, on: bool) {
        let guards = if on { self.rules.guards.clone() } else { vec![] };
        firewall::apply(&Rules { guards, ..self.rules.clone() }).unwrap();
    }

    fn attack(&self, commands: &[&str]) {
        within(self.attacker.fd(), || run(commands));
    }
}

fn run(commands: &[&str]) {
    for command in commands {
        let words: Vec<&str> = command.split(' ').collect();
        let status = Command::new("ip").args(&words).status().unwrap();
        assert!(status.success(), "ip {command}");
    }
}

#[test]
fn a_false_ip_address_reaches_nobody() {
    on_machine(|| {
        let net = two_containers();
        net.attack(&["addr del 10.9.0.3/24 dev eth0", "addr add 10.9.0.9/24 dev eth0"]);
        net.guarded(false);
        assert_eq!(net.attacker.get("10.9.0.2:80"), Ok("10.9.0.9".into()));
        net.guarded(true);
        assert!(net.attacker.get("10.9.0.2:80").is_err());
        net.attack(&["addr del 10.9.0.9/24 dev eth0", "addr add 10.9.0.3/24 dev eth0"]);
        assert_eq!(net.attacker.get("10.9.0.2:80"), Ok("10.9.0.3".into()));
        // The same for IPv6.
        net.attack(&["addr del fd09::3/64 dev eth0", "addr add fd09::9/64 dev eth0 nodad"]);
        let got = net.attacker.get("[fd09::2]:80");
        assert!(got.is_err(), "{got:?}");
        net.guarded(false);
        assert_eq!(net.attacker.get("[fd09::2]:80"), Ok("fd09::9".into()));
    });
}

#[test]
fn a_false_ethernet_address_reaches_nobody() {
    on_machine(|| {
        let net = two_containers();
        let own = net.attacker.port.mac;
        net.guarded(true);
        assert!(net.attacker.get("10.9.0.2:80").is_ok());
        net.attack(&["link set eth0 address 02:42:0a:09:00:63"]);
        assert!(net.attacker.get("10.9.0.2:80").is_err());
        net.guarded(false);
        assert!(net.attacker.get("10.9.0.2:80").is_ok());
        net.attack(&[&format!("link set eth0 address {own}")]);
    });
}

#[test]
fn a_stolen_address_takes_no_traffic_of_its_owner() {
    on_machine(|| {
        let net = two_containers();
        net.guarded(true);
        // The attacker answers requests for the victim's addresses from now on.
        net.attack(&["addr add 10.9.0.2/32 dev lo", "addr add fd09::2/128 dev eth0 nodad"]);
        for _ in 0..5 {
            run(&["neigh flush dev br0"]);
            assert!(get("10.9.0.2:80").is_ok());
            assert!(get("[fd09::2]:80").is_ok());
        }
        // The victim is away: whoever answers is the thief.
        net.attacker.serve(80);
        within(net.victim.fd(), || run(&["link set eth0 down"]));
        let stolen = || {
            run(&["neigh flush dev br0"]);
            ["10.9.0.2:80", "[fd09::2]:80"].map(|address| get(address).is_ok())
        };
        assert_eq!(stolen(), [false, false]);
        net.guarded(false);
        assert_eq!(stolen(), [true, true], "without the guard this test would show nothing");
    });
}

#[test]
fn no_container_is_a_router() {
    on_machine(|| {
        let net = two_containers();
        within(net.victim.fd(), || sysctl::write("net/ipv6/conf/eth0/accept_ra", "2").unwrap());
        let advertise = || {
            within(net.attacker.fd(), || {
                let kind = SocketFlags::CLOEXEC;
                let family = AddressFamily::INET6;
                let socket = socket_with(family, SocketType::RAW, kind, Some(ipproto::ICMPV6)).unwrap();
                sockopt::set_ipv6_multicast_hops(&socket, 255).unwrap();
                let index = Route::open().unwrap().find("eth0").unwrap().unwrap().index;
                let message = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
                let everybody = SocketAddrV6::new("ff02::1".parse().unwrap(), 0, 0, index);
                sendto(socket.as_fd(), &message, SendFlags::empty(), &everybody).unwrap();
            });
            // The bridge delivers inside the send.
            let gateways = within(net.victim.fd(), || Route::open().unwrap().gateways().unwrap());
            gateways.iter().any(|(_, gateway)| matches!(gateway, IpAddr::V6(a) if a.is_unicast_link_local()))
        };
        net.guarded(true);
        assert!(!advertise());
        net.guarded(false);
        assert!(advertise());
    });
}
