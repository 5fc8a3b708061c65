//! Verbs that try what a container may not do, and say what came of it.

use super::work::print;
use rustix::net::{AddressFamily, Protocol, SocketType};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::num::NonZeroU32;

/// What every descriptor of this process is open on, one a line.
pub(crate) fn descriptors() -> Result<u8, String> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc/self/fd").map_err(|error| error.to_string())?.flatten() {
        // The folder being read has one too, which is gone by the time anybody looks.
        if let Ok(target) = fs::read_link(entry.path()) {
            all.push(format!("{} {}", entry.file_name().to_string_lossy(), target.display()));
        }
    }
    all.sort();
    print(&all.join("\n"))
}

/// `made`, or the error's number.
pub(crate) fn socket(words: [&str; 3]) -> Result<u8, String> {
    let [family, kind, protocol] =
        words.map(|word| word.parse::<u32>().map_err(|_| format!("{word} is no number")));
    let family = u16::try_from(family?).map_err(|error| error.to_string())?;
    let protocol = NonZeroU32::new(protocol?).map(Protocol::from_raw);
    match rustix::net::socket(AddressFamily::from_raw(family), SocketType::from_raw(kind?), protocol) {
        Ok(_) => print("made"),
        Err(errno) => print(&format!("refused {}", errno.raw_os_error())),
    }
}

/// Tries to open every file below a folder for writing and names those that let it.
pub(crate) fn write_all(folder: &str) -> Result<u8, String> {
    let mut folders = vec![folder.to_owned()];
    let (mut tried, mut open) = (0, Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(|error| format!("{folder}: {error}"))?.flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            let path = entry.path();
            if kind.is_dir() {
                folders.push(path.display().to_string());
            } else if kind.is_file() {
                tried += 1;
                let opened = OpenOptions::new().write(true).open(&path);
                if opened.and_then(|mut file| file.write(b"1")).is_ok() {
                    open.push(path.display().to_string());
                }
            }
        }
    }
    print(&format!("tried {tried}, writable {}: {}", open.len(), open.join(" ")))
}
