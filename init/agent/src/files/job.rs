//! What the copying process is asked, and what it answers: JSON both ways, then the archive itself.

use std::path::PathBuf;

use berth_api::docker::containers::PathStat;
use serde::{Deserialize, Serialize};

/// First argument of the agent's program when it shall copy files; the second is the [`Job`].
pub(crate) const ARGUMENT: &str = "copy-files";

/// Where, and what.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    /// The container's tree.
    pub(crate) tree: Place,
    /// What to do there.
    pub(crate) task: Task,
}

/// How to get to a container's tree.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Place {
    /// The container runs: its own view of its files.
    Running {
        /// Host pid of its first process.
        pid: i32,
        /// Name of its control group, by which a reused pid is told from it.
        id: String,
        /// Whether it has a user namespace of its own.
        own_users: bool,
    },
    /// It does not run: its layers, and what would be mounted.
    Stopped {
        /// Name of its control group.
        id: String,
        /// Layers of its image, lowest first.
        layers: Vec<PathBuf>,
        /// Directory of its writable layer.
        writable: PathBuf,
        /// What is mounted, outer before inner.
        mounts: Vec<Bind>,
    },
}

/// A directory or file shown in a stopped container.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Bind {
    /// On the host, trusted.
    pub(crate) source: PathBuf,
    /// Inside that, resolved there; empty for all of it.
    pub(crate) below: String,
    /// In the container.
    pub(crate) target: String,
}

/// What to do in the tree.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Task {
    /// Look at a path.
    Look(String),
    /// Look at a path and write it as an archive.
    Pack(String),
    /// Write the whole tree, without what is mounted in it, as an archive.
    Export,
    /// Read an archive into a directory.
    Unpack {
        /// The directory.
        path: String,
        /// All is to belong to this user (as in the container's configuration), not to who the archive says.
        owner: Option<String>,
        /// Refuse to put a file in a directory's place and the other way round.
        keep_kinds: bool,
        /// Places of the tree and whether they may not be written; the longest that fits a path counts.
        readonly: Vec<(String, bool)>,
    },
}

/// The answer, one line, before any archive.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// A path was found; an archive follows if one was asked for.
    Found(PathStat),
    /// It is done, or the archive follows.
    Done,
    /// There is no such path.
    NoSuchPath,
    /// The container started or ended meanwhile: ask anew.
    Moved,
    /// The request cannot be done as it is.
    Invalid(String),
    /// The machine could not do it.
    Failed(String),
}

/// Longest answer in bytes.
pub(crate) const ANSWER_MAX: u64 = 64 << 10;
