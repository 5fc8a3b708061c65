//! What can be asked of a registry without pulling: what a name means, whether credentials are good, what there is.

use super::Puller;
use super::error::PullError;
use super::resolve::named;
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::manifest::{Document, OCI_INDEX, OCI_MANIFEST};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::registry::{Credentials, Found, Hit, RegistryError, Session};

/// The registry whose index is searched when none is named, as references write it.
const HUB: &str = "docker.io";
/// Where Docker Hub keeps its index.
const HUB_INDEX: &str = "index.docker.io";

/// What a name means in its registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Type of the document behind the name.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Platforms it is for.
    pub platforms: Vec<Platform>,
}

impl Puller {
    /// What `reference` means at its registry now.
    pub async fn describe(
        &self,
        reference: &Reference,
        auth: Option<Credentials>,
    ) -> Result<Described, PullError> {
        let mut last = PullError::NotFound { reference: reference.familiar() };
        for session in self.client().sessions(reference, auth) {
            if reference.digest().is_none() && !session.resolves_tags() {
                continue;
            }
            match session.manifest(&reference.selector()).await {
                Ok(found) => return described(&session, reference, found).await,
                Err(error) => last = named(error, &session.host(), reference),
            }
        }
        Err(last)
    }

    /// Whether `registry` (`host[:port]`, `docker.io` for Docker Hub) takes the credentials.
    pub async fn log_in(&self, registry: &str, auth: Option<Credentials>) -> Result<(), RegistryError> {
        self.session_of(registry, auth)?.log_in().await
    }

    /// Repositories of `registry` that fit `term`, at most `limit`.
    pub async fn search(
        &self,
        registry: &str,
        term: &str,
        limit: usize,
        auth: Option<Credentials>,
    ) -> Result<Vec<Hit>, RegistryError> {
        let host = if registry == HUB { HUB_INDEX } else { registry };
        self.session_of(host, auth)?.search(term, limit).await
    }

    fn session_of(&self, registry: &str, auth: Option<Credentials>) -> Result<Session, RegistryError> {
        self.client().session_of(registry, auth).ok_or_else(|| RegistryError::Refused {
            host: registry.chars().take(256).collect(),
            target: registry.chars().take(256).collect(),
            reason: "it is not a usable address",
        })
    }
}

async fn described(session: &Session, reference: &Reference, found: Found) -> Result<Described, PullError> {
    let unusable = |source| PullError::Manifest { digest: found.digest.clone(), source };
    let document = Document::parse(&found.bytes, found.content_type.as_deref()).map_err(unusable)?;
    let (platforms, usual) = match document {
        Document::Index(entries) => {
            (entries.into_iter().filter_map(|entry| entry.platform).collect(), OCI_INDEX)
        }
        Document::Manifest(manifest) => {
            let config = session.small_blob(&manifest.config, manifest.config_size).await;
            let config = config.map_err(|error| named(error, &session.host(), reference))?;
            let unusable = |source| PullError::Config { digest: manifest.config.clone(), source };
            let config = ImageConfig::parse(&config, manifest.layers.len()).map_err(unusable)?;
            let variant = Some(config.variant).filter(|variant| !variant.is_empty());
            let platform = Platform { os: config.os, architecture: config.architecture, variant };
            (vec![platform], OCI_MANIFEST)
        }
    };
    let media_type = found.content_type.as_deref().and_then(|text| text.split(';').next()).map(str::trim);
    Ok(Described {
        media_type: media_type.filter(|text| !text.is_empty()).unwrap_or(usual).to_owned(),
        digest: found.digest,
        size: found.bytes.len() as u64,
        platforms,
    })
}
