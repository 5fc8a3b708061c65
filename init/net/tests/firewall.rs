//! The rule set against real packets: the reachability matrix of published ports and isolation.

mod lab;

use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd;

use berth_net::bridge::{self, BridgeConfig};
use berth_net::conntrack::{self, Flow};
use berth_net::firewall::{self, Bridge, Firewall, Guard, Publish, Rules};
use berth_net::{IpNet, Mac, Protocol};
use lab::{Container, get, here, ip, net, on_machine, serve, within};

fn bridge(name: &str, gateways: &[&str]) -> Bridge {
    let gateways: Vec<IpNet> = gateways.iter().map(|text| net(text)).collect();
    let IpAddr::V4(first) = gateways[0].addr() else { panic!("the first gateway is IPv4") };
    let config = BridgeConfig {
        name: name.to_owned(),
        gateways: gateways.clone(),
        mtu: 1500,
        mac: Mac::from_ipv4(first),
    };
    bridge::ensure(&config).unwrap();
    // Made twice on purpose: a start finds the bridges of the run before.
    bridge::ensure(&config).unwrap();
    Bridge { name: name.to_owned(), gateways, internal: false, icc: true, masquerade: true }
}

fn publish(host: &str, host_port: u16, container: &str, container_port: u16) -> Publish {
    let (host_ip, container_ip) = (ip(host), ip(container));
    Publish { protocol: Protocol::Tcp, host_ip, host_port, container_ip, container_port }
}

fn guards(containers: &[&Container]) -> Vec<Guard> {
    let guard = |container: &&Container| Guard {
        host_name: container.port.host_name.clone(),
        mac: container.port.mac,
        addresses: container.port.addresses.iter().map(IpNet::addr).collect(),
    };
    containers.iter().map(guard).collect()
}

/// Two networks: c2 and c3 on br0, x on br1; c2 serves port 80, published as 8080.
struct Matrix {
    rules: Rules,
    c2: Container,
    c3: Container,
    x: Container,
}

fn matrix(isolated: bool) -> Matrix {
    let br0 = bridge("br0", &["10.9.0.1/24", "fd09::1/64"]);
    let br1 = bridge("br1", &["10.9.1.1/24", "fd08::1/64"]);
    let c2 = Container::new("c2", "br0", &["10.9.0.2/24", "fd09::2/64"], &["10.9.0.1", "fd09::1"], isolated);
    let c3 = Container::new("c3", "br0", &["10.9.0.3/24", "fd09::3/64"], &["10.9.0.1", "fd09::1"], isolated);
    let x = Container::new("x", "br1", &["10.9.1.2/24", "fd08::2/64"], &["10.9.1.1", "fd08::1"], false);
    c2.serve(80);
    let rules = Rules {
        bridges: vec![Bridge { icc: !isolated, ..br0 }, br1],
        publish: vec![
            publish("0.0.0.0", 8080, "10.9.0.2", 80),
            publish("::", 8080, "fd09::2", 80),
            publish("127.0.0.1", 9090, "10.9.0.2", 80),
            publish("10.9.1.1", 7070, "10.9.0.2", 80),
        ],
        guards: guards(&[&c2, &c3, &x]),
        host_ports: vec![],
    };
    firewall::enable_forwarding().unwrap();
    firewall::apply(&rules).unwrap();
    firewall::apply(&rules).unwrap();
    Matrix { rules, c2, c3, x }
}

