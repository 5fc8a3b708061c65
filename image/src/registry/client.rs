//! A registry as one repository of it is seen: manifests and small blobs, with authentication and retries.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header;
use hyper::{Response, StatusCode};
use tokio::time::sleep;

use super::auth::{self, Grant};
use super::blob::Blob;
use super::connect::{Connector, TrustError};
use super::error::{ContentError, FetchError, RegistryError};
use super::http::{Call, Http, read_body, status_error};
use super::origin::{Origin, Url};
use super::{Credentials, Patience, Registries, Resolve};
use crate::digest::Digest;
use crate::manifest::{ACCEPT, MANIFEST_SIZE_MAX};
use crate::reference::Reference;

/// Grants kept; beyond that all are forgotten, which costs a token each.
const GRANTS_MAX: usize = 256;

/// All registries, with connections and grants shared.
pub(crate) struct Client {
    http: Http,
    registries: Registries,
    grants: Mutex<HashMap<(Origin, String), Grant>>,
}

/// One repository at one place.
#[derive(Clone)]
pub(crate) struct Session {
    client: Arc<Client>,
    origin: Origin,
    repository: String,
    credentials: Option<Credentials>,
    /// It may say what a tag means.
    resolves_tags: bool,
}

/// A manifest or index as received; its bytes have the digest.
pub(crate) struct Found {
    pub(crate) digest: Digest,
    pub(crate) bytes: Vec<u8>,
    pub(crate) content_type: Option<String>,
}

/// Counts tries and says how long to pause between them.
pub(super) struct Tries {
    patience: Patience,
    done: u32,
}

impl Tries {
    pub(super) fn new(patience: Patience) -> Self {
        Self { patience, done: 0 }
    }

    /// Progress was made: the next failure is a first one again.
    pub(super) fn reset(&mut self) {
        self.done = 0;
    }

    /// The pause before the next try, `None` when the error is final.
    pub(super) fn pause(&mut self, error: &RegistryError) -> Option<Duration> {
        self.done += 1;
        if !error.is_passing() || self.done >= self.patience.tries {
            return None;
        }
        let doubled = self.patience.first_pause.saturating_mul(1 << (self.done - 1).min(16));
        // Up to a quarter more, so that machines that failed together do not come back together.
        let mut random = [0_u8];
        let jitter = getrandom::fill(&mut random).map_or(0, |()| u32::from(random[0]));
        let pause = doubled + doubled * jitter / 1024;
        Some(pause.max(error.retry_after().unwrap_or_default()).min(self.patience.longest_pause))
    }
}

impl Client {
    pub(crate) fn new(
        registries: Registries,
        resolver: Arc<dyn Resolve>,
        patience: Patience,
    ) -> Result<Self, TrustError> {
        let connector = Connector::new(&registries.ca_files, resolver, patience)?;
        Ok(Self { http: Http::new(connector), registries, grants: Mutex::default() })
    }

    /// The same with other time limits, without connections and grants.
    pub(crate) fn with_patience(&self, patience: Patience) -> Self {
        Self {
            http: Http::new(self.http.connector().with_patience(patience)),
            registries: self.registries.clone(),
            grants: Mutex::default(),
        }
    }

    /// Places to pull `reference` from, in the order in which they are asked.
    pub(crate) fn sessions(
        self: &Arc<Self>,
        reference: &Reference,
        auth: Option<Credentials>,
    ) -> Vec<Session> {
        let registry = reference.registry();
        let mirrors = self.registries.mirrors.iter().filter(|mirror| mirror.registry == registry);
        mirrors
            .map(|mirror| (mirror.host.as_str(), None, mirror.resolves_tags))
            .chain(std::iter::once((registry, auth, true)))
            .filter_map(|(host, auth, resolves_tags)| {
                Some(Session {
                    client: Arc::clone(self),
                    origin: Origin::of_registry(host, &self.registries.insecure)?,
                    repository: reference.repository().to_owned(),
                    credentials: auth.or_else(|| self.registries.credentials.get(host).cloned()),
                    resolves_tags,
                })
            })
            .collect()
    }

