//! What a pull tells while it runs. Texts are Docker's, so that its command line draws the bars it always draws.

use std::fmt;

use tokio::sync::mpsc;

use crate::digest::Digest;

/// One step of a pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Short id of the layer it is about; `None` for the image as a whole.
    pub layer: Option<String>,
    /// What happens.
    pub status: Status,
}

/// What happens to a layer or to the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// The layer will be fetched.
    PullingFsLayer,
    /// The layer waits its turn.
    Waiting,
    /// Bytes come, and are unpacked as they come.
    Downloading {
        /// Bytes so far.
        current: u64,
        /// Bytes in all.
        total: u64,
    },
    /// All bytes are here; the digest is compared.
    VerifyingChecksum,
    /// The bytes are what was asked for.
    DownloadComplete,
    /// The rest is unpacked.
    Extracting,
    /// The layer is in the store.
    PullComplete,
    /// The layer was in the store.
    AlreadyExists,
    /// A try failed; another follows after a pause.
    Retrying {
        /// Seconds until then.
        seconds: u64,
    },
    /// Digest of the image or index behind the name.
    Digest(Digest),
    /// The end: the name means another image than before, or a new one.
    Downloaded,
    /// The end: the name means what it meant.
    UpToDate,
}

impl fmt::Display for Status {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::PullingFsLayer => "Pulling fs layer",
            Self::Waiting => "Waiting",
            Self::Downloading { .. } => "Downloading",
            Self::VerifyingChecksum => "Verifying Checksum",
            Self::DownloadComplete => "Download complete",
            Self::Extracting => "Extracting",
            Self::PullComplete => "Pull complete",
            Self::AlreadyExists => "Already exists",
            Self::Retrying { seconds } => return write!(out, "Retrying in {seconds} seconds"),
            Self::Digest(digest) => return write!(out, "Digest: {digest}"),
            Self::Downloaded => "Downloaded newer image",
            Self::UpToDate => "Image is up to date",
        };
        out.write_str(text)
    }
}

/// Where progress goes. A slow reader loses steps; it never slows the pull or makes it use memory.
#[derive(Clone, Debug)]
pub(crate) struct Reporter {
    sender: Option<mpsc::Sender<Progress>>,
    layer: Option<String>,
}

impl Reporter {
    pub(crate) fn new(sender: Option<mpsc::Sender<Progress>>) -> Self {
        Self { sender, layer: None }
    }

    /// The same, about one layer.
    pub(crate) fn of(&self, layer: &Digest) -> Self {
        Self { sender: self.sender.clone(), layer: Some(layer.short().to_owned()) }
    }

    pub(crate) fn report(&self, status: Status) {
        if let Some(sender) = &self.sender {
            // Full or closed: both mean that nobody looks at the moment.
            let _ = sender.try_send(Progress { layer: self.layer.clone(), status });
        }
    }
}
