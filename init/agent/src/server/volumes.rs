//! Volumes.

use berth_api::docker::volumes::{PruneAnswer, Volume, VolumeCreate, VolumeList};
use hyper::StatusCode;

use super::containers::filters::Filters;
use super::containers::mounts::is_volume_name;
use super::errors::ApiError;
use super::request::Request;
use super::respond;
use super::routes::Answer;

/// Label of volumes that nobody named.
pub(crate) const ANONYMOUS: &str = "com.docker.volume.anonymous";

pub(crate) async fn list(request: Request) -> Answer {
    let filters =
        Filters::parse(request.query.get("filters"), &["dangling", "driver", "label", "name", "label!"])?;
    let dangling = filters.boolean("dangling")?;
    let mut volumes = request.api.owner.volumes().await?;
    volumes.retain(|volume| {
        dangling.is_none_or(|wanted| wanted == is_unused(volume))
            && filters.matches("name", &[&volume.name])
            && filters.exact("driver", &volume.driver)
            && filters.labels_match(volume.labels.as_ref())
    });
    for volume in &mut volumes {
        volume.usage_data = None;
    }
    Ok(respond::ok(&VolumeList { volumes, warnings: None }))
}

fn is_unused(volume: &Volume) -> bool {
    volume.usage_data.as_ref().is_none_or(|usage| usage.ref_count <= 0)
}

pub(crate) async fn inspect(request: Request, name: &str) -> Answer {
    let volumes = request.api.owner.volumes().await?;
    let Some(mut volume) = volumes.into_iter().find(|volume| volume.name == name) else {
        return Err(ApiError::not_found(format!("get {name}: no such volume")));
    };
    volume.usage_data = None;
    Ok(respond::ok(&volume))
}

pub(crate) async fn create(mut request: Request) -> Answer {
    let mut body: VolumeCreate = request.json().await?;
    if !matches!(body.driver.as_str(), "" | "local" | "default") {
        return Err(ApiError::not_found(format!(
            "create {}: error looking up volume plugin {1}: plugin {1:?} not found",
            body.name, body.driver
        )));
    }
    if body.name.len() == 1 {
        return Err(ApiError::invalid(format!(
            "create {}: volume name is too short, names should be at least two alphanumeric characters",
            body.name
        )));
    }
    if !body.name.is_empty() && !is_volume_name(&body.name) {
        return Err(ApiError::invalid(format!(
            "create {0}: {0:?} includes invalid characters for a local volume name, only \
             \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path",
            body.name
        )));
    }
    "local".clone_into(&mut body.driver);
    let mut volume = request.api.owner.volume_create(body).await?;
    volume.usage_data = None;
    Ok(respond::json(StatusCode::CREATED, &volume))
}

pub(crate) async fn remove(request: Request, name: &str) -> Answer {
    let force = request.query.flag("force");
    match request.api.owner.volume_remove(name, force).await {
        Err(crate::command::Refusal::NotFound(_)) if force => {}
        other => other?,
    }
    Ok(respond::empty(StatusCode::NO_CONTENT))
}

pub(crate) async fn prune(request: Request) -> Answer {
    let filters = Filters::parse(request.query.get("filters"), &["all", "label", "label!"])?;
    // Since 1.42 only volumes that nobody named, unless told otherwise.
    let named_too = !request.since(42) || filters.boolean("all")?.unwrap_or(false);
    let mut deleted = Vec::new();
    let mut freed = 0_u64;
    for volume in request.api.owner.volumes().await? {
        let anonymous = volume.labels.as_ref().is_some_and(|labels| labels.contains_key(ANONYMOUS));
        if !is_unused(&volume) || !(anonymous || named_too) || !filters.labels_match(volume.labels.as_ref()) {
            continue;
        }
        let size = volume.usage_data.as_ref().map_or(0, |usage| u64::try_from(usage.size).unwrap_or(0));
        // One that came into use meanwhile stays.
        if request.api.owner.volume_remove(&volume.name, false).await.is_ok() {
            freed = freed.saturating_add(size);
            deleted.push(volume.name);
        }
    }
    Ok(respond::ok(&PruneAnswer {
        volumes_deleted: (!deleted.is_empty()).then_some(deleted),
        space_reclaimed: freed,
    }))
}
