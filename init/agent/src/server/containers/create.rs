//! Making a container.

use berth_api::docker::containers::{CreateAnswer, CreateBody};
use hyper::StatusCode;
use serde_json::Value;

use super::{defaults, validate};
use crate::command::Create;
use crate::server::errors::ApiError;
use crate::server::request::Request;
use crate::server::respond;
use crate::server::routes::Answer;

pub(crate) async fn create(mut request: Request) -> Answer {
    let name = request.query.text("name").map(|name| name.strip_prefix('/').unwrap_or(name).to_owned());
    if let Some(platform) = request.query.text("platform") {
        validate::platform(platform)?;
    }
    let value = request.json_value().await?;
    if !has_config(&value) {
        return Err(ApiError::invalid("config cannot be empty in order to create a container"));
    }
    let mut body =
        CreateBody::from_value(value).map_err(|error| ApiError::invalid(format!("invalid JSON: {error}")))?;
    validate::create(&body)?;
    validate::bind_sources(&body.host_config).await?;
    let image = body.config.image.clone();
    if image.is_empty() {
        return Err(ApiError::invalid("no image specified"));
    }
    request.api.require_image(&image)?;
    if let Some(name) = &name {
        validate::name(name)?;
    }
    defaults::fill(&mut body);
    let created = request.api.owner.create(Create { name, image, docker: body, unit: None }).await?;
    Ok(respond::json(StatusCode::CREATED, &CreateAnswer { id: created.id, warnings: created.warnings }))
}

/// Whether the body says anything about the container itself.
fn has_config(value: &Value) -> bool {
    let beside =
        |key: &str| key.eq_ignore_ascii_case("HostConfig") || key.eq_ignore_ascii_case("NetworkingConfig");
    value
        .as_object()
        .is_some_and(|entries| entries.iter().any(|(key, value)| !beside(key) && !value.is_null()))
}
