//! Verbs about who reaches whom: servers that say whom they saw, clients that ask many at once, and a switch that takes
//! a machine's own defences away.

use super::work::print;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, socket,
};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

/// Longest wait for one answer; a busy emulated machine takes some hundred ms.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How often to ask who does not answer.
const TRIES: usize = 2;
/// Longest answer in bytes.
const ANSWER_BYTES: usize = 256;
/// Longest wait for a port in a scan, and how many are asked at a time.
const SCAN_PATIENCE: Duration = Duration::from_secs(1);
const SCAN_THREADS: usize = 1024;

/// Says name and peer to every TCP connection and UDP packet on the ports.
pub(crate) fn serve(ports: &[u16]) -> Result<u8, String> {
    let mut servers = Vec::new();
    for port in ports {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, *port))
            .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)))
            .map_err(|error| format!("listening on {port}: {error}"))?;
        let datagrams = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, *port))
            .or_else(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, *port)))
            .map_err(|error| format!("binding {port}: {error}"))?;
        servers.push(thread::spawn(move || serve_streams(&listener)));
        servers.push(thread::spawn(move || serve_datagrams(&datagrams)));
    }
    print("serving")?;
    for server in servers {
        server.join().map_err(|_| "a server panicked".to_owned())?;
    }
    Ok(0)
}

fn saw(peer: SocketAddr) -> String {
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{} saw {}", hostname.trim(), peer.ip().to_canonical())
}

fn serve_streams(listener: &TcpListener) {
    while let Ok((mut stream, peer)) = listener.accept() {
        // A visitor that goes away is no reason to stop serving.
        let _ = stream.write_all(saw(peer).as_bytes());
    }
}

fn serve_datagrams(socket: &UdpSocket) {
    let mut question = [0; ANSWER_BYTES];
    loop {
        // An error is an answer that found nobody.
        if let Ok((_, peer)) = socket.recv_from(&mut question) {
            let _ = socket.send_to(saw(peer).as_bytes(), peer);
        }
    }
}

/// Asks all targets (`tcp/10.0.0.2:80`, `udp/[fd00::2]:80`) at once; a line for each: what it said, or `-`.
pub(crate) fn reach(targets: &[&str]) -> Result<u8, String> {
    let parsed: Result<Vec<_>, String> = targets.iter().map(|target| parse(target)).collect();
    let asked: Vec<_> = parsed?.into_iter().map(|(udp, to)| thread::spawn(move || ask(udp, to))).collect();
    for (target, asked) in targets.iter().zip(asked) {
        let answer = asked.join().map_err(|_| "a client panicked".to_owned())?;
        print(&format!("{target} {}", answer.as_deref().unwrap_or("-")))?;
    }
    Ok(0)
}

fn parse(target: &str) -> Result<(bool, SocketAddr), String> {
    let (protocol, address) = target.split_once('/').ok_or_else(|| format!("{target}: no protocol"))?;
    let address = address.parse().map_err(|_| format!("{address} is no address with a port"))?;
    Ok((protocol == "udp", address))
}

fn ask(udp: bool, to: SocketAddr) -> Option<String> {
    let once = |_| if udp { ask_datagram(to) } else { ask_stream(to) };
    (0..TRIES).find_map(|at| once(at).ok())
}

fn ask_stream(to: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = [0; ANSWER_BYTES];
    // Whoever takes the connection was reached, whatever it says: a TLS server waits for us.
    let length = stream.read(&mut answer).unwrap_or(0);
    Ok(if length == 0 {
        "connected".to_owned()
    } else {
        String::from_utf8_lossy(answer.get(..length).unwrap_or_default()).into_owned()
    })
}

fn ask_datagram(to: SocketAddr) -> std::io::Result<String> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    // Connected: an answer from another address is none.
    socket.connect(to)?;
    socket.send(b"who?")?;
    let mut answer = [0; ANSWER_BYTES];
    let length = socket.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(answer.get(..length).unwrap_or_default()).into_owned())
}

/// Prints the TCP ports of an address that take connections.
pub(crate) fn scan(address: &str, first: u16, last: u16) -> Result<u8, String> {
    let address: IpAddr = address.parse().map_err(|_| format!("{address} is no address"))?;
    let (next, open) = (AtomicU32::new(u32::from(first)), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..SCAN_THREADS {
            scope.spawn(|| {
                while let Ok(port) = u16::try_from(next.fetch_add(1, Ordering::Relaxed)) {
                    if port > last {
                        return;
                    }
                    let found = TcpStream::connect_timeout(&SocketAddr::new(address, port), SCAN_PATIENCE);
                    if let (Ok(_), Ok(mut open)) = (found, open.lock()) {
                        open.push(port);
                    }
                }
            });
        }
    });
    let mut open = open.into_inner().unwrap_or_default();
    open.sort_unstable();
    print(&open.iter().map(u16::to_string).collect::<Vec<_>>().join(" "))
}

/// Takes the table `berth` of a family out of the namespace's packet filter, to show that it is what defends.
pub(crate) fn defenceless(family: &str) -> Result<u8, String> {
    // NFPROTO_INET and NFPROTO_BRIDGE.
    let family = match family {
        "inet" => 1,
        "bridge" => 7,
        other => return Err(format!("no family {other}")),
    };
    let failed = |errno: nix::Error| format!("nf_tables: {errno}");
    let netlink = SockProtocol::NetlinkNetFilter;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::empty(), netlink).map_err(failed)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(failed)?;
    // BATCH_BEGIN, DELTABLE with the attribute NAME (1), BATCH_END; 10 is the subsystem.
    let mut batch = message(16, 0, 0, 10, &[]);
    batch.extend(message((10 << 8) | 2, 4, family, 0, &[10, 0, 1, 0, b'b', b'e', b'r', b't', b'h', 0, 0, 0]));
    batch.extend(message(17, 0, 0, 10, &[]));
    sendto(socket.as_raw_fd(), &batch, &NetlinkAddr::new(0, 0), MsgFlags::empty()).map_err(failed)?;
    let mut answer = [0; 256];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty()).map_err(failed)?;
    let code = answer.get(16..20).filter(|_| length >= 20).and_then(|bytes| bytes.try_into().ok());
    match code.map(i32::from_ne_bytes) {
        // ENOENT: it was gone before.
        Some(0 | -2) => print("gone"),
        code => Err(format!("nf_tables answered {code:?}")),
    }
}

/// A netlink message with `nfgenmsg`; flag 4 asks for an acknowledgement.
fn message(kind: u16, flags: u16, family: u8, resource: u16, body: &[u8]) -> Vec<u8> {
    const REQUEST: u16 = 1;
    let length = u32::try_from(20 + body.len()).unwrap_or(0);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((REQUEST | flags).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(body);
    bytes
}
