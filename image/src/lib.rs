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
//! 8. [`pack`] and [`author`]: layers and images made here.

pub mod archive;
pub mod author;
pub mod config;
pub mod digest;
pub mod manifest;
pub mod pack;
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
pub use author::{AuthorError, ChangeError, Draft};
pub use config::{Healthcheck, History, ImageConfig, RunConfig};
pub use digest::Digest;
pub use platform::Platform;
pub use pull::{Described, Progress, PullError, Puller, Status};
pub use push::{PushError, PushProgress, PushStatus, Pushed};
pub use reference::{Reference, ReferenceError};
pub use registry::{BoxFuture, Credentials, Hit, Mirror, Patience, Registries, RegistryError, Resolve};
pub use store::{FindError, Image, Pruned, RemoveError, Removed, Store, StoreError, Use};
