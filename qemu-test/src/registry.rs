//! A real registry (Debian's `docker-registry`) on a free loopback port, and a client that pushes into it.

use crate::oci::{Blob, Image, MANIFEST_TYPE};
use crate::{http, ports};
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The registry answers within a second unless the machine is very busy.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// Between two looks whether it answers.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// Another program may take the free port first; how often to try again.
const PORT_TRIES: usize = 3;

/// QEMU's user network shows this machine's loopback to the guest under this address.
const HOST_SEEN_BY_GUEST: &str = "10.0.2.2";

/// Names the program when it is not in PATH.
const VARIABLE: &str = "BERTH_DOCKER_REGISTRY";

/// A running registry; stopped when dropped.
pub struct Registry {
    child: Child,
    program: PathBuf,
    folder: PathBuf,
    address: SocketAddr,
}

impl Registry {
    /// Starts the program with its data in `folder`.
    pub fn start(folder: &Path) -> Result<Self> {
        let program =
            std::env::var_os(VARIABLE).map_or_else(|| PathBuf::from("docker-registry"), PathBuf::from);
        Self::start_program(&program, folder)
    }

    /// Starts a registry program that is not in PATH.
    pub fn start_program(program: &Path, folder: &Path) -> Result<Self> {
        let mut last = None;
        for _ in 0..PORT_TRIES {
            let port = *ports::free(1)?.first().context("no free port")?;
            match Self::start_on(program, folder, port) {
                Ok(registry) => return Ok(registry),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("no try was made"))).context("starting the registry")
    }

    fn start_on(program: &Path, folder: &Path, port: u16) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        fs::create_dir_all(folder.join("data")).with_context(|| format!("making {}", folder.display()))?;
        let config = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: {address}\n",
            folder.join("data").display()
        );
        let config_file = folder.join("config.yml");
        fs::write(&config_file, config).context("writing the registry's configuration")?;
        let log = File::create(folder.join("registry.log")).context("making the registry's log")?;
        let child = Command::new(program)
            .arg("serve")
            .arg(&config_file)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let mut registry = Self { child, program: program.to_owned(), folder: folder.to_owned(), address };
        registry.wait_until_it_answers()?;
        Ok(registry)
    }

    fn wait_until_it_answers(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        while !http::get(self.address, "/v2/").is_ok_and(|answer| answer.status == 200) {
            if let Some(status) = self.child.try_wait()? {
                let log = fs::read_to_string(self.folder.join("registry.log")).unwrap_or_default();
                bail!("the registry ended with {status}: {log}");
            }
            if Instant::now() > deadline {
                bail!("the registry does not answer within {START_DEADLINE:?}");
            }
            thread::sleep(LOOK_PAUSE);
        }
        Ok(())
    }

    /// Stops it; images stay. [`Registry::resume`] brings it back on the same port.
    pub fn pause(&mut self) -> Result<()> {
        self.child.kill().context("stopping the registry")?;
        self.child.wait().map(drop).context("stopping the registry")
    }

    /// Starts it again where it was.
    pub fn resume(&mut self) -> Result<()> {
        let fresh = Self::start_on(&self.program, &self.folder, self.address.port())?;
        *self = fresh;
        Ok(())
    }

    /// `host:port` as the guest reaches it.
    pub fn guest_name(&self) -> String {
        format!("{HOST_SEEN_BY_GUEST}:{}", self.address.port())
    }

    /// How the guest names an image: `host:port/name:tag`.
    pub fn reference(&self, name_and_tag: &str) -> String {
        format!("{}/{name_and_tag}", self.guest_name())
    }

    /// Pushes an image as `name:tag`; gives the reference for the guest.
    pub fn push(&self, name_and_tag: &str, image: &Image) -> Result<String> {
        let (name, tag) = name_and_tag.split_once(':').context("a push needs name:tag")?;
        for blob in image.layers.iter().chain([&image.config]) {
            self.push_blob(name, blob)?;
        }
        let path = format!("/v2/{name}/manifests/{tag}");
        let answer = http::request(
            self.address,
            "PUT",
            &path,
            &[("Content-Type", MANIFEST_TYPE)],
            &image.manifest.bytes,
        )?;
        expect(&answer, 201, "pushing a manifest")?;
        Ok(self.reference(name_and_tag))
    }

    fn push_blob(&self, name: &str, blob: &Blob) -> Result<()> {
        let present =
            http::request(self.address, "HEAD", &format!("/v2/{name}/blobs/{}", blob.digest), &[], &[])?;
        if present.status == 200 {
            return Ok(());
        }
        let begun = http::request(self.address, "POST", &format!("/v2/{name}/blobs/uploads/"), &[], &[])?;
        expect(&begun, 202, "beginning an upload")?;
        let location = begun.header("location").context("an upload without Location")?;
        let path = location.find("/v2/").and_then(|at| location.get(at..)).unwrap_or(location);
        let separator = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{separator}digest={}", blob.digest);
        let kind = [("Content-Type", "application/octet-stream")];
        expect(&http::request(self.address, "PUT", &path, &kind, &blob.bytes)?, 201, "pushing a blob")
    }

    /// The file in which the registry keeps a blob, to damage it.
    pub fn blob_file(&self, digest: &str) -> Result<PathBuf> {
        let hex = digest.strip_prefix("sha256:").context("only sha256")?;
        let path = self
            .folder
            .join("data/docker/registry/v2/blobs/sha256")
            .join(hex.get(..2).context("digest")?)
            .join(hex)
            .join("data");
        if !path.is_file() {
            bail!("the registry keeps no {digest}");
        }
        Ok(path)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Nothing can be done about a registry that will not die.
        let _ = self.pause();
    }
}

fn expect(answer: &http::Answer, status: u16, what: &str) -> Result<()> {
    if answer.status != status {
        bail!("{what}: status {} instead of {status}: {}", answer.status, answer.text());
    }
    Ok(())
}
