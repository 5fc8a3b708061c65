//! Packet sockets: IP packets of one interface, before it has an address (packet(7)).

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// One instruction of a classic BPF program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Operation code.
    pub code: u16,
    /// Jump when true, in instructions.
    pub jump_true: u8,
    /// Jump when false, in instructions.
    pub jump_false: u8,
    /// Operand.
    pub operand: u32,
}

/// EtherType of IPv4.
const IPV4: u16 = 0x0800;

/// Opens a packet socket for the IPv4 packets of interface number `index` that `filter` accepts (it sees them from the
/// IP header on). The socket is non-blocking. No packet is queued that the filter has not seen.
pub fn open_ipv4(index: u32, filter: &[Instruction]) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // Protocol 0 receives nothing until bind, so the filter is in place first.
    // SAFETY: socket takes no pointers.
    let raw = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: raw was just opened and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    attach(socket.as_fd(), filter)?;
    let address = link_address(index, IPV4, [0xff; 6]);
    // SAFETY: address is a sockaddr_ll of the length given and outlives the call.
    let outcome = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), LINK_ADDRESS_BYTES) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

/// Sends an IPv4 packet, header included, over interface number `index` to an Ethernet address.
pub fn send_ipv4(socket: BorrowedFd<'_>, index: u32, to: [u8; 6], packet: &[u8]) -> io::Result<()> {
    let address = link_address(index, IPV4, to);
    // SAFETY: packet and address are valid for the lengths given and outlive the call.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            0,
            (&raw const address).cast(),
            LINK_ADDRESS_BYTES,
        )
    };
    match usize::try_from(sent) {
        Ok(sent) if sent == packet.len() => Ok(()),
        Ok(_) => Err(io::Error::from(io::ErrorKind::WriteZero)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

#[allow(clippy::cast_possible_truncation)] // 20 bytes
const LINK_ADDRESS_BYTES: libc::socklen_t = size_of::<libc::sockaddr_ll>() as libc::socklen_t;

fn link_address(index: u32, protocol: u16, mac: [u8; 6]) -> libc::sockaddr_ll {
    let mut address = [0; 8];
    address[..6].copy_from_slice(&mac);
    #[allow(clippy::cast_possible_truncation)] // 17
    libc::sockaddr_ll {
        sll_family: libc::AF_PACKET.unsigned_abs() as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: index.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: address,
    }
}

fn attach(socket: BorrowedFd<'_>, filter: &[Instruction]) -> io::Result<()> {
    let mut program: Vec<libc::sock_filter> = filter
        .iter()
        .map(|i| libc::sock_filter { code: i.code, jt: i.jump_true, jf: i.jump_false, k: i.operand })
        .collect();
    let len = u16::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let program = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    #[allow(clippy::cast_possible_truncation)] // 16 bytes
    let length = size_of::<libc::sock_fprog>() as libc::socklen_t;
    // SAFETY: program points to `len` instructions that outlive the call; the kernel copies them.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            length,
        )
    };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
