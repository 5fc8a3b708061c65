//! The log: one record of the kernel's ring for each line, so that it is on the console, in the host API and in
//! pstore after a crash.

use std::fmt::Arguments;
use std::fs::File;
use std::io::Write;
use std::sync::OnceLock;

/// The kernel cuts a record at about 1 KiB. Unit: bytes.
const LINE_MAX: usize = 900;

static KMSG: OnceLock<File> = OnceLock::new();

/// Syslog priorities of the kernel's log.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Level {
    Error = 3,
    Warning = 4,
    Info = 6,
}

/// Opens the ring; to be called once `/dev/kmsg` exists.
pub(crate) fn open() {
    // Without this the kernel drops lines of a chatty boot.
    let _ = std::fs::write("/proc/sys/kernel/printk_devkmsg", "on\n");
    if let Ok(file) = File::options().write(true).open("/dev/kmsg") {
        let _ = KMSG.set(file);
    }
}

/// Writes one line; what cannot be written is lost, since nobody is left to tell.
pub(crate) fn write(level: Level, text: Arguments<'_>) {
    let mut line = format!("<{}>init: {text}", level as u8);
    if let Some((cut, _)) = line.char_indices().find(|(at, _)| *at >= LINE_MAX) {
        line.truncate(cut);
    }
    let mut line = line.replace('\n', " ");
    line.push('\n');
    let written = KMSG.get().map(|mut file| file.write_all(line.as_bytes()));
    if !matches!(written, Some(Ok(()))) {
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}

/// A descriptor on which others may write lines of their own.
pub(crate) fn file() -> Option<&'static File> {
    KMSG.get()
}

macro_rules! note {
    ($($text:tt)*) => { $crate::kmsg::write($crate::kmsg::Level::Info, format_args!($($text)*)) };
}
macro_rules! warn_ {
    ($($text:tt)*) => { $crate::kmsg::write($crate::kmsg::Level::Warning, format_args!($($text)*)) };
}
macro_rules! error {
    ($($text:tt)*) => { $crate::kmsg::write($crate::kmsg::Level::Error, format_args!($($text)*)) };
}
pub(crate) use {error, note, warn_ as warn};
