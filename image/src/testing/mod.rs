//! What the tests of this crate share: forged archives and images, and a registry that lies on demand.

pub(crate) mod distribution;
pub(crate) mod forge;
pub(crate) mod registry;
pub(crate) mod scratch;

pub(crate) use forge::{Forge, Head, ImageForge};
pub(crate) use registry::{Reply, TestRegistry};
pub(crate) use scratch::{Listing, Scratch};
