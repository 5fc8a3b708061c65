//! OCI images for Berth: references, a registry client, a content store, and unpacking of layers.
//!
//! Nothing that comes from a registry or an archive is believed. Every byte is counted and hashed, every number
//! has a limit, and layers are written by descriptor only, so that no entry of a layer reaches outside its tree.
//! The crate knows nothing of containers: it ends with a list of directories overlayfs can stack.
//!
//! Reading order:
//!
//! 1. [`digest`], [`reference`], [`platform`]: the words.
//! 2. [`manifest`], [`config`]: what registries send, parsed strictly.
//! 3. [`store`]: what is kept, as plain files.
//! 4. [`unpack`]: from a compressed tar stream to a tree in overlay format.
//! 5. [`registry`]: HTTP, authentication, retries.
//! 6. [`pull`]: all of it together.
//! 7. [`push`], and [`archive`]: images as files, the formats of `docker save`.

pub mod archive;
pub mod config;
pub mod digest;
pub mod manifest;
pub mod platform;
pub mod pull;
pub mod push;
pub mod reference;
pub mod registry;
pub mod store;
pub mod unpack;

#[cfg(test)]
mod testing;

pub use archive::{LoadError, Loaded, SaveError};
pub use config::{Healthcheck, History, ImageConfig, RunConfig};
pub use digest::Digest;
pub use platform::Platform;
pub use pull::{Progress, PullError, Puller, Status};
pub use push::{PushError, PushProgress, PushStatus, Pushed};
pub use reference::{Reference, ReferenceError};
pub use registry::{BoxFuture, Credentials, Mirror, Patience, Registries, Resolve};
pub use store::{FindError, Image, Pruned, RemoveError, Removed, Store, StoreError, Use};