#[test]
fn published_ports_are_reached_from_everywhere_and_nothing_else_is() {
    on_machine(|| {
        let Matrix { c2, c3, x, .. } = matrix(false);
        let seen = |text: &str| Ok::<_, String>(text.to_owned());
        // From the machine.
        assert_eq!(get("10.9.0.1:8080"), seen("10.9.0.1"));
        assert_eq!(get("127.0.0.1:8080"), seen("10.9.0.1"));
        assert_eq!(get("127.0.0.1:9090"), seen("10.9.0.1"));
        assert_eq!(get("[fd09::1]:8080"), seen("fd09::1"));
        assert_eq!(get("10.9.1.1:7070"), seen("10.9.0.1"));
        assert!(get("10.9.0.1:7070").is_err(), "published at another address only");
        assert!(get("10.9.0.1:9090").is_err(), "published at 127.0.0.1 only");
        assert!(get("[::1]:8080").is_err());
        // From the container itself, and from its neighbour.
        assert_eq!(c2.get("10.9.0.1:8080"), seen("10.9.0.1"));
        assert_eq!(c3.get("10.9.0.1:8080"), seen("10.9.0.1"));
        assert_eq!(c3.get("[fd09::1]:8080"), seen("fd09::1"));
        assert_eq!(c3.get("10.9.0.2:80"), seen("10.9.0.3"));
        assert_eq!(c3.get("[fd09::2]:80"), seen("fd09::3"));
        // From the other network: the published port, not the container.
        assert_eq!(x.get("10.9.1.1:8080"), seen("10.9.0.1"));
        assert_eq!(x.get("[fd08::1]:8080"), seen("fd09::1"));
        assert_eq!(x.get("10.9.1.1:7070"), seen("10.9.0.1"));
        assert!(x.get("10.9.0.2:80").is_err());
        assert!(x.get("[fd09::2]:80").is_err());
        assert!(x.get("10.9.1.1:9090").is_err());
    });
}

#[test]
fn isolated_ports_still_reach_published_ones() {
    on_machine(|| {
        let Matrix { c3, .. } = matrix(true);
        assert!(c3.get("10.9.0.2:80").is_err());
        assert!(c3.get("[fd09::2]:80").is_err());
        assert_eq!(c3.get("10.9.0.1:8080"), Ok("10.9.0.1".to_owned()));
    });
}

#[test]
fn containers_reach_no_service_of_the_machine() {
    on_machine(|| {
        let Matrix { mut rules, c3, .. } = matrix(false);
        serve(here().as_fd(), "[::]:2376");
        assert!(get("10.9.0.1:2376").is_ok());
        assert!(c3.get("10.9.0.1:2376").is_err());
        assert!(c3.get("10.9.1.1:2376").is_err());
        assert!(c3.get("[fd09::1]:2376").is_err());
        serve(here().as_fd(), "10.9.0.1:53");
        assert!(c3.get("10.9.0.1:53").is_ok(), "name service is open");
        rules.host_ports = vec![(Protocol::Tcp, 2376)];
        firewall::apply(&rules).unwrap();
        assert!(c3.get("10.9.0.1:2376").is_ok());
        assert!(c3.get("10.9.1.1:2376").is_err(), "only at the own gateway");
    });
}

#[test]
fn a_flow_to_a_port_follows_the_port_once_it_is_forgotten() {
    on_machine(|| {
        let Matrix { mut rules, c2, c3, x } = matrix(false);
        let echo = |container: &Container, name: &'static str| {
            let socket = within(container.fd(), || UdpSocket::bind("0.0.0.0:53").unwrap());
            std::thread::spawn(move || {
                let mut buffer = [0; 16];
                while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                    socket.send_to(name.as_bytes(), from).unwrap();
                }
            });
        };
        echo(&c2, "c2");
        echo(&c3, "c3");
        let udp =
            |container: &str| Publish { protocol: Protocol::Udp, ..publish("0.0.0.0", 5353, container, 53) };
        let client = within(x.fd(), || UdpSocket::bind("0.0.0.0:0").unwrap());
        client.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
        let ask = || {
            client.send_to(b"who", "10.9.1.1:5353").unwrap();
            let mut buffer = [0; 16];
            let (count, _) = client.recv_from(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..count]).into_owned()
        };
        rules.publish = vec![udp("10.9.0.2")];
        firewall::apply(&rules).unwrap();
        assert_eq!(ask(), "c2");
        rules.publish = vec![udp("10.9.0.3")];
        firewall::apply(&rules).unwrap();
        assert_eq!(ask(), "c2", "the flow is older than the rule");
        let flow = |host_port| Flow::Published { protocol: Protocol::Udp, host_ip: ip("0.0.0.0"), host_port };
        assert_eq!(conntrack::flush(&[flow(5354), Flow::Container(ip("10.9.0.9"))]).unwrap(), 0);
        assert_eq!(conntrack::flush(&[flow(5353)]).unwrap(), 1);
        assert_eq!(ask(), "c3");
        assert_eq!(conntrack::flush(&[Flow::Container(ip("10.9.0.3"))]).unwrap(), 1);
    });
}

