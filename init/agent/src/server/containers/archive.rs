//! Files into and out of a container as archives: `docker cp`, `docker export`.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use berth_api::docker::containers::{MountPoint, PathStat};
use berth_api::docker::volumes::Volume;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue};
use tokio::io::AsyncWriteExt as _;
use tokio::process::ChildStdin;

use super::size::CONTAINERS;
use crate::binds::{self, HostPath};
use crate::command::{Event, State, View};
use crate::files::courier::Courier;
use crate::files::job::{Answer as Told, Bind, Job, Place, Task};
use crate::server::errors::ApiError;
use crate::server::request::{Body, Request};
use crate::server::respond::{self, Pieces};
use crate::server::routes::Answer;
use crate::server::time;
use crate::volumes::Content;

/// What a path is, base64 of JSON.
const PATH_STAT: HeaderName = HeaderName::from_static("x-docker-container-path-stat");
/// Tries when the container starts or ends under our feet.
const TRIES: usize = 3;
/// Files made for each container and mounted into it.
const MADE: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// `GET` and `HEAD /containers/{id}/archive`.
pub(crate) async fn read(request: Request, name: &str) -> Answer {
    let path = path(&request)?;
    let task = || if request.head { Task::Look(path.clone()) } else { Task::Pack(path.clone()) };
    let (courier, told) = send(&request, name, task).await?;
    let Told::Found(stat) = told else { return Err(refused(told, name, &path)) };
    if !request.head {
        announce(&request, name, "archive-path").await;
    }
    let mut answer = if request.head {
        respond::empty(StatusCode::OK)
    } else {
        respond::streamed("application/x-tar", Pieces::new(courier.archive(), |piece: Bytes| piece))
    };
    answer.headers_mut().insert(PATH_STAT, stat_header(&stat)?);
    Ok(answer)
}

/// `GET /containers/{id}/export`.
pub(crate) async fn export(request: Request, name: &str) -> Answer {
    let (courier, told) = send(&request, name, || Task::Export).await?;
    let Told::Done = told else { return Err(refused(told, name, "/")) };
    announce(&request, name, "export").await;
    Ok(respond::streamed("application/octet-stream", Pieces::new(courier.archive(), |piece: Bytes| piece)))
}

/// `PUT /containers/{id}/archive`.
pub(crate) async fn write(mut request: Request, name: &str) -> Answer {
    let path = path(&request)?;
    let view = request.api.owner.view(name).await?;
    let keep_kinds = request.query.flag("noOverwriteDirNonDir");
    let owner = request.query.flag("copyUIDGID").then(|| view.config.user.clone());
    let task =
        || Task::Unpack { path: path.clone(), owner: owner.clone(), keep_kinds, readonly: readonly(&view) };
    let mut courier = start(&request, &view, task()).await?;
    // A container that starts or ends while nothing of the archive was read yet is not told from one that does so
    // later: the client has to ask anew.
    let body = std::mem::replace(&mut request.body, Body::Whole(Bytes::new()));
    let input = courier.input();
    let told = {
        let feed = feed(body, input);
        tokio::pin!(feed);
        let answer = courier.answer();
        tokio::pin!(answer);
        tokio::select! {
            told = &mut answer => told,
            () = &mut feed => answer.await,
        }
    };
    match told.map_err(|error| ApiError::failed(error.to_string()))? {
        Told::Done => {
            announce(&request, name, "extract-to-dir").await;
            Ok(respond::empty(StatusCode::OK))
        }
        other => Err(refused(other, name, &path)),
    }
}

/// Tells what was done with a container's files.
async fn announce(request: &Request, name: &str, action: &str) {
    // One that is gone by now has nobody who waits for this.
    let Ok(view) = request.api.owner.view(name).await else { return };
    let mut attributes = view.config.labels.clone().unwrap_or_default();
    attributes.insert("image".to_owned(), view.image_name.clone());
    attributes.insert("name".to_owned(), view.name.clone());
    request.api.owner.announce(Event {
        kind: "container",
        action: action.to_owned(),
        id: view.id.clone(),
        attributes,
        at_ns: time::now_ns(),
    });
}

fn path(request: &Request) -> Result<String, ApiError> {
    let path = request.query.text("path");
    path.map(str::to_owned).ok_or_else(|| ApiError::invalid("bad parameter: pathcannot be empty"))
}

/// Sends the body to the process; ends early when the process wants no more.
async fn feed(body: Body, input: Option<ChildStdin>) {
    let Some(mut input) = input else { return };
    match body {
        // The process that closed its end says why in its answer.
        Body::Whole(bytes) => drop(input.write_all(&bytes).await),
        Body::Coming(mut body) => loop {
            match body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data()
                        && input.write_all(&bytes).await.is_err()
                    {
                        return;
                    }
                }
                // A client that went away has sent an archive cut short, and no one waits for the answer.
                Some(Err(_)) | None => return,
            }
        },
    }
}

