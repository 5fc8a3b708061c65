//! Start, stop, and what else changes a container as a whole.

use std::time::Duration;

use berth_api::docker::containers::{PruneAnswer, UpdateAnswer, UpdateBody};
use hyper::StatusCode;

use super::filters::Filters;
use super::{size, validate};
use crate::command::{Changed, Handle, State, View, WaitFor};
use crate::server::errors::ApiError;
use crate::server::images::blocking;
use crate::server::request::Request;
use crate::server::respond;
use crate::server::routes::Answer;
use crate::server::time;

/// How long the end of output waits for the end of the container.
const SETTLE: Duration = Duration::from_secs(2);

/// How long a kill waits for the end: processes may sit in a disk wait.
const KILLED: Duration = Duration::from_secs(10);
const SIGKILL: i32 = 9;

/// The text of 409 for what needs a running container.
pub(crate) fn not_running(id: &str) -> ApiError {
    ApiError::conflict(format!("container {id} is not running"))
}

/// Whether its processes exist.
pub(crate) fn is_running(view: &View) -> bool {
    matches!(view.state, State::Running { .. })
}

fn status(changed: Changed) -> StatusCode {
    match changed {
        Changed::Yes => StatusCode::NO_CONTENT,
        Changed::No => StatusCode::NOT_MODIFIED,
    }
}

/// Waits a moment for the owner to see the end of a container whose output has ended: clients that read to the end
/// remove the container next. A program may also close its output and go on.
pub(crate) async fn settle(owner: &Handle, id: &str) {
    let ended = async {
        if let Ok(end) = owner.wait(id, WaitFor::NotRunning).await {
            let _ = end.await;
        }
    };
    let _ = tokio::time::timeout(SETTLE, ended).await;
}

pub(crate) async fn start(mut request: Request, name: &str) -> Answer {
    // Old clients send a HostConfig here; it was dropped from the API before our oldest version.
    request.bytes(crate::server::request::MAX_JSON_BYTES).await?;
    let view = request.api.owner.view(name).await?;
    Ok(respond::empty(status(request.api.owner.start(&view.id).await?)))
}

pub(crate) async fn stop(request: Request, name: &str) -> Answer {
    let timeout_s = request.query.integer("t")?;
    let signal = request.query.text("signal").map(str::to_owned);
    let view = request.api.owner.view(name).await?;
    Ok(respond::empty(status(request.api.owner.stop(&view.id, timeout_s, signal).await?)))
}

pub(crate) async fn restart(request: Request, name: &str) -> Answer {
    let timeout_s = request.query.integer("t")?;
    let signal = request.query.text("signal").map(str::to_owned);
    let view = request.api.owner.view(name).await?;
    request.api.owner.restart(&view.id, timeout_s, signal).await?;
    Ok(respond::empty(StatusCode::NO_CONTENT))
}

pub(crate) async fn kill(request: Request, name: &str) -> Answer {
    let signal = request.query.text("signal").unwrap_or("SIGKILL").to_owned();
    let prefix = |error: ApiError| {
        if error.message.starts_with("cannot kill container") {
            return error;
        }
        ApiError::new(error.status, format!("cannot kill container: {name}: {}", error.message))
    };
    let view = request.api.owner.view(name).await?;
    if !validate::is_signal(&signal) {
        return Err(prefix(ApiError::invalid(format!("invalid signal: {signal}"))));
    }
    if !is_running(&view) {
        return Err(prefix(not_running(&view.id)));
    }
    let owner = &request.api.owner;
    let deadly = berth_runtime::signal::parse(&signal) == Some(SIGKILL);
    let end = if deadly { Some(owner.wait(&view.id, WaitFor::NotRunning).await?) } else { None };
    owner.kill(&view.id, signal).await.map_err(|refusal| prefix(refusal.into()))?;
    if let Some(end) = end {
        // What cannot be outlived is answered when it is over: clients look at the container next.
        let _ = tokio::time::timeout(KILLED, end).await;
    }
    Ok(respond::empty(StatusCode::NO_CONTENT))
}

