//! Verbs that use the network. Names are resolved here by asking the name server of `/etc/resolv.conf`.

use super::work::print;
use nix::sys::signal::{SigSet, Signal};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(5);
/// What containers' `resolv.conf` says: how long to wait for an answer, and how often to ask.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
const ATTEMPTS: u32 = 2;
const DNS_PORT: u16 = 53;
/// Between two questions of the one that keeps asking.
const ASKING_PAUSE: Duration = Duration::from_millis(20);
const TYPE_A: u16 = 1;
/// A DNS message's fixed head; unit: bytes.
const DNS_HEADER_BYTES: usize = 12;

/// Serves one page to all comers: who and where this container is.
pub(crate) fn serve_pages(port: u16) -> Result<u8, String> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
        .map_err(|error| format!("listening on {port}: {error}"))?;
    print(&format!("listening on {port}"))?;
    loop {
        let (mut stream, peer) = listener.accept().map_err(|error| format!("accepting: {error}"))?;
        // A visitor that goes away is no reason to stop serving.
        let _ = answer(&mut stream, peer);
    }
}

fn answer(stream: &mut TcpStream, peer: SocketAddr) -> std::io::Result<()> {
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut reader = BufReader::new(stream.try_clone()?.take(1 << 16));
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let body = format!("host {}\npeer {}\nrequest {}\n", hostname.trim(), peer.ip(), request.trim());
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// Takes one connection, prints what comes, ends.
pub(crate) fn listen_once(port: u16) -> Result<u8, String> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        .map_err(|error| format!("listening on {port}: {error}"))?;
    print(&format!("listening on {port}"))?;
    let (mut stream, peer) = listener.accept().map_err(|error| format!("accepting: {error}"))?;
    print(&format!("peer {}", peer.ip()))?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|error| format!("reading: {error}"))?;
    print(text.trim_end())
}

fn open(host: &str, port: u16) -> Result<TcpStream, String> {
    let address = SocketAddr::new(resolve(host)?, port);
    let stream = TcpStream::connect_timeout(&address, DEADLINE)
        .map_err(|error| format!("connecting to {address}: {error}"))?;
    stream.set_read_timeout(Some(DEADLINE)).map_err(|error| error.to_string())?;
    Ok(stream)
}

pub(crate) fn connect(host: &str, port: u16) -> Result<u8, String> {
    let stream = open(host, port)?;
    let peer = stream.peer_addr().map_err(|error| error.to_string())?;
    print(&format!("connected to {peer}"))
}

/// Prints the body of a page.
pub(crate) fn fetch(host: &str, port: u16, path: &str) -> Result<u8, String> {
    let mut stream = open(host, port)?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(|error| format!("asking: {error}"))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|error| format!("reading: {error}"))?;
    print(answer.split_once("\r\n\r\n").map_or(answer.as_str(), |(_, body)| body).trim_end())
}

/// Prints the body of what an HTTP server on a unix socket answers.
pub(crate) fn ask(socket: &str, path: &str) -> Result<u8, String> {
    let mut stream = UnixStream::connect(socket).map_err(|error| format!("{socket}: {error}"))?;
    let request = format!("GET {path} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(|error| format!("asking: {error}"))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|error| format!("reading: {error}"))?;
    print(answer.split_once("\r\n\r\n").map_or(answer.as_str(), |(_, body)| body).trim_end())
}

/// Prints the address of a name.
pub(crate) fn show_address(host: &str) -> Result<u8, String> {
    print(&resolve(host)?.to_string())
}

/// Asks for a name until a signal to end comes; says how often and how often in vain.
pub(crate) fn keep_asking(host: &str) -> Result<u8, String> {
    static ENDED: AtomicBool = AtomicBool::new(false);
    let mut term = SigSet::empty();
    term.add(Signal::SIGTERM);
    // Blocked before the other thread is made, so that the signal waits for it.
    term.thread_block().map_err(|error| error.to_string())?;
    std::thread::spawn(move || {
        let _ = term.wait();
        ENDED.store(true, Ordering::Relaxed);
    });
    let (mut asked, mut failed, mut slowest) = (0_u32, 0_u32, Duration::ZERO);
    while !ENDED.load(Ordering::Relaxed) {
        let began = Instant::now();
        asked += 1;
        if let Err(error) = resolve(host) {
            failed += 1;
            eprintln!("{error}");
        }
        slowest = slowest.max(began.elapsed());
        std::thread::sleep(ASKING_PAUSE);
    }
    print(&format!("{asked} asked, {failed} failed, slowest {} ms", slowest.as_millis()))
}

fn resolve(host: &str) -> Result<IpAddr, String> {
    if let Ok(address) = host.parse() {
        return Ok(address);
    }
    let text =
        std::fs::read_to_string("/etc/resolv.conf").map_err(|error| format!("/etc/resolv.conf: {error}"))?;
    let server = text.lines().find_map(|line| line.strip_prefix("nameserver ")).ok_or("no name server")?;
    let server: IpAddr = server.trim().parse().map_err(|_| format!("name server {server}"))?;
    let any =
        if server.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let failed = |error: std::io::Error| format!("asking {server} for {host}: {error}");
    let socket = UdpSocket::bind((any, 0)).map_err(failed)?;
    socket.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(failed)?;
    let mut answer = [0; 1500];
    let mut asked = 1;
    let length = loop {
        socket.send_to(&question(host), (server, DNS_PORT)).map_err(failed)?;
        match socket.recv(&mut answer) {
            Ok(length) => break length,
            // A datagram may get lost, as with every resolver.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && asked < ATTEMPTS => asked += 1,
            Err(error) => return Err(failed(error)),
        }
    };
    first_address(answer.get(..length).unwrap_or_default())
        .ok_or_else(|| format!("{server} knows no address of {host}"))
}

fn question(host: &str) -> Vec<u8> {
    // Identifier 1, recursion desired, one question.
    let mut message = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in host.trim_end_matches('.').split('.') {
        message.push(u8::try_from(label.len()).unwrap_or(0));
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// The first A record. Compressed names are skipped, never followed.
fn first_address(message: &[u8]) -> Option<IpAddr> {
    let answers = u16::from_be_bytes([*message.get(6)?, *message.get(7)?]);
    let mut at = skip_name(message, DNS_HEADER_BYTES)? + 4;
    for _ in 0..answers {
        at = skip_name(message, at)?;
        let kind = u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]);
        let length = usize::from(u16::from_be_bytes([*message.get(at + 8)?, *message.get(at + 9)?]));
        let data = message.get(at + 10..at + 10 + length)?;
        if kind == TYPE_A
            && let [a, b, c, d] = *data
        {
            return Some(IpAddr::V4(Ipv4Addr::new(a, b, c, d)));
        }
        at += 10 + length;
    }
    None
}

fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length if length & 0xc0 == 0xc0 => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}
