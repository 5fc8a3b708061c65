//! Questions that go to a registry and change nothing here: log in, search, what a name means there.

use berth_api::docker::images::{
    AuthAnswer, AuthConfig, Descriptor, DistributionAnswer, DistributionPlatform, SearchHit,
};
use berth_image::Reference;

use super::containers::filters::Filters;
use super::credentials::{credentials, of};
use super::errors::{self, ApiError};
use super::request::Request;
use super::respond;
use super::routes::Answer;

/// The registry meant when none is named.
const HUB: &str = "docker.io";
/// Hits told when no limit is given, and at most; the reference engine's.
const HITS: i64 = 25;
const MAX_HITS: i64 = 100;
/// Longest word searched for, bytes.
const MAX_TERM_BYTES: usize = 512;

/// `POST /auth`: whether the registry takes the credentials.
pub(crate) async fn auth(mut request: Request) -> Answer {
    let auth: AuthConfig = request.json().await?;
    let registry = registry_of(&auth.serveraddress);
    let wanted = of(auth)?;
    let checked = request.api.puller.log_in(&registry, wanted).await;
    checked.map_err(|error| errors::log_in(&registry, &error))?;
    Ok(respond::ok(&AuthAnswer { identity_token: String::new(), status: "Login Succeeded".to_owned() }))
}

/// The registry an address means, as references write it.
fn registry_of(address: &str) -> String {
    let bare = address.split_once("://").map_or(address, |(_, rest)| rest);
    match bare.split('/').next().unwrap_or_default() {
        "" | "index.docker.io" | "registry-1.docker.io" => HUB.to_owned(),
        host => host.to_owned(),
    }
}

/// `GET /images/search`
pub(crate) async fn search(request: Request) -> Answer {
    let filters = Filters::parse(request.query.get("filters"), &["is-official", "is-automated", "stars"])?;
    let official = filters.boolean("is-official")?;
    let automated = filters.boolean("is-automated")?;
    let stars = filters.get("stars").iter().map(|text| text.parse::<i64>().map_err(|_| bad_stars(text)));
    let stars = stars.collect::<Result<Vec<_>, _>>()?.into_iter().max().unwrap_or(0);
    let limit = request.query.integer("limit")?.filter(|limit| *limit != 0).unwrap_or(HITS);
    if !(1..=MAX_HITS).contains(&limit) {
        return Err(ApiError::invalid(format!("limit {limit} is outside the range of [1, {MAX_HITS}]")));
    }
    let term = request.query.get("term").unwrap_or_default();
    if term.is_empty() || term.len() > MAX_TERM_BYTES || term.contains("://") {
        return Err(ApiError::invalid(format!(
            "invalid repository name: repository name ({term}) should not have a scheme and must be a word"
        )));
    }
    let (registry, word) = split_term(term);
    let auth = credentials(request.header("x-registry-auth")).unwrap_or_default();
    let limit = usize::try_from(limit).unwrap_or_default();
    let hits = request.api.puller.search(&registry, word, limit, auth).await;
    let hits = hits.map_err(|error| errors::registry(&error))?;
    let here = |name: &str| if registry == HUB { name.to_owned() } else { format!("{registry}/{name}") };
    let mut answer: Vec<SearchHit> = hits
        .into_iter()
        .filter(|hit| official.is_none_or(|wanted| wanted == hit.official))
        .filter(|hit| automated.is_none_or(|wanted| wanted == hit.automated) && hit.stars >= stars)
        .map(|hit| SearchHit {
            name: here(&hit.name),
            description: hit.description,
            star_count: hit.stars,
            is_official: hit.official,
            is_automated: hit.automated,
        })
        .collect();
    answer.sort_by_key(|hit| std::cmp::Reverse(hit.star_count));
    Ok(respond::ok(&answer))
}

fn bad_stars(text: &str) -> ApiError {
    ApiError::invalid(format!("invalid filter 'stars=[{text}]'"))
}

/// The registry in front of a term, where there is one, and the word to look for.
fn split_term(term: &str) -> (String, &str) {
    match term.split_once('/') {
        Some((host, word)) if host.contains(['.', ':']) || host == "localhost" => (registry_of(host), word),
        _ => (HUB.to_owned(), term),
    }
}

/// `GET /distribution/{name}/json`
pub(crate) async fn describe(request: Request, name: &str) -> Answer {
    let reference: Reference = name.parse().map_err(errors::bad_reference)?;
    let auth = credentials(request.header("x-registry-auth")).unwrap_or_default();
    let found = request.api.puller.describe(&reference, auth).await;
    let found = found.map_err(|error| errors::pull(&error))?;
    let platforms = found.platforms.into_iter().map(|platform| DistributionPlatform {
        architecture: platform.architecture,
        os: platform.os,
        variant: platform.variant.unwrap_or_default(),
    });
    Ok(respond::ok(&DistributionAnswer {
        descriptor: Descriptor {
            media_type: found.media_type,
            digest: found.digest.to_string(),
            size: found.size,
        },
        platforms: platforms.collect(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_log_ins_are_registries() {
        for (address, registry) in [
            ("", "docker.io"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("registry.example:5000", "registry.example:5000"),
            ("http://registry.example/v2/", "registry.example"),
        ] {
            assert_eq!(registry_of(address), registry, "{address}");
        }
    }

    #[test]
    fn a_host_in_front_of_a_term_is_a_registry() {
        assert_eq!(split_term("app"), ("docker.io".to_owned(), "app"));
        assert_eq!(split_term("team/app"), ("docker.io".to_owned(), "team/app"));
        assert_eq!(split_term("127.0.0.1:5000/team/app"), ("127.0.0.1:5000".to_owned(), "team/app"));
    }
}
