//! Manifests and indexes as registries send them: parsed strictly, then turned into decided types.
//!
//! image-spec manifest.md and image-index.md, and Docker's schema 2 twins. Schema 1 is refused. A document that
//! is both a manifest and an index (CVE-2021-41190) is refused, whatever it says its type is.

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::digest::Digest;
use crate::platform::Platform;

/// Bytes of a manifest or an index; distribution-spec asks for at least 4 MiB.
pub const MANIFEST_SIZE_MAX: u64 = 4 << 20;
/// Bytes of an image configuration; real ones stay below 100 KiB.
pub const CONFIG_SIZE_MAX: u64 = 4 << 20;
/// Layers of one image; overlayfs mounts at most 500.
pub const LAYERS_MAX: usize = 500;
/// Entries of an index; the largest official ones have about 40.
pub const INDEX_ENTRIES_MAX: usize = 1024;
/// Bytes one compressed layer may have.
pub const LAYER_SIZE_MAX: u64 = 64 << 30;

/// Media types a client offers when it asks for a manifest.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                          application/vnd.docker.distribution.manifest.list.v2+json, \
                          application/vnd.docker.distribution.manifest.v2+json";

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// How the bytes of a layer are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Plain tar.
    None,
    /// gzip, possibly of several members.
    Gzip,
    /// Zstandard, possibly of several frames.
    Zstd,
}

/// A layer of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Digest of the bytes as transferred.
    pub digest: Digest,
    /// Bytes as transferred.
    pub size: u64,
    /// What the media type promises.
    pub compression: Compression,
}

/// An image manifest with every choice made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Digest of the configuration, which is the image's id.
    pub config: Digest,
    /// Bytes of the configuration.
    pub config_size: u64,
    /// Layers, lowest first.
    pub layers: Vec<Layer>,
}

/// One line of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Digest of the manifest or nested index.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// The platform, where given.
    pub platform: Option<Platform>,
}

/// What a manifest URL gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// A choice of images.
    Index(Vec<Entry>),
}

/// The document cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON of the expected form.
    #[error("manifest is not valid JSON of a known form")]
    Json(#[source] serde_json::Error),
    /// Type of the document is not known.
    #[error("unsupported manifest media type {0:?}")]
    MediaType(String),
    /// Header and document disagree about the type.
    #[error("manifest says media type {document:?} but the registry says {header:?}")]
    TypeMismatch {
        /// `mediaType` of the document.
        document: String,
        /// `Content-Type` of the answer.
        header: String,
    },
    /// Manifest and index at once.
    #[error("document has both layers and manifests")]
    Ambiguous,
    /// Docker schema 1.
    #[error("schema 1 manifests are not supported")]
    Schema1,
    /// An artifact, not something to run.
    #[error("not a container image: configuration has media type {0:?}")]
    NotAnImage(String),
    /// A layer of an unknown kind.
    #[error("unsupported layer media type {0:?}")]
    LayerType(String),
    /// A part is missing or too large.
    #[error("manifest has {what}")]
    Limit {
        /// What is wrong.
        what: &'static str,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireDocument {
    schema_version: u32,
    media_type: Option<String>,
    config: Option<WireDescriptor>,
    layers: Option<Vec<WireDescriptor>>,
    manifests: Option<Vec<WireDescriptor>>,
    fs_layers: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireDescriptor {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    size: u64,
    platform: Option<WirePlatform>,
    #[serde(default)]
    annotations: Option<std::collections::BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct WirePlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
}

impl Document {
    /// Parses `bytes`; `content_type` is the registry's header where there was one.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, ManifestError> {
        let wire: WireDocument = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
        if wire.schema_version == 1 || wire.fs_layers.is_some() {
            return Err(ManifestError::Schema1);
        }
        if wire.schema_version != 2 {
            return Err(ManifestError::Limit { what: "an unknown schema version" });
        }
        let header = content_type.map(essence).filter(|text| is_manifest_type(text));
        match (&wire.media_type, header) {
            (Some(document), Some(header)) if document != &header => {
                return Err(ManifestError::TypeMismatch { document: document.clone(), header });
            }
            (Some(document), _) if !is_manifest_type(document) => {
                return Err(ManifestError::MediaType(document.clone()));
            }
            _ => {}
        }
        let said =
            wire.media_type.clone().or_else(|| content_type.map(essence).filter(|t| is_manifest_type(t)));
        let says_index = said.as_deref().map(|text| text == OCI_INDEX || text == DOCKER_LIST);
        match (wire.layers, wire.config, wire.manifests) {
            (None, None, Some(manifests)) if says_index != Some(false) => index(manifests),
            (Some(layers), Some(config), None) if says_index != Some(true) => manifest(config, layers),
            (Some(_), _, Some(_)) | (_, Some(_), Some(_)) => Err(ManifestError::Ambiguous),
            _ => Err(ManifestError::Limit { what: "not the parts its media type promises" }),
        }
    }
}

/// Picks the entry of an index that fits `platform` best; the earlier wins between equals.
pub fn choose<'a>(entries: &'a [Entry], platform: &Platform) -> Option<&'a Entry> {
    entries
        .iter()
        .filter_map(|entry| Some((platform.rank(entry.platform.as_ref()?)?, entry)))
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, entry)| entry)
}

