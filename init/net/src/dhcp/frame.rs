//! IPv4 and UDP headers around DHCP messages, for an interface that has no address yet.

use std::net::Ipv4Addr;

use berth_sys::packet::Instruction;

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
const UDP: u8 = 17;
const IP_BYTES: usize = 20;
const UDP_BYTES: usize = 8;
const TTL: u8 = 64;

/// Lets UDP packets to the client port pass that are not later fragments.
pub(super) const FILTER: [Instruction; 9] = {
    const fn op(code: u16, jump_true: u8, jump_false: u8, operand: u32) -> Instruction {
        Instruction { code, jump_true, jump_false, operand }
    }
    const LOAD_BYTE: u16 = 0x30;
    const LOAD_HALF: u16 = 0x28;
    const LOAD_HALF_INDEXED: u16 = 0x48;
    const LOAD_IP_HEADER_LENGTH: u16 = 0xb1;
    const JUMP_EQUAL: u16 = 0x15;
    const JUMP_ANY_BIT: u16 = 0x45;
    const RETURN: u16 = 0x06;
    [
        op(LOAD_BYTE, 0, 0, 9),
        op(JUMP_EQUAL, 0, 6, UDP as u32),
        op(LOAD_HALF, 0, 0, 6),
        op(JUMP_ANY_BIT, 4, 0, 0x1fff),
        op(LOAD_IP_HEADER_LENGTH, 0, 0, 0),
        op(LOAD_HALF_INDEXED, 0, 0, 2),
        op(JUMP_EQUAL, 0, 1, CLIENT_PORT as u32),
        op(RETURN, 0, 0, 0xffff),
        op(RETURN, 0, 0, 0),
    ]
};

/// The packet that carries `payload` from `source` to `destination`; `None` when it does not fit one.
pub(super) fn wrap(source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Option<Vec<u8>> {
    let udp_length = u16::try_from(UDP_BYTES + payload.len()).ok()?;
    let total = u16::try_from(IP_BYTES + UDP_BYTES + payload.len()).ok()?;
    let mut udp = Vec::with_capacity(usize::from(udp_length));
    udp.extend(CLIENT_PORT.to_be_bytes());
    udp.extend(SERVER_PORT.to_be_bytes());
    udp.extend(udp_length.to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    let mut pseudo = Vec::with_capacity(12 + udp.len());
    pseudo.extend(source.octets());
    pseudo.extend(destination.octets());
    pseudo.extend([0, UDP]);
    pseudo.extend(udp_length.to_be_bytes());
    pseudo.extend(&udp);
    // 0 would say "no checksum" (RFC 768).
    let sum = match checksum(&pseudo) {
        0 => 0xffff,
        sum => sum,
    };
    udp[6..8].copy_from_slice(&sum.to_be_bytes());

    let mut packet = vec![0x45, 0xc0];
    packet.extend(total.to_be_bytes());
    packet.extend([0, 0, 0x40, 0, TTL, UDP, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(udp);
    Some(packet)
}

/// The UDP payload of a packet from a DHCP server. The UDP checksum is not looked at: a server on this very host
/// leaves it to hardware that is not there. Transaction id and Ethernet address decide whether it is ours.
pub(super) fn unwrap(packet: &[u8]) -> Option<&[u8]> {
    let first = *packet.first()?;
    let header = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header < IP_BYTES || packet.get(9) != Some(&UDP) {
        return None;
    }
    let total = usize::from(half(packet, 2)?);
    let udp = packet.get(header..total)?;
    let length = usize::from(half(udp, 4)?);
    if half(udp, 0)? != SERVER_PORT || half(udp, 2)? != CLIENT_PORT {
        return None;
    }
    udp.get(UDP_BYTES..length)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map(u16::from_be_bytes)
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum & 0xffff).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_server(payload: &[u8]) -> Vec<u8> {
        let mut packet = wrap(Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::BROADCAST, payload).unwrap();
        packet[20..24].copy_from_slice(&[0, 67, 0, 68]);
        packet
    }

    #[test]
    fn what_is_wrapped_is_unwrapped() {
        assert_eq!(unwrap(&from_server(b"hello")), Some(&b"hello"[..]));
        assert_eq!(unwrap(&wrap(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, b"x").unwrap()), None);
        // Ethernet pads short frames.
        let mut padded = from_server(b"hello");
        padded.extend([0; 20]);
        assert_eq!(unwrap(&padded), Some(&b"hello"[..]));
    }

    #[test]
    fn checksums_add_up() {
        let packet = wrap(Ipv4Addr::new(192, 0, 2, 7), Ipv4Addr::new(192, 0, 2, 1), b"odd").unwrap();
        assert_eq!(checksum(&packet[..20]), 0);
        let mut pseudo = packet[12..20].to_vec();
        pseudo.extend([0, UDP, 0, 11]);
        pseudo.extend(&packet[20..]);
        assert_eq!(checksum(&pseudo), 0);
    }

    #[test]
    fn cut_packets_are_nothing() {
        let whole = from_server(b"hello");
        for length in 0..whole.len() {
            assert_eq!(unwrap(&whole[..length]), None, "{length}");
        }
        let mut lying = whole.clone();
        lying[24..26].copy_from_slice(&[0xff, 0xff]);
        assert_eq!(unwrap(&lying), None);
        lying[24..26].copy_from_slice(&[0, 3]);
        assert_eq!(unwrap(&lying), None);
    }
}
