//! Hostile layers: one test per class of attack, each with a tree outside that must not change.

mod escape;
mod formats;
mod limits;
mod oracles;
mod whiteouts;

use std::fs::File;
use std::path::PathBuf;

use super::*;
use crate::testing::{Forge, Listing, Scratch};

/// What unpacking gave, and where.
struct Tried {
    scratch: Scratch,
    tree: PathBuf,
    result: Result<(Digest, Outcome), UnpackError>,
}

impl Tried {
    fn listing(&self) -> Listing {
        crate::testing::scratch::listing(&self.tree, false)
    }

    fn outcome(&self) -> &Outcome {
        match &self.result {
            Ok((_, outcome)) => outcome,
            Err(error) => panic!("{error:?}"),
        }
    }

    /// Type, mode and owner of a path, or nothing.
    fn what(&self, path: &str) -> Option<String> {
        self.listing().get(path).map(|line| line.split(" @").next().unwrap().to_owned())
    }

    fn exists(&self, path: &str) -> bool {
        self.listing().contains_key(path)
    }

    fn is_opaque(&self, path: &str) -> bool {
        self.listing()[path].contains("trusted.overlay.opaque=y")
    }
}

/// Unpacks as a layer above another, and checks the canary.
fn try_tar(build: impl FnOnce(&Scratch) -> Vec<u8>) -> Tried {
    try_at(build, false)
}

fn try_at(build: impl FnOnce(&Scratch) -> Vec<u8>, lowest: bool) -> Tried {
    let scratch = Scratch::new();
    let tar = build(&scratch);
    let tree = scratch.empty("tree");
    let root = File::open(&tree).unwrap().into();
    let any = Digest::of(b"");
    let expected = Expected { compression: Compression::None, size: tar.len() as u64, diff_id: &any, lowest };
    let result = unpack(&tar[..], root, None, &expected);
    if let Ok((digest, _)) = &result {
        assert_eq!(*digest, Digest::of(&tar), "the digest must cover every byte");
    }
    scratch.assert_canary();
    Tried { scratch, tree, result }
}

fn try_forge(forge: Forge) -> Tried {
    try_tar(|_| forge.finish())
}

fn assert_refused(tried: &Tried, case: &str) {
    assert!(tried.result.is_err(), "{case} was accepted");
}
