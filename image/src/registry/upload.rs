//! Putting blobs and manifests into a repository (distribution-spec, "Push").

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header;
use hyper::{Method, Response, StatusCode};
use tokio::time::sleep;

use super::client::{Session, Tries};
use super::connect::Reach;
use super::error::RegistryError;
use super::http::{Call, status_error};
use super::origin::{Url, check_redirect};
use super::payload::Payload;
use crate::digest::Digest;

impl Session {
    /// Size of a blob the repository has already.
    pub(crate) async fn has_blob(&self, digest: &Digest) -> Result<Option<u64>, RegistryError> {
        let mut call = self.call(format!("/v2/{}/blobs/{digest}", self.repository()));
        call.method = Method::HEAD;
        let response = self.push(&call, None).await?;
        match response.status() {
            StatusCode::OK => {
                let length = response.headers().get(header::CONTENT_LENGTH);
                Ok(length.and_then(|length| length.to_str().ok()?.parse().ok()))
            }
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(self.failure(response).await),
        }
    }

    /// Takes a blob over from another repository of the same registry, if it lets us.
    pub(crate) async fn mount(&self, digest: &Digest, from: &str) -> Result<bool, RegistryError> {
        let mut call =
            self.call(format!("/v2/{}/blobs/uploads/?mount={digest}&from={from}", self.repository()));
        call.method = Method::POST;
        let response = self.push(&call, Some(from)).await?;
        match response.status() {
            StatusCode::CREATED => Ok(true),
            // It opened an ordinary upload instead, which nobody will use.
            StatusCode::ACCEPTED => {
                if let Ok(url) = self.upload_url(&call.url, &response) {
                    let mut cancel = Call::get(url);
                    cancel.method = Method::DELETE;
                    let _ = self.push(&cancel, None).await;
                }
                Ok(false)
            }
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED | StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.failure(response).await),
        }
    }

    /// Uploads a blob in one piece; tried again from its start while errors pass.
    pub(crate) async fn upload(&self, digest: &Digest, payload: &Payload) -> Result<(), RegistryError> {
        let mut tries = Tries::new(self.patience());
        loop {
            let Err(error) = self.upload_once(digest, payload).await else { return Ok(()) };
            match tries.pause(&error) {
                Some(pause) => sleep(pause).await,
                None => return Err(error),
            }
        }
    }

    async fn upload_once(&self, digest: &Digest, payload: &Payload) -> Result<(), RegistryError> {
        let mut call = self.call(format!("/v2/{}/blobs/uploads/", self.repository()));
        call.method = Method::POST;
        let response = self.push(&call, None).await?;
        if response.status() != StatusCode::ACCEPTED {
            return Err(self.failure(response).await);
        }
        let mut url = self.upload_url(&call.url, &response)?;
        let separator = if url.path.contains('?') { '&' } else { '?' };
        url.path = format!("{}{separator}digest={digest}", url.path);
        let mut call = Call::get(url);
        call.method = Method::PUT;
        call.header(header::CONTENT_TYPE, "application/octet-stream");
        call.body = payload.clone();
        let response = self.push(&call, None).await?;
        if response.status() == StatusCode::CREATED {
            return Ok(());
        }
        Err(self.failure(response).await)
    }

    /// Puts a manifest under a tag.
    pub(crate) async fn put_manifest(
        &self,
        tag: &str,
        media_type: &str,
        bytes: Vec<u8>,
    ) -> Result<(), RegistryError> {
        let mut call = self.call(format!("/v2/{}/manifests/{tag}", self.repository()));
        call.method = Method::PUT;
        call.header(header::CONTENT_TYPE, media_type);
        call.body = Payload::Bytes(Bytes::from(bytes));
        let mut tries = Tries::new(self.patience());
        loop {
            let error = match self.push(&call, None).await {
                Ok(response) if response.status().is_success() => return Ok(()),
                Ok(response) => self.failure(response).await,
                Err(error) => error,
            };
            match tries.pause(&error) {
                Some(pause) => sleep(pause).await,
                None => return Err(error),
            }
        }
    }

    /// Sends a call that writes, to the registry or to where it says uploads go.
    async fn push(&self, call: &Call, from: Option<&str>) -> Result<Response<Incoming>, RegistryError> {
        if call.url.origin != *self.origin() {
            // Uploads elsewhere are signed by their address; what the registry trusts us with stays with it.
            let reach = if call.url.origin.host == self.origin().host { Reach::Any } else { Reach::Public };
            return self.http().send(call, &call.url, reach).await;
        }
        let mut scope = format!("repository:{}:pull,push", self.repository());
        if let Some(from) = from {
            scope = format!("{scope} repository:{from}:pull");
        }
        self.authorized_for(call, &scope).await
    }

    /// Where the registry wants the upload.
    fn upload_url(&self, asked: &Url, response: &Response<Incoming>) -> Result<Url, RegistryError> {
        let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
        let shown = location.unwrap_or_default().split('?').next().unwrap_or_default();
        let url = location.and_then(|location| asked.join(location));
        let refused = |reason| RegistryError::refused(self.origin(), shown, reason);
        let url = url.ok_or_else(|| refused("it is not a usable address"))?;
        check_redirect(self.origin(), self.origin(), &url.origin).map_err(refused)?;
        Ok(url)
    }

    async fn failure(&self, response: Response<Incoming>) -> RegistryError {
        status_error(response, self.origin(), self.patience().stall).await
    }
}
