//! The kernel's messages about interfaces, as they happen.

use std::io;

use rtnetlink::packet_core::Parseable;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use tokio::io::unix::AsyncFd;

use super::router::{self, Advice};
use crate::netlink::{Interface, split};

// Groups as bits (linux/rtnetlink.h).
const LINK: u32 = 1 << 0;
const IPV6_ADDRESS: u32 = 1 << 8;
const IPV6_ROUTE: u32 = 1 << 10;
const ND_USER_OPTION: u32 = 1 << 19;

const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
const NEW_ADDRESS: u16 = 20;
const DEL_ADDRESS: u16 = 21;
const NEW_ROUTE: u16 = 24;
const DEL_ROUTE: u16 = 25;
const NEW_ND_USER_OPTION: u16 = 68;

/// Receive buffer in bytes: containers come and go in bursts, each with some messages.
const BUFFER_BYTES: u32 = 1024 * 1024;
const RECEIVE_BYTES: usize = 32 * 1024;

/// One message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// An interface appeared or changed.
    Link(Interface),
    /// An interface is gone.
    Gone(u32),
    /// IPv6 addresses or routes changed.
    Ipv6,
    /// A router said something about name service.
    Router(u32, Vec<Advice>),
    /// Messages were lost: look at everything again.
    Overrun,
}

#[derive(Debug)]
pub(super) struct Monitor {
    socket: AsyncFd<Socket>,
}

impl Monitor {
    pub(super) fn open() -> io::Result<Monitor> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_non_blocking(true)?;
        socket.set_rx_buf_sz(BUFFER_BYTES)?;
        socket.bind(&SocketAddr::new(0, LINK | IPV6_ADDRESS | IPV6_ROUTE | ND_USER_OPTION))?;
        // The socket stays open as long as it is registered, which is all the replacement asks for (unsafely).
        #[expect(deprecated)]
        let socket = AsyncFd::new(socket)?;
        Ok(Monitor { socket })
    }

    /// Waits for messages.
    pub(super) async fn next(&mut self) -> io::Result<Vec<Notice>> {
        let mut buffer = vec![0; RECEIVE_BYTES];
        loop {
            let mut ready = self.socket.readable().await?;
            let read =
                ready.try_io(|socket| match recv(socket.get_ref(), &mut buffer[..], RecvFlags::empty()) {
                    Ok((count, _)) => Ok(Some(count)),
                    Err(Errno::NOBUFS) => Ok(None),
                    Err(errno) => Err(errno.into()),
                });
            match read {
                Ok(Ok(Some(count))) => return Ok(notices(&buffer[..count])),
                Ok(Ok(None)) => return Ok(vec![Notice::Overrun]),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }
}

fn notices(bytes: &[u8]) -> Vec<Notice> {
    let mut notices = Vec::new();
    for (header, body) in split(bytes) {
        // Bridges announce their ports by messages of their own family: a port that leaves is not gone.
        let plain = body.first() == Some(&0);
        let link = || {
            let link = LinkMessage::parse(body).ok().filter(|_| plain);
            link.map(|link| Interface::from_message(&link))
        };
        let notice = match header.kind {
            NEW_LINK => link().map(Notice::Link),
            DEL_LINK => link().map(|link| Notice::Gone(link.index)),
            NEW_ADDRESS | DEL_ADDRESS | NEW_ROUTE | DEL_ROUTE => Some(Notice::Ipv6),
            NEW_ND_USER_OPTION => router::parse(body).map(|(index, advice)| Notice::Router(index, advice)),
            _ => None,
        };
        if notice != Some(Notice::Ipv6) || notices.last() != Some(&Notice::Ipv6) {
            notices.extend(notice);
        }
    }
    notices
}
