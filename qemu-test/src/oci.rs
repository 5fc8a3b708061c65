//! Builds small OCI images in memory: layers from files given one by one, a configuration, a manifest.
//!
//! The same input gives the same digests: entries in the order given, time 0, root's.

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::io::Write;

const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of the manifests made here.
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// Bytes with their digest.
#[derive(Debug, Clone)]
pub struct Blob {
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    /// Content.
    pub bytes: Vec<u8>,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        Self { digest: digest(&bytes), bytes }
    }
}

/// `sha256:<hex>` of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().fold(String::from("sha256:"), |text, byte| format!("{text}{byte:02x}"))
}

/// A finished image.
#[derive(Debug, Clone)]
pub struct Image {
    /// Layers, lowest first, compressed.
    pub layers: Vec<Blob>,
    /// The configuration; its digest is the image's id.
    pub config: Blob,
    /// The manifest; its digest is what a pull names.
    pub manifest: Blob,
}

/// One layer being filled.
pub struct Layer {
    tar: tar::Builder<Vec<u8>>,
}

impl Default for Layer {
    fn default() -> Self {
        Self { tar: tar::Builder::new(Vec::new()) }
    }
}

impl Layer {
    /// Adds a regular file.
    pub fn file(mut self, path: &str, mode: u32, content: &[u8]) -> Result<Self> {
        let mut header = header(tar::EntryType::Regular, mode);
        header.set_size(content.len() as u64);
        self.tar
            .append_data(&mut header, path.trim_start_matches('/'), content)
            .with_context(|| format!("adding {path}"))?;
        Ok(self)
    }

    /// Adds a folder.
    pub fn folder(mut self, path: &str, mode: u32) -> Result<Self> {
        let mut header = header(tar::EntryType::Directory, mode);
        let path = format!("{}/", path.trim_matches('/'));
        self.tar
            .append_data(&mut header, &path, std::io::empty())
            .with_context(|| format!("adding {path}"))?;
        Ok(self)
    }

    /// Adds a symbolic link.
    pub fn symlink(mut self, path: &str, target: &str) -> Result<Self> {
        let mut header = header(tar::EntryType::Symlink, 0o777);
        self.tar
            .append_link(&mut header, path.trim_start_matches('/'), target)
            .with_context(|| format!("adding {path}"))?;
        Ok(self)
    }

    /// Hides a file of the layers below.
    pub fn whiteout(self, path: &str) -> Result<Self> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        self.file(&format!("{folder}/.wh.{name}"), 0o600, b"")
    }

    fn finish(self) -> Result<Vec<u8>> {
        Ok(self.tar.into_inner()?)
    }
}

fn header(kind: tar::EntryType, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_size(0);
    header
}

/// An image being put together.
#[derive(Default)]
pub struct Builder {
    layers: Vec<Blob>,
    diff_ids: Vec<String>,
    config: serde_json::Map<String, Value>,
}

impl Builder {
    /// Puts a layer on top.
    pub fn layer(mut self, layer: Layer) -> Result<Self> {
        let tar = layer.finish()?;
        self.diff_ids.push(digest(&tar));
        let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::fast());
        gzip.write_all(&tar)?;
        self.layers.push(Blob::new(gzip.finish()?));
        Ok(self)
    }

    /// Sets a key of the configuration's `config` object, for example `Cmd`.
    #[must_use]
    pub fn set(mut self, key: &str, value: Value) -> Self {
        self.config.insert(key.to_owned(), value);
        self
    }

    /// Closes the image.
    pub fn build(self) -> Result<Image> {
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": self.diff_ids },
            "history": self.diff_ids.iter().map(|_| json!({ "created_by": "qemu-test" })).collect::<Vec<_>>(),
        });
        let config = Blob::new(serde_json::to_vec(&config)?);
        let describe = |kind: &str, blob: &Blob| json!({ "mediaType": kind, "digest": blob.digest, "size": blob.bytes.len() });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": describe(CONFIG_TYPE, &config),
            "layers": self.layers.iter().map(|layer| describe(LAYER_TYPE, layer)).collect::<Vec<_>>(),
        });
        Ok(Image { layers: self.layers, config, manifest: Blob::new(serde_json::to_vec(&manifest)?) })
    }
}

/// Busybox's links that scripted sessions and demos use.
const APPLETS: &[&str] = &[
    "awk", "base64", "cat", "chmod", "chown", "cp", "cut", "date", "dd", "df", "echo", "env", "false",
    "find", "grep", "head", "hostname", "httpd", "id", "ip", "kill", "ln", "ls", "mkdir", "mount", "mv",
    "nc", "nslookup", "ping", "printf", "ps", "pwd", "rm", "sed", "seq", "sh", "sleep", "sort", "stat",
    "stty", "sync", "tail", "tar", "test", "touch", "tr", "true", "tty", "umount", "uname", "unshare", "vi",
    "wc", "wget", "which", "whoami",
];

/// A layer with busybox (a static build), its usual names in `/bin`, and accounts `root` and `user`.
pub fn busybox_layer(busybox: &[u8]) -> Result<Layer> {
    let mut layer = Layer::default().folder("bin", 0o755)?.folder("tmp", 0o1777)?.folder("etc", 0o755)?;
    layer = layer.file("bin/busybox", 0o755, busybox)?;
    for applet in APPLETS {
        layer = layer.symlink(&format!("bin/{applet}"), "busybox")?;
    }
    let layer =
        layer.file("etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/sh\nuser:x:1000:1000:user:/:/bin/sh\n")?;
    layer.file("etc/group", 0o644, b"root:x:0:\nuser:x:1000:\n")
}

/// The image nearly every case runs: busybox in `/bin` and the probe as `/probe`, in two layers.
pub fn tools_image(busybox: &[u8], probe: &[u8]) -> Result<Image> {
    let top = Layer::default().file("probe", 0o755, probe)?;
    Builder::default()
        .layer(busybox_layer(busybox)?)?
        .layer(top)?
        .set("Env", json!(["PATH=/bin"]))
        .set("Cmd", json!(["sh"]))
        .build()
}

#[cfg(test)]
mod tests {
    use super::{digest, tools_image};

    #[test]
    fn the_same_files_give_the_same_digests() {
        let [first, second] = [(); 2].map(|()| tools_image(b"busybox", b"probe").expect("image"));
        assert_eq!(first.manifest.digest, second.manifest.digest);
        assert_ne!(first.manifest.digest, tools_image(b"busybox", b"other").expect("image").manifest.digest);
    }

    #[test]
    fn digests_are_sha256_in_hexadecimal() {
        assert_eq!(digest(b""), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
