//! The registry everybody runs, on a port of its own, and images laid out for other programs.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{ImageForge, Scratch};
use crate::digest::Digest;

const PORT_TRIES: usize = 8;
/// A busy machine starts it in a few seconds.
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);

/// The distribution registry on a port of its own.
pub(crate) struct Distribution {
    child: Child,
    pub(crate) host: String,
}

impl Distribution {
    /// `None` when it is not installed.
    pub(crate) fn start(scratch: &Scratch) -> Option<Self> {
        if !["docker-registry", "skopeo"].iter().all(|tool| is_installed(tool)) {
            return None;
        }
        // Between looking for a free port and serving on it another program may take it.
        (0..PORT_TRIES)
            .find_map(|_| Self::start_on_free_port(scratch))
            .map_or_else(|| panic!("docker-registry did not start on any of {PORT_TRIES} free ports"), Some)
    }

    /// `None` when the server ended before it answered.
    fn start_on_free_port(scratch: &Scratch) -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let host = format!("127.0.0.1:{port}");
        let config = scratch.path().join("registry.yml");
        let data = scratch.empty("registry");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{host}'}}\n",
            data.display()
        );
        fs::write(&config, text).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut registry = Self { child, host };
        let start = Instant::now();
        while std::net::TcpStream::connect(&registry.host).is_err() {
            if registry.child.try_wait().unwrap().is_some() {
                return None;
            }
            assert!(start.elapsed() < ANSWERS_WITHIN, "the registry does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(registry)
    }

    pub(crate) fn push(&self, layout: &Path, name: &str, extra: &[&str]) {
        run(Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"])
            .args(extra)
            .arg(format!("oci:{}:latest", layout.display()))
            .arg(format!("docker://{}/{name}", self.host)));
    }
}

impl Drop for Distribution {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn is_installed(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(tool).exists())
}

pub(crate) fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Writes an image as an OCI layout.
pub(crate) fn layout(scratch: &Scratch, name: &str, image: &ImageForge) -> PathBuf {
    let path = scratch.empty(name);
    let blobs = scratch.empty(&format!("{name}/blobs/sha256"));
    let manifest = image.manifest();
    let mut all: BTreeMap<String, Vec<u8>> = image.all_blobs();
    all.insert(Digest::of(&manifest).to_string(), manifest.clone());
    for (digest, bytes) in &all {
        fs::write(blobs.join(digest.strip_prefix("sha256:").unwrap()), bytes).unwrap();
    }
    fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let descriptor = format!(
        r#"{{"mediaType":"{}","digest":"{}","size":{},"annotations":{{"org.opencontainers.image.ref.name":"latest"}}}}"#,
        crate::manifest::OCI_MANIFEST,
        Digest::of(&manifest),
        manifest.len()
    );
    fs::write(path.join("index.json"), format!(r#"{{"schemaVersion":2,"manifests":[{descriptor}]}}"#))
        .unwrap();
    path
}