    /// A registry as a whole.
    pub(crate) fn session_of(self: &Arc<Self>, registry: &str, auth: Option<Credentials>) -> Option<Session> {
        Some(Session {
            client: Arc::clone(self),
            origin: Origin::of_registry(registry, &self.registries.insecure)?,
            repository: String::new(),
            credentials: auth.or_else(|| self.registries.credentials.get(registry).cloned()),
            resolves_tags: true,
        })
    }

    fn grant(&self, key: &(Origin, String)) -> Option<Grant> {
        let grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        grants.get(key).filter(|grant| grant.is_valid()).cloned()
    }

    fn set_grant(&self, key: &(Origin, String), grant: Option<Grant>) {
        let mut grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        match grant {
            Some(grant) => {
                if grants.len() >= GRANTS_MAX {
                    grants.clear();
                }
                grants.insert(key.clone(), grant);
            }
            None => {
                grants.remove(key);
            }
        }
    }
}

impl Session {
    /// The registry's host, for messages.
    pub(crate) fn host(&self) -> String {
        self.origin.to_string()
    }

    /// Whether this place may say what a tag means.
    pub(crate) fn resolves_tags(&self) -> bool {
        self.resolves_tags
    }

    pub(super) fn origin(&self) -> &Origin {
        &self.origin
    }

    pub(super) fn patience(&self) -> Patience {
        *self.client.http.connector().patience()
    }

    /// Fetches the manifest or index behind a tag or digest and checks that its bytes are what they are called.
    pub(crate) async fn manifest(&self, selector: &str) -> Result<Found, FetchError> {
        let path = format!("/v2/{}/manifests/{selector}", self.repository);
        let mut call = self.call(path);
        call.header(header::ACCEPT, ACCEPT);
        let (response, bytes) = self.small("the manifest", &call, MANIFEST_SIZE_MAX).await?;
        let text = |name| response.get(name).and_then(|value| value.to_str().ok());
        let named = text("docker-content-digest").and_then(|value| value.parse::<Digest>().ok());
        // A digest asked for counts; one the registry tells is only compared.
        let wanted = selector.parse::<Digest>().ok().or(named);
        let digest = match wanted {
            Some(wanted) => verified(wanted, &bytes)?,
            None => Digest::of(&bytes),
        };
        let content_type = text("content-type").map(str::to_owned);
        Ok(Found { digest, bytes, content_type })
    }

    /// Fetches a blob small enough for memory.
    pub(crate) async fn small_blob(&self, digest: &Digest, size: u64) -> Result<Vec<u8>, FetchError> {
        let call = self.call(format!("/v2/{}/blobs/{digest}", self.repository));
        let (_, bytes) = self.small("the image configuration", &call, size).await?;
        if bytes.len() as u64 != size {
            let got = bytes.len() as u64;
            return Err(ContentError::Size { digest: digest.clone(), wanted: size, got }.into());
        }
        verified(digest.clone(), &bytes)?;
        Ok(bytes)
    }

    /// A blob of any size, to be read piece by piece. Nothing is sent yet.
    pub(crate) fn blob(&self, digest: &Digest, size: u64) -> Blob {
        Blob::new(self.clone(), digest.clone(), size)
    }

    /// Opens a blob from byte `from` on, once.
    pub(super) async fn open_blob(
        &self,
        digest: &Digest,
        from: u64,
    ) -> Result<Response<Incoming>, RegistryError> {
        let mut call = self.call(format!("/v2/{}/blobs/{digest}", self.repository));
        if from > 0 {
            call.header(header::RANGE, &format!("bytes={from}-"));
        }
        self.authorized(&call).await
    }

    pub(super) fn call(&self, path: String) -> Call {
        Call::get(Url { origin: self.origin.clone(), path })
    }

    pub(super) fn repository(&self) -> &str {
        &self.repository
    }

    pub(super) fn credentials(&self) -> Option<&Credentials> {
        self.credentials.as_ref()
    }

    pub(super) fn token_hosts(&self) -> &[String] {
        &self.client.registries.token_hosts
    }

    pub(super) fn http(&self) -> &Http {
        &self.client.http
    }

