//! Routes about containers.

pub(crate) mod archive;
pub(crate) mod attach;
pub(crate) mod changes;
pub(crate) mod create;
pub(crate) mod defaults;
pub(crate) mod filters;
pub(crate) mod inspect;
pub(crate) mod lifecycle;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod mounts;
pub(crate) mod size;
pub(crate) mod stats;
pub(crate) mod top;
pub(crate) mod validate;
pub(crate) mod view;
pub(crate) mod wait;
