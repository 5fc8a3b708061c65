//! Ethernet addresses: parsing, printing, and the addresses made from them.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A 48-bit Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Mac(pub [u8; 6]);

/// The text is not six hexadecimal octets joined by colons or dashes.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not an Ethernet address: {0:?}")]
pub struct ParseMacError(String);

impl Mac {
    /// The locally administered address `02:42:` followed by the four octets of `address`: stable over restarts,
    /// so neighbours' ARP caches stay true when a container comes back with the same address.
    pub fn from_ipv4(address: Ipv4Addr) -> Mac {
        let [a, b, c, d] = address.octets();
        Mac([0x02, 0x42, a, b, c, d])
    }

    /// A random locally administered unicast address.
    pub fn random() -> std::io::Result<Mac> {
        let mut octets = [0; 6];
        getrandom::fill(&mut octets).map_err(std::io::Error::from)?;
        octets[0] = (octets[0] & 0xfc) | 0x02;
        Ok(Mac(octets))
    }

    /// The link-local IPv6 address the kernel forms from this address (RFC 4291, appendix A).
    pub fn link_local(self) -> Ipv6Addr {
        let octet = self.0;
        let mut address = [0; 16];
        address[..2].copy_from_slice(&[0xfe, 0x80]);
        address[8..11].copy_from_slice(&octet[..3]);
        address[8] ^= 2;
        address[11..13].copy_from_slice(&[0xff, 0xfe]);
        address[13..].copy_from_slice(&octet[3..]);
        Ipv6Addr::from(address)
    }

    /// True for group addresses, which no interface may have as its own.
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let octet = self.0.map(|octet| format!("{octet:02x}"));
        f.write_str(&octet.join(":"))
    }
}

impl FromStr for Mac {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Mac, ParseMacError> {
        let bad = || ParseMacError(text.to_owned());
        let mut octets = [0; 6];
        let mut parts = text.split([':', '-']);
        for octet in &mut octets {
            let part = parts.next().ok_or_else(bad)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Mac(octets)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_survives_a_round_trip_and_bad_text_is_refused() {
        let mac: Mac = "02:42:ac:11:00:02".parse().unwrap();
        assert_eq!(mac, Mac::from_ipv4(Ipv4Addr::new(172, 17, 0, 2)));
        assert_eq!(mac.to_string(), "02:42:ac:11:00:02");
        assert_eq!("02-42-AC-11-00-02".parse(), Ok(mac));
        for bad in
            ["", "eth0", "02:42:ac:11:00", "02:42:ac:11:00:02:03", "+2:42:ac:11:00:02", "0:42:ac:11:00:02"]
        {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn link_local_flips_the_universal_bit() {
        let mac: Mac = "02:42:ac:11:00:02".parse().unwrap();
        assert_eq!(mac.link_local(), "fe80::42:acff:fe11:2".parse::<Ipv6Addr>().unwrap());
    }
}
