//! OCI runtimes by their command lines, with one bundle for all: the same namespaces but the user's, the same mounts,
//! hidden and read-only paths, a new network namespace, no filter, no overlay.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use berth_runtime::oci::features;

use super::{Contender, Took, since};

/// Which commands start the container.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// `create`, then `start`; `delete` at the end.
    CreateStart,
    /// `run`, which is over when the container is.
    Run,
}

pub(crate) struct Oci {
    runtime: String,
    how: How,
    bundle: PathBuf,
}

impl Oci {
    pub(crate) fn new(runtime: &str, how: How, dir: &Path, rootfs: &Path) -> Self {
        let bundle = dir.join("bundle");
        std::fs::create_dir_all(&bundle).unwrap();
        let mut spec = features::template();
        // A version that Debian's crun knows; nothing in the bundle is newer.
        spec["ociVersion"] = "1.0.2".into();
        spec["root"] = serde_json::json!({ "path": rootfs, "readonly": false });
        spec["process"]["args"] = serde_json::json!(["/bin/true"]);
        std::fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        Self { runtime: runtime.to_owned(), how, bundle }
    }

    fn call(&self, words: &[&str]) {
        let status = Command::new(&self.runtime)
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "{} {words:?}: {status}", self.runtime);
    }
}

impl Contender for Oci {
    fn name(&self) -> String {
        match self.how {
            How::CreateStart => format!("{}-create-start", self.runtime),
            How::Run => format!("{}-run", self.runtime),
        }
    }

    /// Some hundred times as slow as the launcher where instructions are counted, and as even.
    fn every(&self) -> u32 {
        10
    }

    fn prepare(&mut self, _round: u32) {}

    fn start(&mut self, round: u32) -> Took {
        let id = format!("{}-{round}", self.name());
        let bundle = self.bundle.to_string_lossy().into_owned();
        let begun = Instant::now();
        if self.how == How::Run {
            self.call(&["run", "--bundle", &bundle, &id]);
            let gone = since(begun);
            return Took { started: gone, gone };
        }
        self.call(&["create", "--bundle", &bundle, &id]);
        self.call(&["start", &id]);
        let started = since(begun);
        self.call(&["delete", "--force", &id]);
        Took { started, gone: since(begun) }
    }
}
