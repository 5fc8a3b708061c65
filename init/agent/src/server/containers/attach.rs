//! Attaching to a container, and the size of its terminal.

use hyper::StatusCode;

use super::lifecycle;
use crate::command::{AttachRequest, Attachment, Id, State};
use crate::server::errors::ApiError;
use crate::server::query::Query;
use crate::server::request::Request;
use crate::server::routes::Answer;
use crate::server::{respond, stream, websocket};

pub(crate) async fn attach(mut request: Request, name: &str) -> Answer {
    let (id, attachment) = begin(&request, name).await?;
    let keys = stream::detach_keys(request.query.get("detachKeys").unwrap_or_default())?;
    let owner = request.api.owner.clone();
    let settled = async move { lifecycle::settle(&owner, &id).await };
    Ok(stream::hijack(&mut request, attachment, keys, settled))
}

/// The same by websocket.
pub(crate) async fn websocket(mut request: Request, name: &str) -> Answer {
    let (id, attachment) = begin(&request, name).await?;
    let owner = request.api.owner.clone();
    let settled = async move { lifecycle::settle(&owner, &id).await };
    websocket::hijack(&mut request, attachment, settled)
}

/// Checks what is asked and attaches; the container's id with it.
async fn begin(request: &Request, name: &str) -> Result<(Id, Attachment), ApiError> {
    let view = request.api.owner.view(name).await?;
    stream::detach_keys(request.query.get("detachKeys").unwrap_or_default())?;
    if let State::Running { paused: true, .. } = view.state {
        return Err(ApiError::conflict(format!(
            "Container {name} is paused. Unpause the container before attach."
        )));
    }
    let query = &request.query;
    let wanted = AttachRequest {
        logs: query.flag("logs"),
        stream: query.flag("stream"),
        stdin: query.flag("stdin"),
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
    };
    Ok((view.id.clone(), request.api.owner.attach(&view.id, wanted).await?))
}

pub(crate) async fn resize(request: Request, name: &str) -> Answer {
    let (rows, columns) = size(&request.query)?;
    let view = request.api.owner.view(name).await?;
    if !lifecycle::is_running(&view) {
        return Err(lifecycle::not_running(&view.id));
    }
    request.api.owner.resize(&view.id, rows, columns).await?;
    Ok(respond::empty(StatusCode::OK))
}

/// Rows and columns of a resize.
pub(crate) fn size(query: &Query) -> Result<(u16, u16), ApiError> {
    let number = |key: &str, what: &str| -> Result<u16, ApiError> {
        let text = query.get(key).unwrap_or_default();
        // Larger ones than the kernel knows are cut, as by the reference engine.
        let number = text.parse::<u32>().map_err(|error| {
            use std::num::IntErrorKind;
            let why = match error.kind() {
                IntErrorKind::PosOverflow => "value out of range",
                _ => "invalid syntax",
            };
            ApiError::invalid(format!("invalid resize {what} {text:?}: {why}"))
        })?;
        Ok(u16::try_from(number).unwrap_or(u16::MAX))
    };
    Ok((number("h", "height")?, number("w", "width")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_numbers() {
        assert_eq!(size(&Query::parse("h=24&w=80")).unwrap(), (24, 80));
        assert_eq!(size(&Query::parse("h=70000&w=80")).unwrap(), (u16::MAX, 80));
        assert_eq!(
            size(&Query::parse("h=x&w=1")).unwrap_err().message,
            "invalid resize height \"x\": invalid syntax"
        );
    }
}
