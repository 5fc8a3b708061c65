//! Archives and images made byte by byte, so that they can be wrong in every way.

use std::collections::BTreeMap;
use std::io::Write as _;

use crate::digest::Digest;

/// A tar header field by field.
#[derive(Clone)]
pub(crate) struct Head {
    pub(crate) name: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: u8,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) size: u64,
    pub(crate) mtime: u64,
    pub(crate) device: (u32, u32),
    pub(crate) magic: &'static [u8; 8],
}

pub(crate) const USTAR: &[u8; 8] = b"ustar\x0000";
pub(crate) const GNU: &[u8; 8] = b"ustar  \0";

impl Head {
    pub(crate) fn new(kind: u8, name: impl AsRef<[u8]>) -> Self {
        Self {
            name: name.as_ref().to_vec(),
            link: Vec::new(),
            kind,
            mode: if kind == b'5' { 0o755 } else { 0o644 },
            uid: 0,
            gid: 0,
            size: 0,
            mtime: 1_000_000_000,
            device: (0, 0),
            magic: USTAR,
        }
    }

    pub(crate) fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    pub(crate) fn owner(mut self, uid: u64, gid: u64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    pub(crate) fn mtime(mut self, mtime: u64) -> Self {
        self.mtime = mtime;
        self
    }

    pub(crate) fn link(mut self, link: impl AsRef<[u8]>) -> Self {
        self.link = link.as_ref().to_vec();
        self
    }

    pub(crate) fn device(mut self, major: u32, minor: u32) -> Self {
        self.device = (major, minor);
        self
    }

    /// The block, with a checksum that is right.
    pub(crate) fn block(&self) -> [u8; 512] {
        let mut block = [0; 512];
        put(&mut block, 0, 100, &self.name);
        put(&mut block, 100, 8, &octal(self.mode.into(), 8));
        put(&mut block, 108, 8, &octal(self.uid, 8));
        put(&mut block, 116, 8, &octal(self.gid, 8));
        put(&mut block, 124, 12, &octal(self.size, 12));
        put(&mut block, 136, 12, &octal(self.mtime, 12));
        block[156] = self.kind;
        put(&mut block, 157, 100, &self.link);
        put(&mut block, 257, 8, self.magic);
        put(&mut block, 329, 8, &octal(self.device.0.into(), 8));
        put(&mut block, 337, 8, &octal(self.device.1.into(), 8));
        seal(&mut block);
        block
    }
}

/// Writes the checksum.
pub(crate) fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    let text = format!("{sum:06o}\0 ");
    block[148..156].copy_from_slice(text.as_bytes());
}

pub(crate) fn put(block: &mut [u8; 512], at: usize, length: usize, value: &[u8]) {
    let length = length.min(value.len());
    block[at..at + length].copy_from_slice(&value[..length]);
}

fn octal(value: u64, length: usize) -> Vec<u8> {
    let digits = format!("{value:0width$o}\0", width = length - 1);
    if digits.len() <= length {
        return digits.into_bytes();
    }
    // Base 256, as GNU writes what does not fit.
    let mut field = vec![0; length];
    let bytes = value.to_be_bytes();
    let count = bytes.len().min(length);
    field[length - count..].copy_from_slice(&bytes[bytes.len() - count..]);
    field[0] |= 0x80;
    field
}

/// An archive in the making.
#[derive(Clone, Default)]
pub(crate) struct Forge {
    pub(crate) bytes: Vec<u8>,
}

impl Forge {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Bytes as they are.
    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// A header, and data padded to a block. The size in the header is the data's unless it is set.
    pub(crate) fn entry(self, mut head: Head, data: &[u8]) -> Self {
        if head.size == 0 {
            head.size = data.len() as u64;
        }
        let padding = vec![0; (512 - data.len() % 512) % 512];
        self.raw(&head.block()).raw(data).raw(&padding)
    }

