//! Images as archives: `docker save` and `docker load`.

use berth_api::docker::images::{Progress as Line, ProgressDetail};
use berth_image::archive::{self, Loaded, Selection, Step};
use bytes::Bytes;
use tokio::sync::mpsc;

use super::credentials::platform;
use super::errors::{self, ApiError};
use super::images::blocking;
use super::progress::{self, LINES_IN_FLIGHT, failure};
use super::request::Request;
use super::respond::{self, Pieces, json_line};
use super::routes::Answer;
use super::{Api, bulk};

/// Images of one archive.
const MAX_NAMES: usize = 1024;

/// `POST /images/load`: the archive comes as the body, in any packing.
pub(crate) fn load(request: Request) -> Answer {
    let platform = platform(&request)?;
    let quiet = request.query.flag_or("quiet", true);
    let (lines, receiver) = mpsc::channel::<Bytes>(LINES_IN_FLIGHT);
    let (api, body) = (request.api, bulk::reader(request.body));
    tokio::task::spawn_blocking(move || {
        let mut tell = |step: Step<'_>| match step {
            Step::Layer { diff_id, current, total } if !quiet => {
                // A slow client misses steps, never the end.
                let _ = lines.try_send(json_line(&layer_line(diff_id.short(), current, total)));
            }
            Step::Layer { .. } => {}
            Step::Image(loaded) => {
                api.announce_image("load", &loaded.image, &loaded.image.id.to_string());
                // A client that went away needs no news.
                let _ = lines.blocking_send(image_lines(loaded));
            }
        };
        if let Err(error) = archive::load_telling(&api.images, body, &platform, &mut tell) {
            let _ = lines.blocking_send(failure(&errors::load(&error).message));
        }
    });
    Ok(respond::streamed(respond::JSON, Pieces::new(receiver, |line: Bytes| line)))
}

fn layer_line(id: &str, current: u64, total: u64) -> Line {
    Line {
        status: "Loading layer".to_owned(),
        progress_detail: Some(ProgressDetail { current, total }),
        progress: progress::bar(current, total),
        id: id.to_owned(),
        ..Line::default()
    }
}

/// What is told of an image that is in the store now.
fn image_lines(loaded: &Loaded) -> Bytes {
    let said = |stream: String| json_line(&Line { stream, ..Line::default() });
    let mut lines = Vec::new();
    for (name, before) in &loaded.taken {
        lines.push(said(format!(
            "The image {} already exists, renaming the old one with ID {before} to empty string\n",
            name.familiar()
        )));
    }
    lines.extend(loaded.names.iter().map(|name| said(format!("Loaded image: {}\n", name.familiar()))));
    if loaded.names.is_empty() {
        lines.push(said(format!("Loaded image ID: {}\n", loaded.image.id)));
    }
    lines.concat().into()
}

/// `GET /images/get?names=…`
pub(crate) async fn save_all(request: Request) -> Answer {
    // Clients repeat the key, and old ones join names with commas.
    let names: Vec<String> =
        request.query.all("names").flat_map(|names| names.split(',')).map(str::to_owned).collect();
    save(&request.api, names).await
}

/// `GET /images/{name}/get`
pub(crate) async fn save_one(request: Request, name: &str) -> Answer {
    save(&request.api, vec![name.to_owned()]).await
}

async fn save(api: &Api, names: Vec<String>) -> Answer {
    if names.is_empty() || names.len() > MAX_NAMES {
        return Err(ApiError::invalid(format!("between 1 and {MAX_NAMES} names of images are needed")));
    }
    let store = api.images.clone();
    let selection = blocking(move || Selection::choose(&store, &names)).await?;
    let selection = selection.map_err(|error| errors::save(&error))?;
    for image in selection.images() {
        api.announce_image("save", image, &image.id.to_string());
    }
    let (mut writer, body) = bulk::writer();
    tokio::task::spawn_blocking(move || {
        // An error here is a client that went away or a damaged layer: the unfinished writer breaks the body off.
        if selection.write(&mut writer).is_ok() {
            let _ = writer.finish();
        }
    });
    Ok(respond::streamed_whole("application/x-tar", body))
}
