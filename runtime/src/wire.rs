//! How requests and replies travel: postcard over `SOCK_SEQPACKET`, descriptors beside the first packet.
//!
//! A message is one or more packets. The first byte of a packet says whether more follow, so that a message may
//! be longer than what the kernel is willing to queue as one packet (its buffers are physically contiguous).

use std::io;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest message in bytes: four times what Linux accepts as one program argument (128 KiB).
pub const MESSAGE_MAX: usize = 512 * 1024;
/// Longest packet in bytes, flag included. Below the default `net.core.wmem_default`, so no buffer has to grow.
pub const PACKET_MAX: usize = 64 * 1024;
/// Most descriptors beside one message. The kernel's own limit is 253 (`SCM_MAX_FD`).
pub const FDS_MAX: usize = 250;

const LAST: u8 = 0;
const MORE: u8 = 1;

/// Sends `message` with `fds`, waiting while the peer's queue is full.
///
/// # Errors
/// `InvalidInput` when a limit is passed; what `sendmsg` says otherwise.
pub fn send<M: Serialize>(socket: BorrowedFd<'_>, message: &M, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes =
        postcard::to_allocvec(message).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    if bytes.len() > MESSAGE_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "message longer than MESSAGE_MAX"));
    }
    if fds.len() > FDS_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "more descriptors than FDS_MAX"));
    }
    let mut fds = fds;
    let mut left = bytes.as_slice();
    loop {
        let (chunk, rest) = left.split_at(left.len().min(PACKET_MAX - 1));
        let flag = [if rest.is_empty() { LAST } else { MORE }];
        send_packet(socket, &[IoSlice::new(&flag), IoSlice::new(chunk)], fds)?;
        if rest.is_empty() {
            return Ok(());
        }
        left = rest;
        fds = &[];
    }
}

/// Sends bytes that are no message of ours with one descriptor, as other programs expect them.
pub(crate) fn send_state(socket: BorrowedFd<'_>, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<()> {
    send_packet(socket, &[IoSlice::new(bytes)], &[fd])
}

fn send_packet(socket: BorrowedFd<'_>, parts: &[IoSlice<'_>], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    loop {
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        match rustix::net::sendmsg(socket, parts, &mut control, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// A message being received: packets are added until the last one is there.
#[derive(Debug, Default)]
pub struct Incoming {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// What one packet brought.
#[derive(Debug)]
pub enum Progress<M> {
    /// The message is whole.
    Whole(M, Vec<OwnedFd>),
    /// More packets follow.
    Partial,
    /// The peer closed the connection.
    Closed,
}

impl Incoming {
    /// Receives one packet.
    ///
    /// # Errors
    /// `WouldBlock` on a non-blocking socket without data; `InvalidData` when the peer breaks the protocol.
    pub fn receive<M: DeserializeOwned>(&mut self, socket: BorrowedFd<'_>) -> io::Result<Progress<M>> {
        let mut packet = vec![0; PACKET_MAX];
        let (length, flags) = receive_packet(socket, &mut packet, &mut self.fds)?;
        let Some((flag, body)) = packet.get(..length).and_then(<[u8]>::split_first) else {
            return Ok(Progress::Closed);
        };
        if flags.contains(ReturnFlags::TRUNC) || flags.contains(ReturnFlags::CTRUNC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "packet was cut off"));
        }
        if self.bytes.len() + body.len() > MESSAGE_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "message longer than MESSAGE_MAX"));
        }
        self.bytes.extend_from_slice(body);
        if *flag == MORE {
            return Ok(Progress::Partial);
        }
        let message = postcard::from_bytes(&self.bytes)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        self.bytes = Vec::new();
        Ok(Progress::Whole(message, std::mem::take(&mut self.fds)))
    }
}

/// Receives packets until a message is whole; for blocking sockets.
///
/// # Errors
/// `UnexpectedEof` when the peer closed the connection.
pub fn receive<M: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<(M, Vec<OwnedFd>)> {
    let mut incoming = Incoming::default();
    loop {
        match incoming.receive(socket.as_fd())? {
            Progress::Whole(message, fds) => return Ok((message, fds)),
            Progress::Partial => {}
            Progress::Closed => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
        }
    }
}

fn receive_packet(
    socket: BorrowedFd<'_>,
    packet: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> io::Result<(usize, ReturnFlags)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    loop {
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(packet)];
        match rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => {
                for message in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(rights) = message {
                        fds.extend(rights);
                    }
                }
                return Ok((received.bytes, received.flags));
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn a_long_message_arrives_whole_with_its_descriptors() {
        let (left, right) = pair();
        let text = "x".repeat(MESSAGE_MAX - 16);
        let sent = text.clone();
        let sender = std::thread::spawn(move || {
            let null = std::fs::File::open("/dev/null").unwrap();
            send(left.as_fd(), &sent, &[null.as_fd(), null.as_fd()]).unwrap();
        });
        let (received, fds) = receive::<String>(right.as_fd()).unwrap();
        sender.join().unwrap();
        assert_eq!(received, text);
        assert_eq!(fds.len(), 2);
    }

    #[test]
    fn one_byte_past_the_limit_is_refused_before_anything_is_sent() {
        let (left, _right) = pair();
        let error = send(left.as_fd(), &"x".repeat(MESSAGE_MAX), &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn as_many_descriptors_as_allowed_arrive() {
        let (left, right) = pair();
        let null = std::fs::File::open("/dev/null").unwrap();
        send(left.as_fd(), &1u8, &vec![null.as_fd(); FDS_MAX]).unwrap();
        let (_, fds) = receive::<u8>(right.as_fd()).unwrap();
        assert_eq!(fds.len(), FDS_MAX);
        assert!(send(left.as_fd(), &1u8, &vec![null.as_fd(); FDS_MAX + 1]).is_err());
    }

    #[test]
    fn a_message_without_content_is_a_message() {
        let (left, right) = pair();
        send(left.as_fd(), &(), &[]).unwrap();
        receive::<()>(right.as_fd()).unwrap();
    }

    #[test]
    fn a_closed_peer_is_an_end_of_file() {
        let (left, right) = pair();
        drop(left);
        assert_eq!(receive::<u8>(right.as_fd()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