pub(crate) async fn pause(request: Request, name: &str, freeze: bool) -> Answer {
    let view = request.api.owner.view(name).await?;
    match (freeze, &view.state) {
        (true, State::Running { paused: true, .. }) => {
            return Err(ApiError::conflict(format!("container {} is already paused", view.id)));
        }
        (true, State::Restarting { .. }) => {
            return Err(ApiError::conflict(format!(
                "container {} is restarting, wait until the container is running",
                view.id
            )));
        }
        (true, State::Running { .. }) | (false, State::Running { paused: true, .. }) => {}
        (true, _) => return Err(not_running(&view.id)),
        (false, _) => return Err(ApiError::failed(format!("Container {} is not paused", view.id))),
    }
    request.api.owner.pause(&view.id, freeze).await?;
    Ok(respond::empty(StatusCode::NO_CONTENT))
}

pub(crate) async fn rename(request: Request, name: &str) -> Answer {
    let wanted = request.query.text("name").unwrap_or_default();
    let wanted = wanted.strip_prefix('/').unwrap_or(wanted);
    if wanted.is_empty() {
        return Err(ApiError::invalid("Neither old nor new names may be empty"));
    }
    let view = request.api.owner.view(name).await?;
    let prefix = |error: ApiError| {
        ApiError::new(error.status, format!("Error when allocating new name: {}", error.message))
    };
    validate::name(wanted).map_err(prefix)?;
    if view.name == wanted {
        return Err(ApiError::invalid("Renaming a container with the same name as its current name"));
    }
    request.api.owner.rename(&view.id, wanted.to_owned()).await.map_err(|refusal| match refusal.into() {
        error @ ApiError { status: StatusCode::CONFLICT, .. } if !error.message.starts_with("Error when") => {
            prefix(error)
        }
        error => error,
    })?;
    Ok(respond::empty(StatusCode::NO_CONTENT))
}

pub(crate) async fn update(mut request: Request, name: &str) -> Answer {
    let body: UpdateBody = request.json().await?;
    validate::resources(&body, true)?;
    validate::restart_policy(&body.restart_policy)?;
    let view = request.api.owner.view(name).await?;
    let warnings = request.api.owner.update(&view.id, body).await?;
    Ok(respond::ok(&UpdateAnswer { warnings: (!warnings.is_empty()).then_some(warnings) }))
}

pub(crate) async fn remove(request: Request, name: &str) -> Answer {
    let (force, volumes) = (request.query.flag("force"), request.query.flag("v"));
    if request.query.flag("link") {
        return Err(ApiError::unsupported("links between containers are not offered"));
    }
    let view = request.api.owner.view(name).await?;
    if !force {
        let state = match &view.state {
            State::Running { paused: true, .. } => Some("paused"),
            State::Running { .. } => Some("running"),
            State::Restarting { .. } => Some("restarting"),
            State::Created { .. } | State::Exited(_) | State::Removing => None,
        };
        if let Some(state) = state {
            let advice = match state {
                "paused" => "unpause and then stop the container before removing or force remove",
                _ => "stop the container before removing or force remove",
            };
            return Err(ApiError::conflict(format!(
                "cannot remove container {name:?}: container is {state}: {advice}"
            )));
        }
    }
    if view.state == State::Removing {
        return Err(ApiError::conflict(format!("removal of container {name} is already in progress")));
    }
    request.api.owner.remove(&view.id, force, volumes).await?;
    Ok(respond::empty(StatusCode::NO_CONTENT))
}

pub(crate) async fn prune(request: Request) -> Answer {
    let filters = Filters::parse(request.query.get("filters"), &["until", "label", "label!"])?;
    let until_ns = filters.until_ns(time::now_ns())?;
    let mut deleted = Vec::new();
    let mut freed = 0_u64;
    for view in request.api.owner.list().await? {
        let ended = matches!(view.state, State::Created { .. } | State::Exited(_));
        let labels = view.config.labels.as_ref();
        if !ended || until_ns.is_some_and(|until| view.created_ns > until) || !filters.labels_match(labels) {
            continue;
        }
        let id = view.id.clone();
        let bytes = blocking(move || size::written_bytes(&id)).await?.unwrap_or(0);
        // One that was started or removed meanwhile is none of ours any more.
        if request.api.owner.remove(&view.id, false, false).await.is_ok() {
            deleted.push(view.id.clone());
            freed = freed.saturating_add(u64::try_from(bytes).unwrap_or(0));
        }
    }
    let containers_deleted = (!deleted.is_empty()).then_some(deleted);
    Ok(respond::ok(&PruneAnswer { containers_deleted, space_reclaimed: freed }))
}