/// Starts a job and waits for its answer, again when the container started or ended meanwhile.
async fn send(request: &Request, name: &str, task: impl Fn() -> Task) -> Result<(Courier, Told), ApiError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let view = request.api.owner.view(name).await?;
        let mut courier = start(request, &view, task()).await?;
        match courier.answer().await.map_err(|error| ApiError::failed(error.to_string()))? {
            Told::Moved if tries < TRIES => {}
            told => return Ok((courier, told)),
        }
    }
}

async fn start(request: &Request, view: &View, task: Task) -> Result<Courier, ApiError> {
    let job = Job { tree: place(request, view).await?, task };
    Courier::send(&job).await.map_err(|error| ApiError::failed(format!("cannot copy files: {error}")))
}

async fn place(request: &Request, view: &View) -> Result<Place, ApiError> {
    if let State::Running { pid, .. } = view.state {
        let host = &view.host_config;
        let own_users = !host.privileged && host.userns_mode != "host";
        return Ok(Place::Running { pid, id: view.id.clone(), own_users });
    }
    if view.state == State::Removing {
        return Err(ApiError::conflict(format!("container {} is marked for removal", view.id)));
    }
    let image = request.api.require_image(&view.image_id)?;
    let layers = request.api.images.layer_dirs(&image);
    let own = Path::new(CONTAINERS).join(&view.id);
    let file = |name: &str| Bind {
        source: own.join("etc").join(name),
        below: String::new(),
        target: format!("/etc/{name}"),
    };
    let mut mounts: Vec<Bind> = MADE.into_iter().map(file).collect();
    let volumes = request.api.owner.volumes().await?;
    for mount in &view.mounts {
        let place = match mount.kind.as_str() {
            "volume" => volume(&volumes, mount).map(|folder| folder.part(subpath(view, mount))),
            "bind" => Some(binds::place(&mount.source)),
            _ => None,
        };
        mounts.extend(place.map(|place| Bind {
            source: place.folder,
            below: place.below,
            target: mount.destination.clone(),
        }));
    }
    mounts.sort_by_key(|mount| mount.target.split('/').count());
    Ok(Place::Stopped { id: view.id.clone(), layers, writable: own.join("rw"), mounts })
}

/// Where a volume's content is; none for memory, which is there while the container runs.
fn volume(volumes: &[Volume], mount: &MountPoint) -> Option<HostPath> {
    let volume = volumes.iter().find(|volume| volume.name == mount.name)?;
    match Content::of(volume.options.as_ref()).ok()? {
        Content::Own => Some(HostPath { folder: PathBuf::from(&volume.mountpoint), below: String::new() }),
        Content::Bind(device) => Some(binds::place(&device)),
        Content::Tmpfs(_) => None,
    }
}

/// The part of a volume that is mounted.
fn subpath<'a>(view: &'a View, shown: &MountPoint) -> &'a str {
    let asked = view.host_config.mounts.iter().flatten();
    let mut asked = asked.filter(|mount| mount.target.trim_end_matches('/') == shown.destination);
    let options = asked.next().and_then(|mount| mount.volume_options.as_ref());
    options.map_or("", |options| options.subpath.as_str())
}

/// Places and whether they are read-only.
fn readonly(view: &View) -> Vec<(String, bool)> {
    let root = ("/".to_owned(), view.host_config.readonly_rootfs);
    let mounts = view.mounts.iter().map(|mount| (mount.destination.clone(), !mount.rw));
    std::iter::once(root).chain(mounts).collect()
}

fn refused(told: Told, name: &str, path: &str) -> ApiError {
    match told {
        Told::NoSuchPath => {
            ApiError::not_found(format!("Could not find the file {path} in container {name}"))
        }
        Told::Moved => ApiError::conflict(format!("container {name} started or ended meanwhile")),
        Told::Invalid(text) => ApiError::invalid(text),
        Told::Failed(text) => ApiError::failed(text),
        Told::Found(_) | Told::Done => ApiError::failed("the answer does not fit what was asked"),
    }
}

fn stat_header(stat: &PathStat) -> Result<HeaderValue, ApiError> {
    let json = serde_json::to_vec(stat).map_err(|error| ApiError::failed(error.to_string()))?;
    let text = base64::engine::general_purpose::STANDARD.encode(json);
    HeaderValue::from_str(&text).map_err(|error| ApiError::failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_base64_of_what_the_reference_engine_tells() {
        let stat = PathStat {
            name: "passwd".to_owned(),
            size: 197,
            mode: 420,
            mtime: "2020-09-13T12:26:40Z".to_owned(),
            link_target: String::new(),
        };
        let header = stat_header(&stat).unwrap();
        let golden = "eyJuYW1lIjoicGFzc3dkIiwic2l6ZSI6MTk3LCJtb2RlIjo0MjAsIm10aW1lIjoiMjAyMC0wOS0xM1QxMjoyNjo0MFoiLCJs";
        assert!(header.to_str().unwrap().starts_with(golden));
    }
}
