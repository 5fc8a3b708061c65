//! The files of an archive, kept under numbers until it is clear what they are.
//!
//! The order of files in an archive is not fixed, so layers may come before what says that they are layers.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;

use super::LoadError;
use crate::digest::Digest;
use crate::pull::{PullError, unpack_error};
use crate::store::{Staging, Store, StoreError};
use crate::unpack::{self, Kind, UnpackError};

/// Files of one archive; an image of 500 layers has about 1500 in the oldest format.
const FILES_MAX: usize = 20_000;
/// Links followed from one name to the next.
const LINKS_MAX: usize = 4;

/// The spooled files by name.
pub(super) struct Spool {
    staging: Staging,
    files: HashMap<String, Spooled>,
}

enum Spooled {
    File {
        number: usize,
        size: u64,
    },
    /// Old archives link a layer that occurs twice. The target is a name in this table, never a path.
    Link(String),
}

impl Spool {
    /// Reads a whole archive.
    pub(super) fn read(store: &Store, reader: impl Read) -> Result<Self, LoadError> {
        let mut spool = Self { staging: store.stage()?, files: HashMap::new() };
        let mut archive = unpack::archive(BufReader::new(reader)).map_err(LoadError::Archive)?;
        while let Some(entry) = archive.next().map_err(LoadError::Archive)? {
            let Some(name) = name(&entry.path) else {
                return Err(LoadError::Layout { what: "a file of it has no usable name" });
            };
            if spool.files.len() >= FILES_MAX {
                return Err(LoadError::Layout { what: "it has too many files" });
            }
            let spooled = match entry.kind {
                Kind::Directory => continue,
                Kind::File if entry.sparse.is_none() => {
                    let number = spool.files.len();
                    let size = spool.write(number, &mut archive)?;
                    Spooled::File { number, size }
                }
                Kind::Symlink | Kind::HardLink => {
                    let directory = name.rsplit_once('/').map_or("", |(directory, _)| directory);
                    let target = String::from_utf8_lossy(&entry.link);
                    let target = match entry.kind {
                        Kind::Symlink => format!("{directory}/{target}"),
                        _ => target.into_owned(),
                    };
                    let target = self::name(target.as_bytes());
                    Spooled::Link(target.ok_or(LoadError::Layout { what: "a link of it leads outside" })?)
                }
                _ => return Err(LoadError::Layout { what: "it has something that is not a file" }),
            };
            if spool.files.insert(name, spooled).is_some() {
                return Err(LoadError::Layout { what: "it has two files of one name" });
            }
        }
        Ok(spool)
    }

    fn write<R: std::io::BufRead>(
        &self,
        number: usize,
        archive: &mut unpack::Tar<R>,
    ) -> Result<u64, LoadError> {
        let path = self.staging.tree().join(number.to_string());
        let failed = |source| LoadError::from(StoreError::Io { action: "write", path: path.clone(), source });
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let mut file = opened.map_err(failed)?;
        let mut size = 0;
        loop {
            let chunk = archive.chunk().map_err(LoadError::Archive)?;
            if chunk.is_empty() {
                return Ok(size);
            }
            file.write_all(chunk).map_err(failed)?;
            let count = chunk.len();
            size += count as u64;
            archive.consume(count).map_err(LoadError::Archive)?;
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// Opens a file by its name in the archive; its size comes with it.
    pub(super) fn open(&self, name: &str) -> Result<(File, u64), LoadError> {
        let mut name = name;
        for _ in 0..=LINKS_MAX {
            match self.files.get(name) {
                Some(Spooled::Link(target)) => name = target,
                Some(Spooled::File { number, size }) => {
                    let path = self.staging.tree().join(number.to_string());
                    let failed = |source| StoreError::Io { action: "open", path: path.clone(), source };
                    return Ok((File::open(&path).map_err(failed)?, *size));
                }
                None => break,
            }
        }
        Err(LoadError::Layout { what: "a file it refers to is missing" })
    }

    /// A small file, whole.
    pub(super) fn small(&self, name: &str, limit: u64) -> Result<Vec<u8>, LoadError> {
        let (file, size) = self.open(name)?;
        if size > limit {
            return Err(LoadError::Layout { what: "a file of it is too large" });
        }
        let mut bytes = Vec::new();
        let read = file.take(limit).read_to_end(&mut bytes);
        read.map_err(|error| LoadError::Archive(UnpackError::Read(error)))?;
        Ok(bytes)
    }

    /// A blob of an OCI layout, whole and verified.
    pub(super) fn blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, LoadError> {
        let bytes = self.small(&blob_name(digest), limit)?;
        if digest.matches(&bytes) { Ok(bytes) } else { Err(mismatch(digest, &bytes)) }
    }

    pub(super) fn has_blob(&self, digest: &Digest) -> bool {
        self.has(&blob_name(digest))
    }
}

/// Where an OCI layout keeps a blob.
pub(super) fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

/// A name as the table knows it: no empty, `.` or `..` components.
pub(super) fn name(raw: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(raw).ok().filter(|text| text.len() < 4096)?;
    let mut parts = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

fn mismatch(wanted: &Digest, bytes: &[u8]) -> LoadError {
    let mut hasher = wanted.hasher();
    hasher.update(bytes);
    let error = crate::registry::ContentError::Digest { wanted: wanted.clone(), got: hasher.finish() };
    LoadError::Image(PullError::Content(error))
}

/// An error of unpacking a layer of the archive.
pub(super) fn layer_error(layer: &Digest, error: UnpackError) -> LoadError {
    LoadError::Image(unpack_error(layer, error))
}
