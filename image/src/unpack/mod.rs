//! From a compressed tar stream to a tree in overlay format.

mod error;

pub use error::UnpackError;
