//! A control socket that sends and receives messages with descriptors.
//!
//! A send never waits: PID 1 may not hang on a service, so a full socket is [`io::ErrorKind::WouldBlock`] and the
//! sender decides. A receive waits only when the socket was made blocking.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use crate::codec::Packet;
use crate::message::{FromInit, ToInit};
use crate::{FDS_MAX, MESSAGE_MAX};

/// One end of a control socket (`SOCK_SEQPACKET`): each message is one packet.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// Takes a connected `SOCK_SEQPACKET` socket. Its blocking mode stays as it is (see [`Self::set_nonblocking`]).
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Two connected ends, both nonblocking and close-on-exec.
    pub fn pair() -> io::Result<(Self, Self)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (left, right) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self(left), Self(right)))
    }

    /// Whether a receive without a message gives `WouldBlock` (true) or waits (false). Sends never wait.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&self.0, nonblocking)?;
        Ok(())
    }

    /// The socket back, for handing it to a child.
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// Sends one message to init.
    ///
    /// `WouldBlock`: the socket is full, nothing was sent. `BrokenPipe`: init is gone. `InvalidInput`: the message
    /// breaks a limit of the protocol.
    pub fn send_to_init(&self, message: &ToInit) -> io::Result<()> {
        self.send(&message.encode().map_err(invalid_input)?)
    }

    /// Sends one message of init; errors as for [`Self::send_to_init`].
    pub fn send_from_init(&self, message: &FromInit) -> io::Result<()> {
        self.send(&message.encode().map_err(invalid_input)?)
    }

    /// The next message to init; `None` when the peer closed its end and everything it had sent was read.
    ///
    /// `WouldBlock`: nothing there now. `InvalidData`: the packet was not a message (it is consumed, its
    /// descriptors are closed).
    pub fn receive_to_init(&self) -> io::Result<Option<ToInit>> {
        let mut bytes = [0; MESSAGE_MAX];
        let Some((packet, fds)) = self.receive(&mut bytes)? else { return Ok(None) };
        ToInit::decode(packet, fds).map(Some).map_err(invalid_data)
    }

    /// The next message from init; see [`Self::receive_to_init`].
    pub fn receive_from_init(&self) -> io::Result<Option<FromInit>> {
        let mut bytes = [0; MESSAGE_MAX];
        let Some((packet, fds)) = self.receive(&mut bytes)? else { return Ok(None) };
        FromInit::decode(packet, fds).map(Some).map_err(invalid_data)
    }

    /// Waits until a send may succeed, at most `limit`; false when the time is over. For the launcher, which must
    /// not drop a registration and has nothing better to do. Not for PID 1.
    pub fn wait_writable(&self, limit: Duration) -> io::Result<bool> {
        let limit = Timespec::try_from(limit).map_err(invalid_input)?;
        let mut fds = [PollFd::new(&self.0, PollFlags::OUT)];
        match poll(&mut fds, Some(&limit)) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn send(&self, packet: &Packet<'_>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !packet.fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&packet.fds)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            match sendmsg(&self.0, &[IoSlice::new(&packet.bytes)], &mut control, flags) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn receive<'b>(&self, bytes: &'b mut [u8]) -> io::Result<Option<(&'b [u8], Vec<OwnedFd>)>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            match recvmsg(&self.0, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(received) => break received,
                // A peer that dies with unread packets in its own queue sets this error once on our side, ahead of
                // the packets it sent before: those must still be read.
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNRESET) => {}
                Err(error) => return Err(error.into()),
            }
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "packet was cut off"));
        }
        if received.bytes == 0 {
            return Ok(None);
        }
        Ok(bytes.get(..received.bytes).map(|packet| (packet, fds)))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn invalid_data(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn invalid_input(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::message::Name;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn descriptors_arrive_usable_and_close_on_exec() {
        let (left, right) = Channel::pair().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        left.send_to_init(&ToInit::Store { name: name("log"), fds: vec![read] }).unwrap();
        let Some(ToInit::Store { fds, .. }) = right.receive_to_init().unwrap() else {
            panic!("not a Store");
        };
        let [fd] = <[OwnedFd; 1]>::try_from(fds).unwrap();
        assert!(rustix::io::fcntl_getfd(&fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        std::fs::File::from(write).write_all(b"hello").unwrap();
        let mut text = String::new();
        std::fs::File::from(fd).read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn a_full_socket_gives_would_block_and_loses_nothing() {
        let (left, right) = Channel::pair().unwrap();
        let mut sent = 0_u32;
        loop {
            match left
                .send_from_init(&FromInit::Shutdown { action: crate::PowerAction::Off, deadline_s: sent })
            {
                Ok(()) => sent += 1,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    break;
                }
            }
        }
        assert!(!left.wait_writable(Duration::ZERO).unwrap());
        for expected in 0..sent {
            let message = right.receive_from_init().unwrap();
            assert!(matches!(message, Some(FromInit::Shutdown { deadline_s, .. }) if deadline_s == expected));
        }
        assert_eq!(right.receive_from_init().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(left.wait_writable(Duration::ZERO).unwrap());
    }

    #[test]
    fn a_closed_peer_is_none_after_its_last_message_was_read() {
        let (left, right) = Channel::pair().unwrap();
        left.send_to_init(&ToInit::Hello).unwrap();
        drop(left);
        assert!(matches!(right.receive_to_init().unwrap(), Some(ToInit::Hello)));
        assert!(right.receive_to_init().unwrap().is_none());
        assert_eq!(right.send_from_init(&FromInit::Ready).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_peer_that_died_with_unread_packets_is_still_read_to_the_end() {
        let (left, right) = Channel::pair().unwrap();
        right.send_from_init(&FromInit::Ready).unwrap();
        left.send_to_init(&ToInit::Acknowledge { name: name("c/1") }).unwrap();
        drop(left);
        assert!(matches!(right.receive_to_init().unwrap(), Some(ToInit::Acknowledge { .. })));
        assert!(right.receive_to_init().unwrap().is_none());
    }

    #[test]
    fn nonsense_is_an_error_and_the_next_message_is_read() {
        let (left, right) = Channel::pair().unwrap();
        rustix::net::send(&left.0, b"\xffnonsense", SendFlags::empty()).unwrap();
        rustix::net::send(&left.0, &[1; MESSAGE_MAX + 1], SendFlags::empty()).unwrap();
        left.send_to_init(&ToInit::Hello).unwrap();
        assert_eq!(right.receive_to_init().unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(right.receive_to_init().unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(matches!(right.receive_to_init().unwrap(), Some(ToInit::Hello)));
    }

    #[test]
    fn too_many_descriptors_are_an_error_and_are_closed() {
        let (left, right) = Channel::pair().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        let many = vec![read.as_fd(); FDS_MAX + 5];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX + 5))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
        sendmsg(&left.0, &[IoSlice::new(b"\x04\x01a")], &mut control, SendFlags::empty()).unwrap();
        assert_eq!(right.receive_to_init().unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(many);
        drop(read);
        let error = rustix::io::write(&write, b"x").unwrap_err();
        assert_eq!(error, rustix::io::Errno::PIPE, "a read end stayed open");
    }
}
