//! The agent's log: lines to the kernel ring, so they are on the console and survive the agent.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::OnceLock;

/// Longest line in bytes: the kernel's record limit (`LOG_LINE_MAX`, 1024) less its prefix.
const LINE_MAX: usize = 976;

/// How bad it is; numbers are syslog's.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Level {
    /// Something failed.
    Error = 3,
    /// Something failed and was tolerated.
    Warning = 4,
    /// Something happened.
    Info = 6,
}

static RING: OnceLock<Option<File>> = OnceLock::new();

/// Write one line. A full or missing ring loses the line, never blocks.
pub(crate) fn line(level: Level, text: fmt::Arguments<'_>) {
    let text = format(level, text);
    let ring = RING.get_or_init(|| OpenOptions::new().write(true).open("/dev/kmsg").ok());
    // Nothing is left to tell of a failure here.
    let _ = match ring {
        Some(ring) => { &*ring }.write_all(text.as_bytes()),
        None => std::io::stderr().write_all(text.as_bytes()),
    };
}

fn format(level: Level, text: fmt::Arguments<'_>) -> String {
    let mut line = format!("<{}>agent: {text}", level as u8).replace('\n', " | ");
    if line.len() > LINE_MAX {
        let mut end = LINE_MAX - '…'.len_utf8();
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        line.truncate(end);
        line.push('…');
    }
    line.push('\n');
    line
}

/// An error with all its causes, `: ` between them.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Log what happened.
macro_rules! info {
    ($($arguments:tt)*) => { $crate::log::line($crate::log::Level::Info, format_args!($($arguments)*)) };
}
/// Log a tolerated failure; the text ends in ", continuing".
macro_rules! warning {
    ($($arguments:tt)*) => { $crate::log::line($crate::log::Level::Warning, format_args!($($arguments)*)) };
}
/// Log a failure.
macro_rules! error {
    ($($arguments:tt)*) => { $crate::log::line($crate::log::Level::Error, format_args!($($arguments)*)) };
}
pub(crate) use {error, info, warning};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_bounded_line() {
        assert_eq!(format(Level::Info, format_args!("a\nb")), "<6>agent: a | b\n");
        let long = format(Level::Error, format_args!("{}", "ä".repeat(2000)));
        assert!(long.len() <= LINE_MAX + 1 && long.ends_with("…\n"), "{}", long.len());
    }
}
