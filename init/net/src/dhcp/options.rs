//! What of a DHCP message reaches the decoder: the options that are read, where their length is what it must be.
//! A stranger on the link can send anything; the decoder knows a hundred options and trusts some lengths.

use dhcproto::v4::Message;
use dhcproto::{Decodable, Decoder};

/// Bytes before the options (RFC 2131, section 2), the magic number included.
const FIXED_BYTES: usize = 240;
const MAGIC: [u8; 4] = [99, 130, 83, 99];
/// Longest message read.
const MAX_BYTES: usize = 1500;
const PAD: u8 = 0;
const END: u8 = 255;

/// Which lengths an option may have.
enum Length {
    /// Just this.
    Exactly(u8),
    /// One or more addresses.
    Addresses,
    /// At least one byte.
    Some,
}

fn length_of(code: u8) -> Option<Length> {
    Some(match code {
        // Mask, lease time, server, T1, T2.
        1 | 51 | 54 | 58 | 59 => Length::Exactly(4),
        26 => Length::Exactly(2),
        53 => Length::Exactly(1),
        // Routers, name servers, time servers.
        3 | 6 | 42 => Length::Addresses,
        // Domain, search list, classless routes.
        15 | 119 | 121 => Length::Some,
        _ => return None,
    })
}

/// Decodes a message; `None` when it is none.
pub(super) fn decode(bytes: &[u8]) -> Option<Message> {
    if bytes.len() > MAX_BYTES || bytes.get(FIXED_BYTES - 4..FIXED_BYTES) != Some(&MAGIC) {
        return None;
    }
    let (fixed, mut rest) = bytes.split_at_checked(FIXED_BYTES)?;
    let mut kept = fixed.to_vec();
    loop {
        rest = match *rest {
            [] | [END, ..] => break,
            [PAD, ..] => &rest[1..],
            [code, length, ..] => {
                let option = rest.get(..2 + usize::from(length))?;
                let right = match length_of(code) {
                    Some(Length::Exactly(wanted)) => length == wanted,
                    Some(Length::Addresses) => length > 0 && length.is_multiple_of(4),
                    Some(Length::Some) => length > 0,
                    None => false,
                };
                if right {
                    kept.extend(option);
                }
                &rest[option.len()..]
            }
            [_] => return None,
        };
    }
    kept.push(END);
    Message::decode(&mut Decoder::new(&kept)).ok()
}

#[cfg(test)]
mod tests {
    use dhcproto::v4::{DhcpOption, OptionCode};
    use proptest::prelude::*;

    use super::super::lease::Lease;
    use super::*;

    fn message(options: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; FIXED_BYTES];
        bytes[..4].copy_from_slice(&[2, 1, 6, 0]);
        bytes[16..20].copy_from_slice(&[192, 0, 2, 7]);
        bytes[FIXED_BYTES - 4..].copy_from_slice(&MAGIC);
        bytes.extend(options);
        bytes
    }

    #[test]
    fn options_of_wrong_length_and_unread_ones_are_left_out() {
        let options =
            [0, 51, 4, 0, 0, 1, 0, 26, 1, 5, 151, 0, 6, 5, 1, 2, 3, 4, 5, 54, 4, 192, 0, 2, 1, 255, 9];
        let decoded = decode(&message(&options)).unwrap();
        let codes: Vec<OptionCode> = decoded.opts().iter().map(|(code, _)| *code).collect();
        assert_eq!(codes, [OptionCode::AddressLeaseTime, OptionCode::ServerIdentifier]);
        assert_eq!(
            decoded.opts().get(OptionCode::AddressLeaseTime),
            Some(&DhcpOption::AddressLeaseTime(256))
        );
    }

    #[test]
    fn cut_messages_are_none() {
        assert!(decode(&message(&[51, 4, 0])).is_none());
        assert!(decode(&message(&[51])).is_none());
        assert!(decode(&message(&[])).is_some());
        assert!(decode(&message(&[])[..239]).is_none());
        assert!(decode(&vec![0; 300]).is_none(), "no magic number");
        assert!(decode(&message(&vec![0; 1300])).is_none(), "too long");
    }

    #[test]
    fn long_options_in_parts_are_joined() {
        // RFC 3396: a route cut in the middle.
        let options = [121, 3, 24, 10, 1, 121, 5, 2, 192, 0, 2, 9, 54, 4, 192, 0, 2, 1, 255];
        let lease = Lease::from_message(&decode(&message(&options)).unwrap()).unwrap();
        assert_eq!(lease.routes.len(), 1);
        assert_eq!(lease.routes[0].destination.to_string(), "10.1.2.0/24");
    }

    proptest! {
        #[test]
        fn no_message_of_a_stranger_does_harm(options in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Some(decoded) = decode(&message(&options)) {
                let _ = Lease::from_message(&decoded);
            }
        }

        #[test]
        fn no_list_of_options_does_harm(list in proptest::collection::vec(
            (prop_oneof![Just(1_u8), Just(3), Just(6), Just(15), Just(26), Just(42), Just(51), Just(54), Just(119),
                Just(121), any::<u8>()], proptest::collection::vec(any::<u8>(), 0..40)), 0..12))
        {
            let mut options = Vec::new();
            for (code, value) in &list {
                options.push(*code);
                options.push(u8::try_from(value.len()).unwrap());
                options.extend(value);
            }
            if let Some(decoded) = decode(&message(&options)) {
                let _ = Lease::from_message(&decoded);
            }
        }
    }
}
