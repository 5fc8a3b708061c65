//! Reading and writing the store's small files: whole or not at all, and never more than a bound.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::StoreError;

/// Bytes a record may have; the largest lists 500 layers.
const RECORD_SIZE_MAX: u64 = 1 << 20;

/// Whether a file must be durable when the call returns.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sync {
    /// It is acknowledged to somebody: wait for the disk.
    Now,
    /// A later sync of the whole file system covers it.
    Later,
}

/// Replaces `path` by `bytes` in one step.
pub(super) fn write(path: &Path, bytes: &[u8], sync: Sync) -> Result<(), StoreError> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let aside = Path::new(&aside);
    let result = write_aside(aside, path, bytes, sync);
    if result.is_err() {
        // The leftover would only be noise: it is overwritten by the next try and removed at open.
        let _ = fs::remove_file(aside);
    }
    result.map_err(StoreError::io("write", path))
}

fn write_aside(aside: &Path, path: &Path, bytes: &[u8], sync: Sync) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(aside)?;
    file.write_all(bytes)?;
    if sync == Sync::Now {
        file.sync_all()?;
    }
    fs::rename(aside, path)?;
    if sync == Sync::Now { sync_parent(path) } else { Ok(()) }
}

/// Makes the entry of `path` in its directory durable.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Writes a record as JSON.
pub(super) fn write_record<T: Serialize>(path: &Path, record: &T, sync: Sync) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec(record)
        .map_err(|error| StoreError::io("encode", path)(io::Error::other(error)))?;
    write(path, &bytes, sync)
}

/// Reads a record; `None` when it is absent, too large or damaged, which all mean the same to the store.
pub(super) fn read_record<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&read(path, RECORD_SIZE_MAX).ok()?).ok()
}

/// Reads a file of at most `limit` bytes.
pub(super) fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "file is larger than its limit"));
    }
    Ok(bytes)
}

/// Removes a file that may be absent.
pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", path)(error)),
        _ => Ok(()),
    }
}