fn index(manifests: Vec<WireDescriptor>) -> Result<Document, ManifestError> {
    if manifests.len() > INDEX_ENTRIES_MAX {
        return Err(ManifestError::Limit { what: "too many entries" });
    }
    let entries = manifests
        .into_iter()
        // Attestations describe an image of the index; they are no image themselves.
        .filter(|entry| {
            !entry.annotations.as_ref().is_some_and(|all| all.contains_key("vnd.docker.reference.type"))
        })
        .filter(|entry| entry.media_type.is_empty() || is_manifest_type(&entry.media_type))
        .map(|entry| Entry {
            digest: entry.digest,
            size: entry.size,
            platform: entry.platform.map(|platform| Platform {
                os: platform.os,
                architecture: platform.architecture,
                variant: platform.variant,
            }),
        })
        .collect();
    Ok(Document::Index(entries))
}

fn manifest(config: WireDescriptor, layers: Vec<WireDescriptor>) -> Result<Document, ManifestError> {
    if config.media_type != OCI_CONFIG && config.media_type != DOCKER_CONFIG {
        return Err(ManifestError::NotAnImage(config.media_type));
    }
    if config.size > CONFIG_SIZE_MAX {
        return Err(ManifestError::Limit { what: "too large a configuration" });
    }
    if layers.len() > LAYERS_MAX {
        return Err(ManifestError::Limit { what: "too many layers" });
    }
    let layers = layers.into_iter().map(layer).collect::<Result<Vec<_>, _>>()?;
    Ok(Document::Manifest(Manifest { config: config.digest, config_size: config.size, layers }))
}

fn layer(wire: WireDescriptor) -> Result<Layer, ManifestError> {
    let compression = match wire.media_type.as_str() {
        "application/vnd.docker.image.rootfs.diff.tar.gzip"
        | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
        | "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip" => Compression::Gzip,
        "application/vnd.docker.image.rootfs.diff.tar"
        | "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar" => Compression::None,
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd" => Compression::Zstd,
        _ => return Err(ManifestError::LayerType(wire.media_type)),
    };
    if wire.size > LAYER_SIZE_MAX {
        return Err(ManifestError::Limit { what: "too large a layer" });
    }
    Ok(Layer { digest: wire.digest, size: wire.size, compression })
}

