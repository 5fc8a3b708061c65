//! Kernel settings below `/proc/sys`. Those of the network are the ones of the calling thread's namespace.

use std::fs::OpenOptions;
use std::io::{self, Write};

/// Writes `value` to the setting `name`, given with slashes (`net/ipv4/ip_forward`).
pub fn write(name: &str, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(format!("/proc/sys/{name}"))?.write_all(value.as_bytes())
}

/// Reads the setting `name` without its line end.
pub fn read(name: &str) -> io::Result<String> {
    let text = std::fs::read_to_string(format!("/proc/sys/{name}"))?;
    Ok(text.trim_end().to_owned())
}