    pub(crate) fn file(self, name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Self {
        self.entry(Head::new(b'0', name), data.as_ref())
    }

    pub(crate) fn dir(self, name: impl AsRef<[u8]>) -> Self {
        self.entry(Head::new(b'5', name), b"")
    }

    pub(crate) fn symlink(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.entry(Head::new(b'2', name).link(target), b"")
    }

    pub(crate) fn hard_link(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.entry(Head::new(b'1', name).link(target), b"")
    }

    /// A PAX header for the entry that follows.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let body: Vec<u8> = records.iter().flat_map(|(key, value)| pax_record(key, value)).collect();
        self.entry(Head::new(b'x', "PaxHeaders/x"), &body)
    }

    /// The archive with its trailer.
    pub(crate) fn finish(self) -> Vec<u8> {
        self.raw(&[0; 1024]).bytes
    }
}

pub(crate) fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    if length.to_string().len() != rest.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An image: blobs by digest and the manifest's bytes.
#[derive(Clone, Default)]
pub(crate) struct ImageForge {
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
    /// Descriptors of layers, as JSON.
    pub(crate) layers: Vec<String>,
    pub(crate) diff_ids: Vec<Digest>,
    pub(crate) architecture: String,
    pub(crate) extra_config: String,
}

pub(crate) const GZIP_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const ZSTD_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
pub(crate) const PLAIN_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

impl ImageForge {
    pub(crate) fn new() -> Self {
        Self { architecture: "amd64".into(), ..Self::default() }
    }

    /// Adds a layer packed with gzip.
    pub(crate) fn layer(self, tar: &[u8]) -> Self {
        let packed = gzip(tar);
        self.packed_layer(GZIP_LAYER, packed, tar)
    }

    pub(crate) fn packed_layer(mut self, media_type: &str, packed: Vec<u8>, tar: &[u8]) -> Self {
        let digest = Digest::of(&packed).to_string();
        self.layers.push(descriptor(media_type, &digest, packed.len() as u64));
        self.blobs.insert(digest, packed);
        self.diff_ids.push(Digest::of(tar));
        self
    }

    pub(crate) fn config(&self) -> Vec<u8> {
        let ids: Vec<String> = self.diff_ids.iter().map(|id| format!("\"{id}\"")).collect();
        format!(
            r#"{{"architecture":"{}","os":"linux","created":"2024-01-02T03:04:05Z","config":{{"Cmd":["/bin/sh"]{}}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            self.architecture,
            self.extra_config,
            ids.join(",")
        )
        .into_bytes()
    }

    pub(crate) fn id(&self) -> Digest {
        Digest::of(&self.config())
    }

    pub(crate) fn manifest(&self) -> Vec<u8> {
        let config = self.config();
        let digest = Digest::of(&config).to_string();
        let config = descriptor(crate::manifest::OCI_CONFIG, &digest, config.len() as u64);
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","config":{config},"layers":[{}]}}"#,
            crate::manifest::OCI_MANIFEST,
            self.layers.join(",")
        )
        .into_bytes()
    }

    /// All blobs with the configuration.
    pub(crate) fn all_blobs(&self) -> BTreeMap<String, Vec<u8>> {
        let mut blobs = self.blobs.clone();
        blobs.insert(self.id().to_string(), self.config());
        blobs
    }
}

pub(crate) fn descriptor(media_type: &str, digest: &str, size: u64) -> String {
    format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size}}}"#)
}

/// An index of manifests by platform.
pub(crate) fn index(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let lines: Vec<String> = entries
        .iter()
        .map(|(architecture, manifest)| {
            format!(
                r#"{{"mediaType":"{}","digest":"{}","size":{},"platform":{{"os":"linux","architecture":"{architecture}"}}}}"#,
                crate::manifest::OCI_MANIFEST,
                Digest::of(manifest),
                manifest.len()
            )
        })
        .collect();
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[{}]}}"#,
        crate::manifest::OCI_INDEX,
        lines.join(",")
    )
    .into_bytes()
}
