//! Getting in: Basic, and bearer tokens from the server a registry names (distribution "token authentication").
//!
//! The name of that server comes from the network, so it is checked before anything is sent there: HTTPS unless the
//! registry itself is plain, no address of this machine or its link, no redirects, a bounded answer, and credentials
//! only within the registry's own domain or to hosts the operator listed.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, StatusCode};

use super::challenge::{self, Bearer, Challenge};
use super::connect::Reach;
use super::error::RegistryError;
use super::http::{Call, Http, read_body, status_error};
use super::origin::{Origin, Url, check_realm, may_have_credentials};
use super::payload::Payload;
use super::{Credentials, RegistryError as Error};

/// Bytes of a token server's answer.
const TOKEN_SIZE_MAX: usize = 64 << 10;
/// Life of a token that names none (token authentication specification), and the shortest that is believed.
const TOKEN_LIFE_MIN: u64 = 60;
/// Longest time a token is kept.
const TOKEN_LIFE_MAX: u64 = 3600;

/// Something to put into the Authorization header, and until when.
#[derive(Clone)]
pub(super) struct Grant {
    pub(super) header: HeaderValue,
    pub(super) until: Option<Instant>,
}

impl Grant {
    pub(super) fn is_valid(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() < until)
    }
}

/// Who asks for what.
pub(super) struct Request<'a> {
    pub(super) registry: &'a Origin,
    pub(super) scope: &'a str,
    pub(super) credentials: Option<&'a Credentials>,
    pub(super) token_hosts: &'a [String],
    /// It is about the credentials: without them no token will do.
    pub(super) insists: bool,
}

#[derive(serde::Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// The header for credentials that need no token server.
pub(super) fn direct(credentials: Option<&Credentials>) -> Option<Grant> {
    match credentials? {
        Credentials::RegistryToken(token) => grant(&format!("Bearer {token}"), None),
        Credentials::Password { .. } | Credentials::IdentityToken(_) => None,
    }
}

/// Answers the challenges of a 401; `None` when none of them can be answered.
pub(super) async fn answer(
    http: &Http,
    headers: &HeaderMap,
    request: &Request<'_>,
) -> Result<Option<Grant>, RegistryError> {
    let challenges: Vec<Challenge> = headers
        .get_all(header::WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(challenge::parse)
        .collect();
    for challenge in &challenges {
        if let Challenge::Bearer(bearer) = challenge {
            return token(http, bearer, request).await.map(Some);
        }
    }
    if challenges.contains(&Challenge::Basic) {
        return Ok(basic(request.credentials));
    }
    Ok(None)
}

fn basic(credentials: Option<&Credentials>) -> Option<Grant> {
    let Credentials::Password { username, password } = credentials? else { return None };
    grant(&format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))), None)
}

fn grant(text: &str, until: Option<Instant>) -> Option<Grant> {
    let mut header = HeaderValue::from_str(text).ok()?;
    header.set_sensitive(true);
    Some(Grant { header, until })
}

async fn token(http: &Http, bearer: &Bearer, request: &Request<'_>) -> Result<Grant, RegistryError> {
    let refused = |reason| Error::refused(request.registry, &bearer.realm, reason);
    let realm = Url::parse(&bearer.realm).ok_or_else(|| refused("it is not a usable address"))?;
    check_realm(request.registry, &realm.origin).map_err(refused)?;
    let trusted = may_have_credentials(request.registry, &realm.origin, request.token_hosts);
    if request.insists && !trusted {
        return Err(refused("it belongs to another domain, which may not see the credentials"));
    }
    let credentials = request.credentials.filter(|_| trusted);
    let reach = if realm.origin.host == request.registry.host { Reach::Any } else { Reach::Public };
    if let Some(Credentials::IdentityToken(identity)) = credentials {
        let call = refresh(&realm, bearer, request, identity);
        return ask(http, &call, reach).await;
    }
    let mut call = Call::get(with_query(&realm, bearer, request));
    call.authorization = basic(credentials).map(|grant| grant.header);
    ask(http, &call, reach).await
}

fn with_query(realm: &Url, bearer: &Bearer, request: &Request<'_>) -> Url {
    let mut path = realm.path.clone();
    let mut add = |name: &str, value: &str| {
        path.push(if path.contains('?') { '&' } else { '?' });
        path.push_str(name);
        path.push('=');
        path.push_str(&encoded(value));
    };
    if let Some(service) = &bearer.service {
        add("service", service);
    }
    for scope in request.scope.split(' ').filter(|scope| !scope.is_empty()) {
        add("scope", scope);
    }
    Url { origin: realm.origin.clone(), path }
}

/// An OAuth2 refresh (distribution "Docker Registry v2 OAuth2").
fn refresh(realm: &Url, bearer: &Bearer, request: &Request<'_>, identity: &str) -> Call {
    let form = format!(
        "grant_type=refresh_token&client_id=berth&service={}&scope={}&refresh_token={}",
        encoded(bearer.service.as_deref().unwrap_or_default()),
        encoded(request.scope),
        encoded(identity),
    );
    let mut call = Call::get(realm.clone());
    call.method = Method::POST;
    call.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
    call.body = Payload::Bytes(Bytes::from(form));
    call
}

async fn ask(http: &Http, call: &Call, reach: Reach) -> Result<Grant, RegistryError> {
    let origin = &call.url.origin;
    let stall = http.connector().patience().stall;
    let response = http.send(call, &call.url, reach).await?;
    if response.status() != StatusCode::OK {
        if response.status().is_redirection() {
            return Err(Error::protocol(origin, "a request for a token with a redirect"));
        }
        return Err(status_error(response, origin, stall).await);
    }
    let body = read_body(response.into_body(), TOKEN_SIZE_MAX, origin, stall).await?;
    let body = body.ok_or_else(|| Error::protocol(origin, "a token that is too large"))?;
    let parsed = serde_json::from_slice::<TokenAnswer>(&body).ok();
    let unusable = || Error::protocol(origin, "no usable token");
    let parsed = parsed.ok_or_else(unusable)?;
    let token =
        parsed.token.or(parsed.access_token).filter(|token| !token.is_empty()).ok_or_else(unusable)?;
    let life = parsed.expires_in.unwrap_or(TOKEN_LIFE_MIN).clamp(TOKEN_LIFE_MIN, TOKEN_LIFE_MAX);
    // Renewed before it ends, so that no request travels with a token that ends on the way.
    let until = Instant::now() + Duration::from_secs(life * 4 / 5);
    grant(&format!("Bearer {token}"), Some(until)).ok_or_else(unusable)
}

/// Percent-encodes all but the characters no query gives a meaning to.
pub(super) fn encoded(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_travel_encoded() {
        assert_eq!(encoded("repository:a/b:pull,push"), "repository%3Aa%2Fb%3Apull%2Cpush");
        assert_eq!(encoded("a b&c=d\r\n"), "a%20b%26c%3Dd%0D%0A");
    }

    #[test]
    fn a_token_that_would_break_a_header_is_none() {
        assert!(grant("Bearer a\r\nX: y", None).is_none());
        assert!(grant("Bearer abc", None).is_some_and(|grant| grant.header.is_sensitive()));
    }
}
