//! The power button: `KEY_POWER` on any input device that has it.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

/// `KEY_POWER` of linux/input-event-codes.h.
const KEY_POWER: u16 = 116;
const EV_KEY: u16 = 1;
const PRESSED: i32 = 1;
/// `struct input_event` with 64-bit times: seconds, microseconds, type, code, value. Unit: bytes.
const EVENT_SIZE: usize = 24;
/// Buttons looked at; a machine has two or three. Unit: devices.
pub(crate) const BUTTONS_MAX: usize = 16;

/// An input device with a power button.
#[derive(Debug)]
pub(crate) struct Button {
    /// `event0`.
    pub(crate) name: String,
    file: File,
}

impl Button {
    /// Opens `/dev/input/<name>` when it has the key.
    pub(crate) fn open(name: &str) -> Option<Self> {
        let keys = fs::read_to_string(format!("/sys/class/input/{name}/device/capabilities/key")).ok()?;
        if !has_key(&keys, KEY_POWER) {
            return None;
        }
        let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).ok()?;
        let file = File::options().read(true).custom_flags(flags).open(format!("/dev/input/{name}")).ok()?;
        Some(Self { name: name.to_owned(), file })
    }

    /// Every one there is now.
    pub(crate) fn all() -> Vec<Self> {
        let Ok(entries) = fs::read_dir("/sys/class/input") else { return vec![] };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| name.starts_with("event")).filter_map(|name| Self::open(&name)).collect()
    }

    /// How often the button was pressed since the last look; `None` when the device is gone.
    pub(crate) fn presses(&mut self) -> Option<usize> {
        let mut bytes = [0; EVENT_SIZE * 16];
        let mut presses = 0_usize;
        // Bounded: whatever is left wakes the loop again.
        for _ in 0..8 {
            match self.file.read(&mut bytes) {
                Ok(0) => return None,
                Ok(length) => {
                    let events = bytes.get(..length).unwrap_or_default().chunks_exact(EVENT_SIZE);
                    presses = presses.saturating_add(events.filter(|event| is_power_press(event)).count());
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(_) => return None,
            }
        }
        Some(presses)
    }
}

impl AsFd for Button {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn is_power_press(event: &[u8]) -> bool {
    let [.., k0, k1, c0, c1, v0, v1, v2, v3] = event else { return false };
    u16::from_ne_bytes([*k0, *k1]) == EV_KEY
        && u16::from_ne_bytes([*c0, *c1]) == KEY_POWER
        && i32::from_ne_bytes([*v0, *v1, *v2, *v3]) == PRESSED
}

/// Whether a capability mask of sysfs (words of 64 bits in hex, highest first) has a bit.
fn has_key(mask: &str, key: u16) -> bool {
    let word = mask.split_whitespace().rev().nth(usize::from(key >> 6));
    let word = word.and_then(|word| u64::from_str_radix(word, 16).ok()).unwrap_or(0);
    (word >> (key & 63)) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_read_from_the_right() {
        // An ACPI power button: only KEY_POWER.
        assert!(has_key("10000000000000 0\n", KEY_POWER));
        assert!(!has_key("10000000000000\n", KEY_POWER));
        assert!(has_key("ffffffffffffffff fffffffffffffffe", KEY_POWER));
        assert!(!has_key("", KEY_POWER));
        assert!(!has_key("x y z", KEY_POWER));
    }

    #[test]
    fn only_a_press_of_the_power_key_counts() {
        let event = |kind: u16, code: u16, value: i32| {
            let mut bytes = vec![7; 16];
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(code.to_ne_bytes());
            bytes.extend(value.to_ne_bytes());
            is_power_press(&bytes)
        };
        assert!(event(1, 116, 1));
        assert!(!event(1, 116, 0), "released");
        assert!(!event(1, 30, 1), "another key");
        assert!(!event(0, 116, 1), "not a key");
        assert!(!is_power_press(&[1, 0]));
    }
}
