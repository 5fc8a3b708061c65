//! Files as block devices.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use berth_sys::devices;

/// Another process may take the free device first; more than a few times in a row is something else.
const TRIES: usize = 16;

/// A loop device with a file behind it. It frees itself after its last user, so keep `file` open until it is mounted.
pub(crate) struct Loop {
    /// `/dev/loopN`.
    pub(crate) path: String,
    /// The open device.
    pub(crate) file: File,
}

/// Puts `backing` behind a free loop device.
pub(crate) fn attach(backing: &File, read_only: bool) -> io::Result<Loop> {
    let control = File::options().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..TRIES {
        let path = format!("/dev/loop{}", devices::loop_free(control.as_fd())?);
        let file = File::options().read(true).write(!read_only).open(&path)?;
        match devices::loop_attach(file.as_fd(), backing.as_fd(), read_only) {
            Ok(()) => return Ok(Loop { path, file }),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::ResourceBusy.into())
}