/// A media type without its parameters.
fn essence(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn is_manifest_type(text: &str) -> bool {
    matches!(text, OCI_INDEX | OCI_MANIFEST | DOCKER_LIST | DOCKER_MANIFEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn descriptor(media_type: &str, size: &str) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"{A}","size":{size}}}"#)
    }

    fn image(layers: &str) -> String {
        format!(r#"{{"schemaVersion":2,"config":{},"layers":[{layers}]}}"#, descriptor(OCI_CONFIG, "2"))
    }

    #[test]
    fn a_manifest_keeps_the_order_and_packing_of_its_layers() {
        let layers = [
            descriptor("application/vnd.oci.image.layer.v1.tar", "1"),
            descriptor("application/vnd.oci.image.layer.v1.tar+zstd", "2"),
        ];
        let Document::Manifest(manifest) =
            Document::parse(image(&layers.join(",")).as_bytes(), None).unwrap()
        else {
            panic!("not a manifest");
        };
        let packed: Vec<_> = manifest.layers.iter().map(|layer| (layer.compression, layer.size)).collect();
        assert_eq!(packed, [(Compression::None, 1), (Compression::Zstd, 2)]);
    }

    #[test]
    fn documents_that_could_be_read_two_ways_are_refused() {
        let both = format!(
            r#"{{"schemaVersion":2,"config":{c},"layers":[],"manifests":[]}}"#,
            c = descriptor(OCI_CONFIG, "2")
        );
        assert!(matches!(Document::parse(both.as_bytes(), None), Err(ManifestError::Ambiguous)));
        let typed = image("").replacen('{', &format!(r#"{{"mediaType":"{OCI_MANIFEST}","#), 1);
        assert!(
            Document::parse(typed.as_bytes(), Some("application/vnd.oci.image.manifest.v1+json; x=y"))
                .is_ok()
        );
        assert!(matches!(
            Document::parse(typed.as_bytes(), Some(OCI_INDEX)),
            Err(ManifestError::TypeMismatch { .. })
        ));
        let index_type = image("").replacen('{', &format!(r#"{{"mediaType":"{OCI_INDEX}","#), 1);
        assert!(Document::parse(index_type.as_bytes(), None).is_err());
        let twice = r#"{"schemaVersion":2,"manifests":[],"manifests":[]}"#;
        assert!(matches!(Document::parse(twice.as_bytes(), None), Err(ManifestError::Json(_))));
    }

    #[test]
    fn hostile_documents_are_errors_and_not_crashes() {
        let deep = format!(r#"{{"schemaVersion":2,"x":{}"#, "[".repeat(100_000));
        assert!(Document::parse(deep.as_bytes(), None).is_err());
        for size in ["-1", "9223372036854775808000", "1.5", "\"1\""] {
            let layer = descriptor("application/vnd.oci.image.layer.v1.tar", size);
            assert!(Document::parse(image(&layer).as_bytes(), None).is_err(), "{size}");
        }
        let layer = descriptor("application/vnd.oci.image.layer.v1.tar", "1");
        let at_limit = vec![layer.clone(); LAYERS_MAX].join(",");
        assert!(Document::parse(image(&at_limit).as_bytes(), None).is_ok());
        let past_limit = vec![layer; LAYERS_MAX + 1].join(",");
        assert!(matches!(
            Document::parse(image(&past_limit).as_bytes(), None),
            Err(ManifestError::Limit { .. })
        ));
        let schema1 = r#"{"schemaVersion":1,"fsLayers":[]}"#;
        assert!(matches!(Document::parse(schema1.as_bytes(), None), Err(ManifestError::Schema1)));
        let traversal = image(&descriptor("t", "1")).replace(A, "sha256:../../etc/passwd");
        assert!(Document::parse(traversal.as_bytes(), None).is_err());
    }

    #[test]
    fn attestations_are_never_chosen() {
        let list = format!(
            r#"{{"schemaVersion":2,"manifests":[
              {{"mediaType":"{OCI_MANIFEST}","digest":"{A}","size":1,"platform":{{"os":"linux","architecture":"amd64"}},
                "annotations":{{"vnd.docker.reference.type":"attestation-manifest"}}}},
              {{"mediaType":"{OCI_MANIFEST}","digest":"{A}","size":2,"platform":{{"os":"unknown","architecture":"unknown"}}}},
              {{"mediaType":"{OCI_MANIFEST}","digest":"{A}","size":3,"platform":{{"os":"linux","architecture":"arm64","variant":"v8"}}}},
              {{"mediaType":"{OCI_MANIFEST}","digest":"{A}","size":4,"platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#
        );
        let Document::Index(entries) = Document::parse(list.as_bytes(), Some(OCI_INDEX)).unwrap() else {
            panic!("not an index");
        };
        let pick = |text: &str| choose(&entries, &text.parse().unwrap()).map(|entry| entry.size);
        assert_eq!(pick("linux/amd64"), Some(4));
        assert_eq!(pick("linux/arm64"), Some(3));
        assert_eq!(pick("linux/s390x"), None);
    }
}
