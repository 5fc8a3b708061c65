//! The machine id: 128 random bits made once and kept on the state disk. DHCP servers know the machine by it.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use crate::mac::Mac;

const FILE: &str = "machine-id";
/// `DUID-UUID` (RFC 6355).
const DUID_UUID: [u8; 2] = [0, 4];
/// A client identifier that is an interface number and a machine's identifier (RFC 4361).
const TYPE_DUID: u8 = 255;

/// Reads the machine id below `state_dir`, or makes it.
pub fn machine_id(state_dir: &Path) -> io::Result<[u8; 16]> {
    let path = state_dir.join(FILE);
    match fs::read_to_string(&path) {
        // An empty or broken file is what a power cut leaves of a careless writer: make another.
        Ok(text) => match parse(text.trim()) {
            Some(id) => Ok(id),
            None => create(state_dir),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(state_dir),
        Err(error) => Err(error),
    }
}

fn parse(text: &str) -> Option<[u8; 16]> {
    if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes)
}

fn create(state_dir: &Path) -> io::Result<[u8; 16]> {
    fs::create_dir_all(state_dir)?;
    let mut id = [0; 16];
    getrandom::fill(&mut id)?;
    let mut text = String::new();
    for byte in id {
        let _ = write!(text, "{byte:02x}");
    }
    text.push('\n');
    write_aside(state_dir, FILE, text.as_bytes())?;
    Ok(id)
}

/// Puts a whole new file in place of the old one, safe against a power cut.
pub(super) fn write_aside(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let aside = directory.join(format!(".{name}.new"));
    let mut file = File::create(&aside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&aside, directory.join(name))?;
    File::open(directory)?.sync_all()
}

/// The DHCP client identifier of one interface: as stable as its Ethernet address and the machine id.
pub(super) fn client_id(machine_id: [u8; 16], mac: Mac) -> Vec<u8> {
    let mut id = vec![TYPE_DUID];
    id.extend(&mac.0[2..]);
    id.extend(DUID_UUID);
    id.extend(machine_id);
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_made_once_and_a_broken_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let first = machine_id(dir.path()).unwrap();
        assert_eq!(machine_id(dir.path()).unwrap(), first);
        fs::write(dir.path().join(FILE), "").unwrap();
        let second = machine_id(dir.path()).unwrap();
        assert_ne!(first, second);
        assert_eq!(machine_id(dir.path()).unwrap(), second);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
