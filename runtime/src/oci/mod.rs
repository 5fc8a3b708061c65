//! The OCI runtime: `config.json` to a plan, and a container's life as separate calls of a command line.
//!
//! [`spec`] is what a bundle says, [`refuse`] what of it is not supported, [`resources`], [`mounts`], [`filter`] and
//! [`special`] translate parts of it, [`plan`] the whole;
//! [`state`] is what is kept between calls, [`create`], [`start`], [`exec`] and [`end`] are the calls, [`hooks`] what
//! a bundle wants run on the way.

pub mod create;
pub mod end;
pub mod exec;
pub mod features;
pub mod filter;
pub mod hooks;
pub mod mounts;
pub mod plan;
pub mod refuse;
pub mod resources;
pub mod spec;
pub mod special;
pub mod start;
pub mod state;

use std::io;
use std::path::PathBuf;

use crate::plan::Failure;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// A file could not be read, written or opened.
    #[error("{what} {}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A JSON document is not what it should be.
    #[error("{}", path.display())]
    Json {
        /// The document.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// `config.json` asks for something that is wrong or not there.
    #[error("config.json: {0}")]
    Spec(String),
    /// A step of the set-up failed.
    #[error("{}", .0.message())]
    Step(Failure),
    /// The container's state does not allow the call.
    #[error("container {id} is {status}")]
    Status {
        /// Which container.
        id: String,
        /// What it is.
        status: state::Status,
    },
    /// There is no such container.
    #[error("container {0} does not exist")]
    Unknown(String),
    /// There is one already.
    #[error("container {0} exists already")]
    Exists(String),
    /// The id is not one.
    #[error("not a container id: {0:?}")]
    Id(String),
    /// A hook failed.
    #[error("hook {}: {reason}", path.display())]
    Hook {
        /// Its program.
        path: PathBuf,
        /// Exit code, signal or error.
        reason: String,
    },
    /// A system call of the command itself failed.
    #[error("{what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl From<Failure> for OciError {
    fn from(failure: Failure) -> Self {
        Self::Step(failure)
    }
}

/// Attaches what was tried to an error of the operating system.
pub(crate) fn system<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> OciError {
    move |error| OciError::System { what, source: error.into() }
}

/// Attaches a path to an error of the operating system.
pub(crate) fn file<E: Into<io::Error>>(
    what: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(E) -> OciError {
    let path = path.into();
    move |error| OciError::File { what, path, source: error.into() }
}
