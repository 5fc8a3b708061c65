//! Looking at one container.

use super::view;
use crate::server::request::Request;
use crate::server::respond;
use crate::server::routes::Answer;

pub(crate) async fn inspect(request: Request, name: &str) -> Answer {
    let found = request.api.owner.view(name).await?;
    let mut answer = view::inspect(&found);
    if request.query.flag("size") {
        let size = request.api.image_size(&found.image_id);
        answer.size_rw = Some(0);
        answer.size_root_fs = Some(size);
    }
    Ok(respond::ok(&answer))
}
