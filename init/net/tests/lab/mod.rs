//! A laboratory of network namespaces: a "machine" with bridges, containers in namespaces of their own.

#![allow(dead_code, unreachable_pub)] // each test file uses its part

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use berth_net::veth::{Port, attach};
use berth_net::{IpNet, Mac};
use nix::sched::{CloneFlags, setns, unshare};

/// Longest wait for an answer that shall come, and for one that shall not.
const PATIENCE: Duration = Duration::from_millis(700);

/// Runs `test` on a thread in a network namespace of its own, as the machine. Without the right to make one the test
/// says so and ends.
pub fn on_machine(test: impl FnOnce() + Send + 'static) {
    let run = move || {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            eprintln!("SKIPPED: no right to make network namespaces ({error})");
            return;
        }
        loopback();
        test();
    };
    let outcome = thread::Builder::new().name("machine".into()).spawn(run).unwrap().join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// The namespace of the calling thread.
pub fn here() -> OwnedFd {
    File::open("/proc/thread-self/ns/net").unwrap().into()
}

/// A new, empty network namespace.
pub fn namespace() -> OwnedFd {
    thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        here()
    })
    .join()
    .unwrap()
}

/// Runs `work` inside `netns`.
pub fn within<T: Send>(netns: impl AsFd, work: impl FnOnce() -> T + Send) -> T {
    let netns = netns.as_fd().try_clone_to_owned().unwrap();
    thread::scope(|scope| {
        scope
            .spawn(move || {
                setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            })
            .join()
            .unwrap()
    })
}

pub fn loopback() {
    berth_net::veth::prepare(here().as_fd()).unwrap();
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// One container: a namespace attached to a bridge.
pub struct Container {
    pub netns: OwnedFd,
    pub port: Port,
}

impl Container {
    pub fn new(name: &str, bridge: &str, addresses: &[&str], gateways: &[&str], isolated: bool) -> Container {
        let netns = namespace();
        let addresses: Vec<IpNet> = addresses.iter().map(|text| net(text)).collect();
        let IpAddr::V4(first) = addresses[0].addr() else { panic!("the first address is IPv4") };
        let port = Port {
            bridge: bridge.to_owned(),
            host_name: format!("v{name}"),
            container_name: "eth0".to_owned(),
            mac: Mac::from_ipv4(first),
            addresses,
            gateways: gateways.iter().map(|text| ip(text)).collect(),
            mtu: 1500,
            isolated,
        };
        attach(netns.as_fd(), &port).unwrap();
        Container { netns, port }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }

    /// Serves "peer address" to each TCP connection on `port`, IPv4 and IPv6, until the test ends.
    pub fn serve(&self, port: u16) {
        serve(self.fd(), &format!("[::]:{port}"));
    }

    pub fn get(&self, address: &str) -> Result<String, String> {
        within(self.fd(), || get(address))
    }
}

pub fn serve(netns: BorrowedFd<'_>, address: &str) {
    let netns = netns.try_clone_to_owned().unwrap();
    let address: SocketAddr = address.parse().unwrap();
    let (ready, wait) = mpsc::channel();
    thread::spawn(move || {
        setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
        let listener = TcpListener::bind(address).unwrap();
        ready.send(()).unwrap();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let peer = stream.peer_addr().unwrap().ip().to_canonical();
            let _ = write!(stream, "{peer}");
        }
    });
    wait.recv().unwrap();
}

/// What the server at `address` says: the address it sees.
pub fn get(address: &str) -> Result<String, String> {
    let address: SocketAddr = address.parse().unwrap();
    let text = |error: io::Error| error.to_string();
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(text)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(text)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(text)?;
    Ok(answer)
}
