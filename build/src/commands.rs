//! One file per verb of `cargo berth`.

pub(crate) mod bench;
pub(crate) mod conformance;
pub(crate) mod image;
pub(crate) mod kernel;
pub(crate) mod test;
pub(crate) mod up;
