//! Making a container.

use berth_api::docker::containers::{CreateAnswer, CreateBody};
use berth_image::{Image, Platform};
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
    let platform = request.query.text("platform").map(str::to_owned);
    if let Some(platform) = &platform {
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
    let found = request.api.require_image(&image)?;
    if let Some(wanted) = platform.as_deref().and_then(|text| text.parse::<Platform>().ok()) {
        check_platform(&image, &found, &wanted)?;
    }
    if let Some(name) = &name {
        validate::name(name)?;
    }
    defaults::fill(&mut body);
    if body.host_config.network_mode == "host" && body.config.hostname.is_empty() {
        body.config.hostname = request.api.machine.facts().name;
    }
    let created = request.api.owner.create(Create { name, image, docker: body, unit: None }).await?;
    Ok(respond::json(StatusCode::CREATED, &CreateAnswer { id: created.id, warnings: created.warnings }))
}

/// An image of another platform is as good as none: clients pull the right one then.
fn check_platform(name: &str, image: &Image, wanted: &Platform) -> Result<(), ApiError> {
    let (os, architecture) = (&image.config.os, &image.config.architecture);
    if *os == wanted.os && *architecture == wanted.architecture {
        return Ok(());
    }
    Err(ApiError::not_found(format!(
        "image with reference {name} was found but its platform ({os}/{architecture}) does not match the specified \
         platform ({wanted})"
    )))
}

/// Whether the body says anything about the container itself.
fn has_config(value: &Value) -> bool {
    let beside =
        |key: &str| key.eq_ignore_ascii_case("HostConfig") || key.eq_ignore_ascii_case("NetworkingConfig");
    value
        .as_object()
        .is_some_and(|entries| entries.iter().any(|(key, value)| !beside(key) && !value.is_null()))
}
