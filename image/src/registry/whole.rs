//! Questions to a registry as a whole: does it take these credentials, and which repositories fit a word.

use hyper::body::Incoming;
use hyper::{Response, StatusCode, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::auth::{self, encoded};
use super::client::Session;
use super::error::RegistryError;
use super::http::{read_body, status_error};

/// Bytes of one answer to a search.
const ANSWER_SIZE_MAX: usize = 4 << 20;
/// Pages of a catalogue that are looked at.
const PAGES_MAX: usize = 16;
/// Names asked for per page of a catalogue.
const PAGE: usize = 1000;

/// A repository that a search found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Hit {
    /// Its name, without the registry's host.
    pub name: String,
    /// What its owner says about it.
    #[serde(default)]
    pub description: String,
    /// How many users marked it.
    #[serde(default, rename = "star_count")]
    pub stars: i64,
    /// One of the registry's own.
    #[serde(default, rename = "is_official")]
    pub official: bool,
    /// Built by the registry from sources.
    #[serde(default, rename = "is_automated")]
    pub automated: bool,
}

impl Session {
    /// Whether the registry takes this session's credentials. A registry that asks for none takes all.
    pub(crate) async fn log_in(&self) -> Result<(), RegistryError> {
        let mut call = self.call("/v2/".to_owned());
        let (response, _) = self.http().follow(&call, self.origin()).await?;
        match response.status() {
            StatusCode::OK => return Ok(()),
            StatusCode::UNAUTHORIZED => {}
            _ => return Err(self.refusal(response).await),
        }
        let request = auth::Request {
            registry: self.origin(),
            scope: "",
            credentials: self.credentials(),
            token_hosts: self.token_hosts(),
            insists: true,
        };
        let grant = match self.credentials() {
            Some(_) => auth::answer(self.http(), response.headers(), &request).await?,
            None => None,
        };
        let Some(grant) = grant else { return Err(self.refusal(response).await) };
        call.authorization = Some(grant.header);
        let (response, _) = self.http().follow(&call, self.origin()).await?;
        if response.status() == StatusCode::OK { Ok(()) } else { Err(self.refusal(response).await) }
    }

    /// Repositories whose name or description has `term`, as far as the registry can tell: by its index if it has
    /// one, else by the names in its catalogue.
    pub(crate) async fn search(&self, term: &str, limit: usize) -> Result<Vec<Hit>, RegistryError> {
        #[derive(Deserialize)]
        struct Found {
            results: Vec<Hit>,
        }
        let call = self.call(format!("/v1/search?q={}&n={limit}", encoded(term)));
        let (response, _) = self.http().follow(&call, self.origin()).await?;
        if response.status() == StatusCode::OK {
            let mut found = self.read::<Found>(response, "a search").await?.results;
            found.truncate(limit);
            return Ok(found);
        }
        if ![StatusCode::NOT_FOUND, StatusCode::UNAUTHORIZED].contains(&response.status()) {
            return Err(self.refusal(response).await);
        }
        self.search_catalogue(term, limit).await
    }

    async fn search_catalogue(&self, term: &str, limit: usize) -> Result<Vec<Hit>, RegistryError> {
        #[derive(Deserialize)]
        struct Page {
            repositories: Option<Vec<String>>,
        }
        let mut hits = Vec::new();
        let mut path = format!("/v2/_catalog?n={PAGE}");
        for _ in 0..PAGES_MAX {
            let response = self.authorized_for(&self.call(path), "registry:catalog:*").await?;
            if response.status() != StatusCode::OK {
                return Err(self.refusal(response).await);
            }
            let more = response.headers().contains_key(header::LINK);
            let names = self.read::<Page>(response, "a list of repositories").await?;
            let names = names.repositories.unwrap_or_default();
            let last = names.last().cloned();
            let fits = names.into_iter().filter(|name| name.contains(term));
            hits.extend(fits.map(|name| Hit { name, ..Hit::default() }));
            match last.filter(|_| more && hits.len() < limit) {
                Some(last) => path = format!("/v2/_catalog?n={PAGE}&last={}", encoded(&last)),
                None => break,
            }
        }
        hits.truncate(limit);
        Ok(hits)
    }

    async fn read<T: DeserializeOwned>(
        &self,
        response: Response<Incoming>,
        what: &str,
    ) -> Result<T, RegistryError> {
        let unusable = || RegistryError::protocol(self.origin(), format!("{what} with something unusable"));
        let body = read_body(response.into_body(), ANSWER_SIZE_MAX, self.origin(), self.patience().stall);
        let body = body.await?.ok_or_else(unusable)?;
        serde_json::from_slice(&body).map_err(|_| unusable())
    }

    async fn refusal(&self, response: Response<Incoming>) -> RegistryError {
        status_error(response, self.origin(), self.patience().stall).await
    }
}
