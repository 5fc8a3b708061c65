//! The kernel's device events: `ACTION@DEVPATH` and `KEY=VALUE` lines, each ended by a zero byte.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};

/// Longest event; the kernel's own buffer (`UEVENT_BUFFER_SIZE`) has 2048 bytes. Unit: bytes.
const EVENT_MAX: usize = 8192;
/// Receive buffer of the socket, so that a storm of a thousand devices fits. Unit: bytes.
const RECEIVE_BUFFER: usize = 4 << 20;
/// The multicast group of the kernel's own messages (2 is udev's).
const KERNEL_GROUP: u32 = 1;

/// What init needs of a device event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Uevent {
    pub(crate) action: String,
    pub(crate) subsystem: String,
    pub(crate) devname: String,
    pub(crate) modalias: String,
}

impl Uevent {
    /// `None` for what is not a kernel event (udev's start with `libudev`).
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut fields = bytes.split(|byte| *byte == 0);
        let header = fields.next()?;
        if !header.contains(&b'@') {
            return None;
        }
        let mut event = Self::default();
        for field in fields {
            let Ok(text) = std::str::from_utf8(field) else { continue };
            let Some((key, value)) = text.split_once('=') else { continue };
            let slot = match key {
                "ACTION" => &mut event.action,
                "SUBSYSTEM" => &mut event.subsystem,
                "DEVNAME" => &mut event.devname,
                "MODALIAS" => &mut event.modalias,
                _ => continue,
            };
            value.clone_into(slot);
        }
        Some(event)
    }

    /// Whether a device appeared.
    pub(crate) fn added(&self) -> bool {
        self.action == "add"
    }
}

/// The socket on which the kernel tells about devices.
#[derive(Debug)]
pub(crate) struct Uevents(OwnedFd);

impl Uevents {
    /// Opens it; to be done before devices are looked for, so that none is missed in between.
    pub(crate) fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let protocol = Some(netlink::KOBJECT_UEVENT);
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, protocol)?;
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))?;
        Ok(Self(socket))
    }

    /// The next event; `Ok(None)` when there is none now. An error means that events were lost (`ENOBUFS`).
    pub(crate) fn next(&self) -> io::Result<Option<Uevent>> {
        let mut buffer = [0_u8; EVENT_MAX];
        loop {
            let (_, length, from) = match rustix::net::recvfrom(&self.0, &mut buffer[..], RecvFlags::empty())
            {
                Ok(received) => received,
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            // Only the kernel (port 0) is believed: host root could send here too, but nobody else should.
            let kernel = from
                .and_then(|address| SocketAddrNetlink::try_from(address).ok())
                .is_some_and(|address| address.pid() == 0);
            if let Some(event) = buffer.get(..length).filter(|_| kernel).and_then(Uevent::parse) {
                return Ok(Some(event));
            }
        }
    }
}

impl AsFd for Uevents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_event_gives_its_fields() {
        let bytes =
            b"add@/devices/pci0000:00/virtio1/block/vda\0ACTION=add\0DEVPATH=/devices/x\0SUBSYSTEM=block\0\
                      MAJOR=254\0DEVNAME=vda\0MODALIAS=virtio:d00000002v00001AF4\0SEQNUM=1\0";
        let event = Uevent::parse(bytes).unwrap();
        assert!(event.added());
        assert_eq!(event.subsystem, "block");
        assert_eq!(event.devname, "vda");
        assert_eq!(event.modalias, "virtio:d00000002v00001AF4");
    }

    #[test]
    fn what_is_no_event_is_refused_or_empty() {
        assert_eq!(Uevent::parse(b""), None);
        assert_eq!(Uevent::parse(b"libudev\0\xfe\xed"), None);
        assert_eq!(Uevent::parse(b"add@"), Some(Uevent::default()));
        assert_eq!(Uevent::parse(b"add@/x\0ACTION\0=\0\xff=\xff\0"), Some(Uevent::default()));
    }
}
