//! From a compressed tar stream to a tree in overlay format.
//!
//! One pass: the bytes are inflated, hashed and written as they come. The stream is hostile until its digest is
//! known, and the tree is committed only after that. The border of this module is bytes in, a tree out by
//! descriptor: it opens no path of its own.
//!
//! Rooms: `header`, `pax`, `tar` (reading), `path` (what names mean), `tree` (where they go), `attributes`,
//! `extract` (writing), `implied` (directories an archive left out), `stream` (inflating and hashing), `recipe`
//! (making the stream again).

mod attributes;
mod error;
mod extract;
mod header;
mod implied;
mod path;
mod pax;
mod recipe;
mod stream;
mod tar;
#[cfg(test)]
mod tests;
mod tree;

use std::fs::File;
use std::io::BufRead;
use std::os::fd::OwnedFd;

pub(crate) use attributes::is_layer_xattr;
pub use error::UnpackError;
pub use extract::Outcome;
pub use implied::adopt;
pub(crate) use path::{DEPTH_MAX, is_whiteout_name};
pub use recipe::replay;
pub(crate) use stream::{TarStream, sniff};
pub(crate) use tar::{Kind, Tar};

use crate::digest::Digest;
use crate::manifest::Compression;

/// What is known about a layer before its bytes come.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// How it is packed.
    pub compression: Compression,
    /// Bytes of the packed form.
    pub size: u64,
    /// Digest of the tar stream; only its hash function is used here, the caller compares.
    pub diff_id: &'a Digest,
    /// Nothing is below the layer, so whiteouts have nothing to hide and are not made.
    pub lowest: bool,
}

/// Unpacks `source` into the empty directory `root`. Returns the digest of the tar stream too.
///
/// Into `recipe` goes all of the stream that is not found again in the tree; with both [`replay`] makes the stream
/// anew. On an error the tree is in some state between and must be deleted.
pub fn unpack(
    source: impl BufRead,
    root: OwnedFd,
    recipe: Option<File>,
    expected: &Expected<'_>,
) -> Result<(Digest, Outcome), UnpackError> {
    let stream = stream::TarStream::new(source, expected.compression, expected.size, expected.diff_id)?;
    let recorder = recipe.map(recipe::Recorder::new).transpose()?;
    let mut reader = tar::Tar::new(stream, recorder);
    let outcome = extract::extract(&mut reader, root, expected.lowest)?;
    let (digest, length) = reader.finish()?.finish()?;
    Ok((digest, Outcome { length, ..outcome }))
}

/// As [`unpack`], of a stream nobody said anything about: packed in any way, and hashed with SHA-256.
pub(crate) fn unpack_any(
    source: impl BufRead,
    root: OwnedFd,
    recipe: Option<File>,
    lowest: bool,
) -> Result<(Digest, Outcome), UnpackError> {
    let recorder = recipe.map(recipe::Recorder::new).transpose()?;
    let mut reader = tar::Tar::new(TarStream::guessed(source)?, recorder);
    let outcome = extract::extract(&mut reader, root, lowest)?;
    let (digest, length) = reader.finish()?.finish()?;
    Ok((digest, Outcome { length, ..outcome }))
}

/// Reads an archive that is no layer: packed in any way, and of files only.
pub(crate) fn archive<R: BufRead>(source: R) -> Result<Tar<TarStream<R>>, UnpackError> {
    Ok(Tar::new(TarStream::guessed(source)?, None))
}
