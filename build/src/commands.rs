//! One file per verb of `cargo berth`.

pub(crate) mod image;
pub(crate) mod kernel;
