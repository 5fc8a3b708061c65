//! What travels beside the names of images: credentials for registries, and the platform wanted.

use berth_api::docker::images::AuthConfig;
use berth_image::{Credentials, Platform};

use super::errors::ApiError;
use super::request::Request;

/// Longest credentials read, bytes of base64.
const MAX_AUTH_BYTES: usize = 32 * 1024;

/// The platform asked for, as `os/architecture` or as JSON; else this machine's.
pub(crate) fn platform(request: &Request) -> Result<Platform, ApiError> {
    let Some(text) = request.query.text("platform") else { return Ok(Platform::host()) };
    let json = || serde_json::from_str::<Platform>(text).ok();
    text.parse().ok().or_else(json).ok_or_else(|| {
        ApiError::invalid(format!("{text:?}: unknown operating system or architecture: invalid argument"))
    })
}

fn invalid() -> ApiError {
    ApiError::invalid("invalid X-Registry-Auth header")
}

/// Base64 in either alphabet, padded or not: clients send all of them.
fn decoded(text: &str) -> Option<Vec<u8>> {
    use base64::Engine;
    use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
    let lenient =
        GeneralPurposeConfig::new().with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent);
    let url = GeneralPurpose::new(&base64::alphabet::URL_SAFE, lenient);
    let standard = GeneralPurpose::new(&base64::alphabet::STANDARD, lenient);
    url.decode(text).or_else(|_| standard.decode(text)).ok()
}

/// The credentials in `X-Registry-Auth`: base64 of JSON, `{}` or nothing for none.
pub(crate) fn credentials(header: Option<&str>) -> Result<Option<Credentials>, ApiError> {
    let Some(header) = header.filter(|header| !header.is_empty()) else { return Ok(None) };
    if header.len() > MAX_AUTH_BYTES {
        return Err(invalid());
    }
    let json = decoded(header).ok_or_else(invalid)?;
    of(berth_api::decode::from_slice(&json).map_err(|_| invalid())?)
}

/// The credentials a client tells in full.
pub(crate) fn of(auth: AuthConfig) -> Result<Option<Credentials>, ApiError> {
    if !auth.identitytoken.is_empty() {
        return Ok(Some(Credentials::IdentityToken(auth.identitytoken)));
    }
    if !auth.registrytoken.is_empty() {
        return Ok(Some(Credentials::RegistryToken(auth.registrytoken)));
    }
    let (mut username, mut password) = (auth.username, auth.password);
    if username.is_empty() && !auth.auth.is_empty() {
        let pair = decoded(&auth.auth).and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(invalid)?;
        let (user, word) = pair.split_once(':').ok_or_else(invalid)?;
        (username, password) = (user.to_owned(), word.trim_end_matches('\0').to_owned());
    }
    Ok((!username.is_empty()).then_some(Credentials::Password { username, password }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_read_in_every_form_clients_send() {
        use base64::Engine;
        let encode = |text: &str| base64::engine::general_purpose::URL_SAFE.encode(text);
        let read = |text: &str| credentials(Some(&encode(text))).unwrap();
        let password = || Some(Credentials::Password { username: "u".into(), password: "p:q".into() });
        assert_eq!(credentials(None).unwrap(), None);
        assert_eq!(credentials(Some("e30=")).unwrap(), None);
        assert_eq!(read(r#"{"username":"u","password":"p:q","serveraddress":"x"}"#), password());
        assert_eq!(read(&format!(r#"{{"auth":"{}"}}"#, encode("u:p:q"))), password());
        assert_eq!(
            read(r#"{"identitytoken":"t","username":"u"}"#),
            Some(Credentials::IdentityToken("t".into()))
        );
        assert_eq!(credentials(Some("%%%")).unwrap_err().message, "invalid X-Registry-Auth header");
    }
}
