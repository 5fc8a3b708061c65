//! Paths and versions: which handler answers.
//!
//! Matched by hand, because names of images contain slashes and stand in front of a fixed word.

use std::sync::Arc;

use berth_api::version::{API_VERSION, MIN_API_VERSION, Version};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::{Method, Response};

use super::errors::ApiError;
use super::query::{Query, percent_decode};
use super::request::{self, Request};
use super::respond::{self, Body};
use super::{Api, archives, author, containers, events, exec, host, images, networks};
use super::{pull, push, registry, system, volumes};

/// What handlers answer.
pub(crate) type Answer = Result<Response<Body>, ApiError>;

/// Answers a request.
pub(crate) async fn answer(api: Arc<Api>, mut raw: hyper::Request<Incoming>) -> Response<Body> {
    let head = raw.method() == Method::HEAD;
    let path = percent_decode(raw.uri().path(), false);
    let query = Query::parse(raw.uri().query().unwrap_or_default());
    let upgrade = raw.headers().contains_key(hyper::header::UPGRADE).then(|| hyper::upgrade::on(&mut raw));
    let (parts, body) = raw.into_parts();
    let body = request::Body::take(body).await;
    let whole = body.as_ref().is_ok_and(request::Body::is_whole);
    let outcome = match (split_version(&path), body) {
        (Err(error), _) | (_, Err(error)) => Err(error),
        (Ok((version, path)), Ok(body)) => {
            let method = if head { Method::GET } else { parts.method.clone() };
            let headers = parts.headers;
            let request = Request { api, method, head, version, query, headers, body, upgrade };
            let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
            dispatch(request, &segments).await
        }
    };
    let mut answer = outcome.unwrap_or_else(|error| {
        let mut answer = error.into_response();
        if !whole {
            // What is left of the body stands in the way of the next request.
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        answer
    });
    respond::stamp(&mut answer);
    answer
}

/// The version in front of a path, and the rest. No version stands for the newest.
fn split_version(path: &str) -> Result<(Version, &str), ApiError> {
    let parsed = path.strip_prefix("/v").and_then(|rest| {
        let end = rest.find('/').unwrap_or(rest.len());
        let (version, rest) = rest.split_at(end);
        Some((version.parse::<Version>().ok()?, rest))
    });
    let Some((version, rest)) = parsed else { return Ok((API_VERSION, path)) };
    if version > API_VERSION {
        return Err(ApiError::invalid(format!(
            "client version {version} is too new. Maximum supported API version is {API_VERSION}"
        )));
    }
    if version < MIN_API_VERSION {
        return Err(ApiError::invalid(format!(
            "client version {version} is too old. Minimum supported API version is {MIN_API_VERSION}, \
             please upgrade your client to a newer version"
        )));
    }
    Ok((version, rest))
}

async fn dispatch(request: Request, segments: &[&str]) -> Answer {
    match segments {
        ["containers", rest @ ..] => container_routes(request, rest).await,
        ["images", rest @ ..] => image_routes(request, rest).await,
        ["exec", id, action] => exec_routes(request, id, action).await,
        ["networks", rest @ ..] => network_routes(request, rest).await,
        ["volumes", rest @ ..] => volume_routes(request, rest).await,
        ["host", "v1", rest @ ..] => host_routes(request, rest).await,
        _ => system_routes(request, segments).await,
    }
}

async fn system_routes(request: Request, segments: &[&str]) -> Answer {
    match (request.method.as_str(), segments) {
        ("GET", ["_ping"]) => Ok(system::ping()),
        ("GET", ["version"]) => Ok(system::version()),
        ("GET", ["info"]) => system::info(request).await,
        ("GET", ["events"]) => events::stream(&request),
        ("GET", ["system", "df"]) => system::disk_usage(request).await,
        ("POST", ["auth"]) => registry::auth(request).await,
        ("GET", ["plugins"]) => Ok(respond::ok(&[(); 0])),
        ("POST", ["build", "prune"]) => Ok(system::build_prune()),
        ("POST", ["build"]) => Err(ApiError::unsupported(
            "building images is not offered: build with a docker-container builder (docker buildx create --use \
             --driver docker-container), or elsewhere, and load or pull the result",
        )),
        ("POST", ["commit"]) => author::commit(request).await,
        ("GET", ["distribution", name @ .., "json"]) => registry::describe(request, &name.join("/")).await,
        ("POST", ["session" | "grpc"]) => Err(ApiError::not_found(
            "BuildKit sessions are not offered; set DOCKER_BUILDKIT=0 or use a docker-container builder",
        )),
        (_, ["swarm", "init" | "join"]) => Err(ApiError::unsupported(
            "swarm mode is not offered; this machine runs containers of its own only",
        )),
        (_, ["swarm" | "services" | "nodes" | "tasks" | "secrets" | "configs", ..]) => {
            Err(system::not_a_swarm_manager())
        }
        _ => Err(ApiError::no_such_page()),
    }
}

async fn container_routes(request: Request, segments: &[&str]) -> Answer {
    match (request.method.as_str(), segments) {
        ("GET", ["json"]) => containers::list::list(request).await,
        ("POST", ["create"]) => containers::create::create(request).await,
        ("POST", ["prune"]) => containers::lifecycle::prune(request).await,
        ("DELETE", [id]) => containers::lifecycle::remove(request, id).await,
        ("PUT", [id, "archive"]) => containers::archive::write(request, id).await,
        ("GET", [id, "attach", "ws"]) => containers::attach::websocket(request, id).await,
        ("GET", [id, action]) => match *action {
            "json" => containers::inspect::inspect(request, id).await,
            "logs" => containers::logs::logs(request, id).await,
            "top" => containers::top::top(request, id).await,
            "stats" => containers::stats::stats(request, id).await,
            "changes" => containers::changes::changes(request, id).await,
            "archive" => containers::archive::read(request, id).await,
            "export" => containers::archive::export(request, id).await,
            _ => Err(ApiError::no_such_page()),
        },
        ("POST", [id, action]) => match *action {
            "start" => containers::lifecycle::start(request, id).await,
            "stop" => containers::lifecycle::stop(request, id).await,
            "restart" => containers::lifecycle::restart(request, id).await,
            "kill" => containers::lifecycle::kill(request, id).await,
            "pause" => containers::lifecycle::pause(request, id, true).await,
            "unpause" => containers::lifecycle::pause(request, id, false).await,
            "rename" => containers::lifecycle::rename(request, id).await,
            "update" => containers::lifecycle::update(request, id).await,
            "wait" => containers::wait::wait(request, id).await,
            "resize" => containers::attach::resize(request, id).await,
            "attach" => containers::attach::attach(request, id).await,
            "exec" => exec::create(request, id).await,
            _ => Err(ApiError::no_such_page()),
        },
        _ => Err(ApiError::no_such_page()),
    }
}

/// Names of images may contain slashes: the last word of the path is the action.
async fn image_routes(request: Request, segments: &[&str]) -> Answer {
    match (request.method.as_str(), segments) {
        ("GET", ["json"]) => images::list(&request),
        ("POST", ["create"]) => pull::create(request).await,
        ("POST", ["prune"]) => images::prune(request).await,
        ("POST", ["load"]) => archives::load(request),
        ("GET", ["get"]) => archives::save_all(request).await,
        ("GET", [name @ .., "get"]) => archives::save_one(request, &name.join("/")).await,
        ("GET", ["search"]) => registry::search(request).await,
        ("GET", [name @ .., "json"]) => images::inspect(&request, &name.join("/")),
        ("GET", [name @ .., "history"]) => images::history(&request, &name.join("/")),
        ("POST", [name @ .., "tag"]) => images::tag(&request, &name.join("/")),
        ("POST", [name @ .., "push"]) => push::push(request, &name.join("/")),
        ("DELETE", name @ [_, ..]) => {
            let name = name.join("/");
            images::remove(request, &name).await
        }
        _ => Err(ApiError::no_such_page()),
    }
}

async fn exec_routes(request: Request, id: &str, action: &str) -> Answer {
    match (request.method.as_str(), action) {
        ("POST", "start") => exec::start(request, id).await,
        ("POST", "resize") => exec::resize(request, id).await,
        ("GET", "json") => exec::inspect(request, id).await,
        _ => Err(ApiError::no_such_page()),
    }
}

async fn network_routes(request: Request, segments: &[&str]) -> Answer {
    match (request.method.as_str(), segments) {
        ("GET", []) => networks::list(request).await,
        ("POST", ["create"]) => networks::create(request).await,
        ("POST", ["prune"]) => networks::prune(request).await,
        ("GET", [name]) => networks::inspect(request, name).await,
        ("DELETE", [name]) => networks::remove(request, name).await,
        ("POST", [name, "connect"]) => networks::connect(request, name).await,
        ("POST", [name, "disconnect"]) => networks::disconnect(request, name).await,
        _ => Err(ApiError::no_such_page()),
    }
}

async fn volume_routes(request: Request, segments: &[&str]) -> Answer {
    match (request.method.as_str(), segments) {
        ("GET", []) => volumes::list(request).await,
        ("POST", ["create"]) => volumes::create(request).await,
        ("POST", ["prune"]) => volumes::prune(request).await,
        ("GET", [name]) => volumes::inspect(request, name).await,
        ("DELETE", [name]) => volumes::remove(request, name).await,
        _ => Err(ApiError::no_such_page()),
    }
}

async fn host_routes(request: Request, segments: &[&str]) -> Answer {
    match (request.method.as_str(), segments) {
        ("GET", ["status"]) => host::status(request).await,
        ("GET", ["config"]) => Ok(host::config(&request)),
        ("POST", ["reboot"]) => Ok(host::power(&request, host::Power::Reboot)),
        ("POST", ["poweroff"]) => Ok(host::power(&request, host::Power::Off)),
        ("POST", ["agent", "crash"]) => Ok(host::crash()),
        _ => Err(ApiError::no_such_page()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_split_off_and_gated() {
        assert_eq!(split_version("/v1.40/x").unwrap(), (Version::one(40), "/x"));
        assert_eq!(split_version("/x").unwrap(), (API_VERSION, "/x"));
        assert_eq!(split_version("/volumes/v1.2").unwrap(), (API_VERSION, "/volumes/v1.2"));
        assert_eq!(
            split_version("/v1.99/version").unwrap_err().message,
            "client version 1.99 is too new. Maximum supported API version is 1.51"
        );
        assert_eq!(
            split_version("/v1.10/version").unwrap_err().message,
            "client version 1.10 is too old. Minimum supported API version is 1.24, please upgrade your client to a \
             newer version"
        );
    }
}