#[test]
fn thousands_of_ports_are_published_at_once() {
    on_machine(|| {
        let Matrix { mut rules, c3, .. } = matrix(false);
        for port in 10_000..20_000 {
            rules.publish.push(publish("0.0.0.0", port, "10.9.0.2", 80));
            rules.publish.push(publish("::", port, "fd09::2", 80));
        }
        for n in 0..2000_u16 {
            let [high, low] = n.to_be_bytes();
            let addresses = vec![IpAddr::from([10, 9, 0x80 | high, low])];
            rules.guards.push(Guard {
                host_name: format!("many{n}"),
                mac: Mac([2, 0, 0, 0, high, low]),
                addresses,
            });
        }
        firewall::apply(&rules).unwrap();
        firewall::apply(&rules).unwrap();
        assert_eq!(get("10.9.0.1:19999"), Ok("10.9.0.1".into()));
        assert_eq!(c3.get("10.9.0.1:10000"), Ok("10.9.0.1".into()));
        let counted = berth_net::veth::statistics("vc3").unwrap().unwrap();
        assert!(counted.tx_packets > 3 && counted.rx_bytes > 100, "{counted:?}");
        assert_eq!(berth_net::veth::statistics("gone").unwrap(), None);
        firewall::remove().unwrap();
        assert!(get("10.9.0.1:19999").is_err());
    });
}

#[test]
fn rules_that_contradict_themselves_change_nothing() {
    on_machine(|| {
        let Matrix { rules, .. } = matrix(false);
        let refused = |change: &dyn Fn(&mut Rules)| {
            let mut wrong = rules.clone();
            change(&mut wrong);
            firewall::apply(&wrong).unwrap_err().to_string()
        };
        let twice = refused(&|rules| rules.publish.push(publish("0.0.0.0", 8080, "10.9.0.3", 80)));
        assert_eq!(twice, "port 8080/tcp of 0.0.0.0 is published twice");
        let mixed = refused(&|rules| rules.publish.push(publish("0.0.0.0", 1, "fd09::3", 80)));
        assert_eq!(mixed, "published port 0.0.0.0: fd09::3 is of another address family");
        let name = refused(&|rules| rules.bridges[0].name = "a-name-of-16-byte".into());
        assert_eq!(name, "not an interface name: \"a-name-of-16-byte\"");
        assert_eq!(get("10.9.0.1:8080"), Ok("10.9.0.1".into()));
    });
}

#[test]
fn small_changes_lead_to_the_same_as_whole_ones() {
    on_machine(|| {
        let Matrix { mut rules, c2, c3, .. } = matrix(false);
        c3.serve(81);
        let mut firewall = Firewall::open().unwrap();
        firewall.apply(&rules).unwrap();
        firewall.apply(&rules).unwrap();
        let mut apply = |rules: &Rules| firewall.apply(rules).unwrap();
        // A port comes, moves to another container, and goes.
        rules.publish.push(publish("0.0.0.0", 6060, "10.9.0.2", 80));
        apply(&rules);
        assert_eq!(c2.get("10.9.0.1:6060"), Ok("10.9.0.1".into()));
        *rules.publish.last_mut().unwrap() = publish("0.0.0.0", 6060, "10.9.0.3", 81);
        apply(&rules);
        assert_eq!(get("10.9.0.1:6060"), Ok("10.9.0.1".into()));
        within(c3.fd(), || assert!(get("127.0.0.1:80").is_err()));
        rules.publish.pop();
        apply(&rules);
        assert!(get("10.9.0.1:6060").is_err());
        assert!(get("10.9.0.1:8080").is_ok());
        // Guards come and go.
        let all = std::mem::take(&mut rules.guards);
        apply(&rules);
        rules.guards.clone_from(&all);
        rules.guards[1].addresses = vec![ip("10.9.0.99")];
        apply(&rules);
        assert!(c3.get("10.9.0.1:8080").is_err(), "its address is not its own any more");
        rules.guards = all;
        apply(&rules);
        assert!(c3.get("10.9.0.1:8080").is_ok());
        // Somebody else removes everything: the next change puts all of it back.
        firewall::remove().unwrap();
        rules.publish.push(publish("0.0.0.0", 6061, "10.9.0.2", 80));
        apply(&rules);
        assert!(get("10.9.0.1:6061").is_ok() && get("10.9.0.1:8080").is_ok());
    });
}
