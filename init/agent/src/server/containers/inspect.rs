//! Looking at one container.

use super::{size, view};
use crate::server::images::blocking;
use crate::server::request::Request;
use crate::server::respond;
use crate::server::routes::Answer;

pub(crate) async fn inspect(request: Request, name: &str) -> Answer {
    let found = request.api.owner.view(name).await?;
    let mut answer = view::inspect(&found);
    if request.query.flag("size") {
        let id = found.id.clone();
        answer.size_rw = blocking(move || size::written_bytes(&id)).await?;
        answer.size_root_fs = Some(request.api.image_size(&found.image_id) + answer.size_rw.unwrap_or(0));
    }
    Ok(respond::ok(&answer))
}
