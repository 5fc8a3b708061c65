//! Containers directly on the machine's network, on a cable whose other end is a neighbour.

mod lab;

use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;

use berth_net::direct::{self, DirectPort, Ipvlan, Kind, Macvlan};
use berth_net::veth::AttachError;
use berth_net::{Mac, veth};
use lab::{get, here, ip, namespace, net, on_machine, serve, within};

fn run(commands: &[&str]) {
    for command in commands {
        let words: Vec<&str> = command.split(' ').collect();
        assert!(Command::new("ip").args(&words).status().unwrap().success(), "ip {command}");
    }
}

/// The machine at `wire0` with 10.9.0.1, the neighbour 10.9.0.254 at the other end.
fn cable() -> OwnedFd {
    let neighbour = namespace();
    run(&["link add wire0 type veth peer name far", "addr add 10.9.0.1/24 dev wire0", "link set wire0 up"]);
    let pid = std::process::id();
    let path = format!("/proc/{pid}/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&neighbour));
    run(&[&format!("link set far netns {path}")]);
    within(neighbour.as_fd(), || run(&["addr add 10.9.0.254/24 dev far", "link set far up"]));
    neighbour
}

fn container(kind: Kind, last: u8) -> Result<OwnedFd, AttachError> {
    let netns = namespace();
    let port = DirectPort {
        parent: "wire0".into(),
        kind,
        container_name: "eth0".into(),
        mac: Mac([2, 0x42, 10, 9, 0, last]),
        addresses: vec![net(&format!("10.9.0.{last}/24"))],
        gateways: vec![ip("10.9.0.254")],
        mtu: None,
    };
    direct::attach(netns.as_fd(), &port).map(|()| netns)
}

fn reach(kind: Kind) -> Option<[bool; 3]> {
    let neighbour = cable();
    serve(neighbour.as_fd(), "0.0.0.0:80");
    let one = match container(kind, 2) {
        Ok(one) => one,
        Err(AttachError::Refused { source, .. }) if source.errno.raw_os_error() == 95 => {
            eprintln!("SKIPPED: this kernel has no {kind:?}");
            return None;
        }
        Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error).map(ToString::to_string)),
    };
    let two = container(kind, 3).unwrap();
    serve(two.as_fd(), "0.0.0.0:80");
    let reached = ["10.9.0.254:80", "10.9.0.3:80", "10.9.0.1:80"]
        .map(|address| within(one.as_fd(), || get(address)) == Ok("10.9.0.2".to_owned()));
    direct::detach(one.as_fd(), "eth0").unwrap();
    assert!(within(one.as_fd(), || get("10.9.0.254:80")).is_err());
    run(&["link del wire0"]);
    Some(reached)
}

#[test]
fn neighbours_and_peers_are_reached_and_the_machine_is_not() {
    on_machine(|| {
        serve(here().as_fd(), "0.0.0.0:80");
        for (kind, peers) in [
            (Kind::Macvlan(Macvlan::Bridge), true),
            (Kind::Macvlan(Macvlan::Private), false),
            (Kind::Ipvlan(Ipvlan::L2), true),
        ] {
            if let Some(reached) = reach(kind) {
                assert_eq!(reached, [true, peers, false], "{kind:?}");
            }
        }
    });
}

#[test]
fn an_interface_that_is_not_there_is_named() {
    on_machine(|| {
        let error = container(Kind::Macvlan(Macvlan::Bridge), 2).unwrap_err();
        assert!(matches!(error, AttachError::NoParent(name) if name == "wire0"));
    });
}

#[test]
fn default_routes_move_from_one_interface_to_another() {
    on_machine(|| {
        let mac = Mac([2, 0x42, 10, 9, 0, 1]);
        for (bridge, gateway) in [("br0", "10.9.0.1/24"), ("br1", "10.8.0.1/24")] {
            let gateways = vec![net(gateway)];
            berth_net::bridge::ensure(&berth_net::bridge::BridgeConfig {
                name: bridge.into(),
                gateways,
                mtu: 1500,
                mac,
            })
            .unwrap();
        }
        let one = lab::Container::new("one", "br0", &["10.9.0.2/24"], &["10.9.0.1"], false);
        let port = veth::Port {
            bridge: "br1".into(),
            host_name: "vtwo".into(),
            container_name: "eth1".into(),
            mac: Mac([2, 0x42, 10, 8, 0, 2]),
            addresses: vec![net("10.8.0.2/24")],
            gateways: vec![],
            mtu: 1500,
            isolated: false,
        };
        veth::attach(one.fd(), &port).unwrap();
        let default = || {
            let output = within(one.fd(), || Command::new("ip").args(["route", "show", "default"]).output());
            String::from_utf8(output.unwrap().stdout).unwrap().trim().to_owned()
        };
        assert!(default().starts_with("default via 10.9.0.1 dev eth0"), "{}", default());
        veth::set_gateways(one.fd(), "eth1", &[ip("10.8.0.1")]).unwrap();
        assert!(default().starts_with("default via 10.8.0.1 dev eth1"), "{}", default());
        assert_eq!(default().lines().count(), 1, "{}", default());
    });
}
