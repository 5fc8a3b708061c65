//! The sockets of one network's name server.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, getsockname, ipproto, listen, socket_with, sockopt,
};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::answer::{Verdict, answer, server_failure};
use super::forward::Forwarder;
use super::table::Table;
use crate::exchange::{read_framed, write_framed};
use crate::upstream::Upstreams;

const DNS_PORT: u16 = 53;
/// Ports tried for "any port": a port free for UDP may be taken for TCP, by a connection that just goes out.
const FREE_PORT_TRIES: usize = 32;
/// Connections waiting to be accepted.
const BACKLOG: i32 = 64;
/// TCP connections of a network served at a time.
const MAX_CONNECTIONS: usize = 256;
/// A connection without a question is closed after this (RFC 7766, section 6.2.3).
const IDLE: Duration = Duration::from_secs(10);
/// Largest question read by UDP, in bytes.
const QUERY_BYTES: usize = 4096;
/// Pause after a socket error, so a lasting one does not take a processor.
const ERROR_PAUSE: Duration = Duration::from_millis(100);
/// Receive buffer in bytes: questions that arrive while the program starts again wait there.
const RECEIVE_BUFFER_BYTES: usize = 1024 * 1024;

/// The two bound sockets of a server: what is kept over a restart of the program so that no question is lost.
#[derive(Debug)]
pub struct Sockets {
    /// UDP.
    pub udp: OwnedFd,
    /// TCP, listening.
    pub tcp: OwnedFd,
}

impl Sockets {
    /// Binds port 53 of `gateway`, which need not be on an interface yet.
    pub fn bind(gateway: IpAddr) -> io::Result<Sockets> {
        Sockets::bind_to(SocketAddr::new(gateway, DNS_PORT))
    }

    /// Binds another address and port; port 0 is any that is free for both protocols.
    pub fn bind_to(address: SocketAddr) -> io::Result<Sockets> {
        for _ in 1..FREE_PORT_TRIES {
            match Self::bind_both(address) {
                // The port that was free for UDP is somebody's TCP port: another one will do.
                Err(error) if address.port() == 0 && error.kind() == io::ErrorKind::AddrInUse => {}
                result => return result,
            }
        }
        Self::bind_both(address)
    }

    fn bind_both(address: SocketAddr) -> io::Result<Sockets> {
        let udp = socket(address, SocketType::DGRAM, ipproto::UDP)?;
        sockopt::set_socket_recv_buffer_size(&udp, RECEIVE_BUFFER_BYTES)?;
        bind(&udp, &address)?;
        let address = SocketAddr::try_from(getsockname(&udp)?)?;
        let tcp = socket(address, SocketType::STREAM, ipproto::TCP)?;
        // Connections of a server that ended just now must not keep its successor from the port.
        sockopt::set_socket_reuseaddr(&tcp, true)?;
        bind(&tcp, &address)?;
        listen(&tcp, BACKLOG)?;
        Ok(Sockets { udp, tcp })
    }

    /// The address served.
    pub fn address(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::try_from(getsockname(&self.udp)?)?)
    }

    /// Copies of both descriptors, to be stored elsewhere.
    pub fn try_clone(&self) -> io::Result<Sockets> {
        Ok(Sockets { udp: self.udp.try_clone()?, tcp: self.tcp.try_clone()? })
    }
}

fn socket(address: SocketAddr, kind: SocketType, protocol: rustix::net::Protocol) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, flags, Some(protocol))?;
    if address.is_ipv4() {
        sockopt::set_ip_freebind(&socket, true)?;
    } else {
        sockopt::set_ipv6_v6only(&socket, true)?;
        sockopt::set_ipv6_freebind(&socket, true)?;
    }
    Ok(socket)
}

/// The name server of one network. It ends when dropped; its sockets end when every copy is closed.
#[derive(Debug)]
pub struct Server {
    tasks: [tokio::task::JoinHandle<()>; 2],
}

impl Server {
    /// Serves `network`'s names from `table` on `sockets` and asks `upstreams` for all others. To be called inside a
    /// tokio runtime.
    pub fn start(
        network: &str,
        sockets: Sockets,
        table: Table,
        upstreams: watch::Receiver<Upstreams>,
    ) -> io::Result<Server> {
        let udp = std::net::UdpSocket::from(sockets.udp);
        let tcp = std::net::TcpListener::from(sockets.tcp);
        // Sockets handed over by another program may have any mode.
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        let service = Service { network: network.to_owned(), table, forwarder: Forwarder::new(upstreams) };
        let udp = Arc::new(UdpSocket::from_std(udp)?);
        let tcp = TcpListener::from_std(tcp)?;
        Ok(Server {
            tasks: [
                tokio::spawn(serve_datagrams(udp, service.clone())),
                tokio::spawn(serve_connections(tcp, service)),
            ],
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

#[derive(Debug, Clone)]
struct Service {
    network: String,
    table: Table,
    forwarder: Forwarder,
}

impl Service {
    fn answer(&self, asker: IpAddr, query: &[u8], stream: bool) -> Verdict {
        answer(&self.table.scope(&self.network, asker), query, stream)
    }
}

async fn serve_datagrams(socket: Arc<UdpSocket>, service: Service) {
    let mut forwarded = JoinSet::new();
    let mut buffer = vec![0; QUERY_BYTES];
    loop {
        // Finished ones leave the set here; the others end with it.
        while forwarded.try_join_next().is_some() {}
        let Ok((count, source)) = socket.recv_from(&mut buffer).await else {
            sleep(ERROR_PAUSE).await;
            continue;
        };
        let query = &buffer[..count];
        let verdict = match service.answer(source.ip(), query, false) {
            Verdict::Forward => match service.forwarder.slot(source.ip()) {
                Some(slot) => {
                    let (socket, forwarder, query) =
                        (socket.clone(), service.forwarder.clone(), query.to_vec());
                    forwarded.spawn(async move {
                        if let Some(reply) = forwarder.forward(&query, false, slot).await {
                            let _ = socket.send_to(&reply, source).await;
                        }
                    });
                    continue;
                }
                None => server_failure(query),
            },
            verdict => verdict,
        };
        if let Verdict::Reply(reply) = verdict {
            // Who does not take its answer asks again.
            let _ = socket.send_to(&reply, source).await;
        }
    }
}

async fn serve_connections(listener: TcpListener, service: Service) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, source)) => {
                let service = service.clone();
                connections.spawn(async move {
                    // The other side is gone or broke the rules: either way the connection is over.
                    let _ = serve_connection(stream, source.ip(), &service).await;
                    drop(permit);
                });
            }
            Err(_) => sleep(ERROR_PAUSE).await,
        }
    }
}

async fn serve_connection(mut stream: TcpStream, source: IpAddr, service: &Service) -> io::Result<()> {
    loop {
        let query = timeout(IDLE, read_framed(&mut stream)).await.map_err(io::Error::from)??;
        let reply = match service.answer(source, &query, true) {
            Verdict::Reply(reply) => Some(reply),
            Verdict::Drop => None,
            Verdict::Forward => match service.forwarder.slot(source) {
                Some(slot) => service.forwarder.forward(&query, true, slot).await,
                None => None,
            },
        };
        let Some(reply) = reply else { return Ok(()) };
        timeout(IDLE, write_framed(&mut stream, &reply)).await.map_err(io::Error::from)??;
    }
}