    /// A whole small body, tried again while errors pass.
    async fn small(
        &self,
        what: &str,
        call: &Call,
        limit: u64,
    ) -> Result<(header::HeaderMap, Vec<u8>), FetchError> {
        let mut tries = Tries::new(self.patience());
        loop {
            let error = match self.small_once(call, limit).await {
                Ok((headers, Some(bytes))) => return Ok((headers, bytes)),
                Ok((_, None)) => return Err(ContentError::TooLarge { what: what.to_owned(), limit }.into()),
                Err(error) => error,
            };
            match tries.pause(&error) {
                Some(pause) => sleep(pause).await,
                None => return Err(error.into()),
            }
        }
    }

    async fn small_once(
        &self,
        call: &Call,
        limit: u64,
    ) -> Result<(header::HeaderMap, Option<Vec<u8>>), RegistryError> {
        let response = self.authorized(call).await?;
        if response.status() != StatusCode::OK {
            return Err(status_error(response, &self.origin, self.patience().stall).await);
        }
        refuse_encoding(&response, &self.origin)?;
        let (head, body) = response.into_parts();
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let bytes = read_body(body, limit, &self.origin, self.patience().stall).await?;
        Ok((head.headers, bytes))
    }

    /// Sends a call that reads.
    async fn authorized(&self, call: &Call) -> Result<Response<Incoming>, RegistryError> {
        let scope = format!("repository:{}:pull", self.repository);
        self.authorized_for(call, &scope).await
    }

    /// Sends a call with what authorization there is for `scope`; answers one challenge.
    pub(super) async fn authorized_for(
        &self,
        call: &Call,
        scope: &str,
    ) -> Result<Response<Incoming>, RegistryError> {
        let client = &self.client;
        // Grants got with credentials of one request must not serve requests without them.
        let identity = self.credentials.as_ref().map_or_else(String::new, fingerprint);
        let key = (self.origin.clone(), format!("{scope} {identity}"));
        let mut call = call.clone();
        let known = client.grant(&key).or_else(|| auth::direct(self.credentials.as_ref()));
        call.authorization = known.map(|grant| grant.header);
        let (response, url) = client.http.follow(&call, &self.origin).await?;
        // Only the registry itself is asked for what it wants to see, never a host it redirected to.
        if response.status() != StatusCode::UNAUTHORIZED || url.origin != self.origin {
            return Ok(response);
        }
        client.set_grant(&key, None);
        let request = auth::Request {
            registry: &self.origin,
            scope,
            credentials: self.credentials.as_ref(),
            token_hosts: &client.registries.token_hosts,
            insists: false,
        };
        let Some(grant) = auth::answer(&client.http, response.headers(), &request).await? else {
            return Ok(response);
        };
        call.authorization = Some(grant.header.clone());
        let (response, _) = client.http.follow(&call, &self.origin).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            client.set_grant(&key, Some(grant));
        }
        Ok(response)
    }
}

/// A hash that tells credentials apart without keeping them as a key.
fn fingerprint(credentials: &Credentials) -> String {
    let text = match credentials {
        Credentials::Password { username, password } => format!("p{}:{username}{password}", username.len()),
        Credentials::IdentityToken(token) => format!("i{token}"),
        Credentials::RegistryToken(token) => format!("r{token}"),
    };
    Digest::of(text.as_bytes()).hex().to_owned()
}

fn verified(wanted: Digest, bytes: &[u8]) -> Result<Digest, ContentError> {
    if wanted.matches(bytes) {
        return Ok(wanted);
    }
    let mut hasher = wanted.hasher();
    hasher.update(bytes);
    Err(ContentError::Digest { wanted, got: hasher.finish() })
}

/// Bytes that were transformed on the way cannot have the digest they are listed with.
pub(super) fn refuse_encoding(response: &Response<Incoming>, origin: &Origin) -> Result<(), RegistryError> {
    match response.headers().get(header::CONTENT_ENCODING) {
        Some(encoding) if encoding != "identity" => {
            Err(RegistryError::protocol(origin, "with a content encoding nobody asked for"))
        }
        _ => Ok(()),
    }
}
