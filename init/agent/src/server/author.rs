//! Images made here: `docker commit` and `docker import`.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;

use berth_api::docker::containers::{ContainerConfig, HealthConfig};
use berth_api::docker::images::{IdAnswer, Progress as Line};
use berth_image::author::NewLayer;
use berth_image::config::Empty;
use berth_image::{Draft, Healthcheck, Image, Reference, RunConfig, pack};
use hyper::StatusCode;

use super::containers::changes::{self, MAX_CHANGES};
use super::containers::size::CONTAINERS;
use super::credentials::platform;
use super::errors::{self, ApiError};
use super::images::blocking;
use super::request::Request;
use super::respond::{self, json_line};
use super::routes::Answer;
use super::{Api, bulk, time};
use crate::command::{Event, State, View};

/// `POST /commit`: an image of a container's image and what the container wrote.
pub(crate) async fn commit(mut request: Request) -> Answer {
    let body: Option<ContainerConfig> = request.json_or_default().await?;
    let view = request.api.owner.view(request.query.text("container").unwrap_or_default()).await?;
    let name = target(&request, "repo")?;
    let mut run = run_config(body.as_ref().unwrap_or(&view.config));
    run.change(request.query.all("changes")).map_err(|error| ApiError::invalid(error.to_string()))?;
    let draft = Draft {
        run: merged(run, run_config(&view.config)),
        platform: platform(&request)?,
        author: request.query.get("author").unwrap_or_default().to_owned(),
        comment: request.query.get("comment").unwrap_or_default().to_owned(),
        created_by: view.config.cmd.clone().unwrap_or_default().join(" "),
    };
    let pause = request.query.text("pause").is_none() || request.query.flag("pause");
    let api = request.api;
    // In a task of its own: a client that goes away must not leave the container frozen.
    let work = tokio::spawn(commit_paused(api, view, name, draft, pause));
    let id = work.await.map_err(|error| ApiError::failed(error.to_string()))??;
    Ok(respond::json(StatusCode::CREATED, &IdAnswer { id }))
}

async fn commit_paused(
    api: Arc<Api>,
    view: Arc<View>,
    name: Option<Reference>,
    draft: Draft,
    pause: bool,
) -> Result<String, ApiError> {
    let runs = matches!(view.state, State::Running { paused: false, .. });
    if pause && runs {
        api.owner.pause(&view.id, true).await?;
    }
    let image = written_image(&api, &view, &draft).await;
    if pause && runs {
        // One that ended meanwhile cannot be thawed and need not be.
        let _ = api.owner.pause(&view.id, false).await;
    }
    let image = image?;
    named(&api, &image, name.as_ref()).await?;
    let mut attributes = view.config.labels.clone().unwrap_or_default();
    attributes.extend([
        ("image".to_owned(), view.image_name.clone()),
        ("name".to_owned(), view.name.clone()),
        ("comment".to_owned(), draft.comment),
        ("imageID".to_owned(), image.id.to_string()),
        ("imageRef".to_owned(), name.map(|name| name.familiar()).unwrap_or_default()),
    ]);
    api.owner.announce(Event {
        kind: "container",
        action: "commit".to_owned(),
        id: view.id.clone(),
        attributes,
        at_ns: time::now_ns(),
    });
    Ok(image.id.to_string())
}

async fn written_image(api: &Arc<Api>, view: &View, draft: &Draft) -> Result<Image, ApiError> {
    let parent = api.require_image(&view.image_id)?;
    let (api, draft, id) = (api.clone(), draft.clone(), view.id.clone());
    blocking(move || {
        let layer = written_layer(&api, &id, &parent)?;
        let made = api.images.make_image(Some(&parent), layer.as_ref(), &draft);
        made.map_err(|error| errors::author(&error))
    })
    .await?
}

/// What a container wrote, as a layer above its image's; none when it wrote nothing. Blocks.
///
/// The files of the writable layer belong to the container's own users already: they are shifted only where the layer
/// is mounted.
fn written_layer(api: &Api, id: &str, parent: &Image) -> Result<Option<NewLayer>, ApiError> {
    let failed = |error: &dyn std::error::Error| {
        ApiError::failed(format!("cannot read the container's files: {}", errors::chain(error)))
    };
    let upper: PathBuf = [CONTAINERS, id, "rw", "fs"].iter().collect();
    let found = changes::compare(&upper, &api.images.layer_dirs(parent)).map_err(|error| failed(&error))?;
    if found.is_empty() {
        return Ok(None);
    }
    if found.len() >= MAX_CHANGES {
        return Err(ApiError::failed(format!("the container changed more than {MAX_CHANGES} files")));
    }
    let changed: HashSet<String> = found.into_iter().map(|change| change.path).collect();
    let keep = |path: &[u8]| changed.contains(&format!("/{}", String::from_utf8_lossy(path)));
    let root = File::open(&upper).map_err(|error| failed(&error))?;
    let (reader, writer) = std::io::pipe().map_err(|error| failed(&error))?;
    let (packed, layer) = std::thread::scope(|scope| {
        let unpacking = scope.spawn(|| api.images.make_layer(Some(parent), reader));
        let packed = pack::pack(root.as_fd(), std::io::BufWriter::new(writer), &keep);
        (packed, unpacking.join())
    });
    let layer = layer.map_err(|_| ApiError::failed("the layer could not be made"))?;
    match (packed, layer) {
        // The other end broke off, and knows why.
        (Err(pack::PackError::Write(_)), Err(error)) => Err(errors::author(&error)),
        (Err(error), _) => Err(failed(&error)),
        (Ok(()), layer) => layer.map(Some).map_err(|error| errors::author(&error)),
    }
}

/// `POST /images/create?fromSrc=-`: an image of a file system that comes as an archive.
pub(crate) async fn import(request: Request) -> Answer {
    let source = request.query.text("fromSrc").unwrap_or_default();
    if source != "-" {
        return Err(ApiError::unsupported(
            "fetching an archive from an address is not offered: download it and import it from a file or from -",
        ));
    }
    let name = target(&request, "repo")?;
    let mut run = RunConfig::default();
    run.change(request.query.all("changes")).map_err(|error| ApiError::invalid(error.to_string()))?;
    let draft = Draft {
        run,
        platform: platform(&request)?,
        author: String::new(),
        comment: request.query.text("message").unwrap_or("Imported from -").to_owned(),
        created_by: String::new(),
    };
    let (api, body) = (request.api, bulk::reader(request.body));
    let store = api.images.clone();
    let image = blocking(move || {
        let layer = store.make_layer(None, body)?;
        store.make_image(None, Some(&layer), &draft)
    })
    .await?
    .map_err(|error| errors::author(&error))?;
    named(&api, &image, name.as_ref()).await?;
    api.announce_image("import", &image, &image.id.to_string());
    let line = Line { status: image.id.to_string(), ..Line::default() };
    Ok(respond::whole(StatusCode::OK, respond::JSON, json_line(&line)))
}

/// The name in `repo` and `tag`, if there is one.
fn target(request: &Request, key: &str) -> Result<Option<Reference>, ApiError> {
    let Some(repository) = request.query.text(key) else { return Ok(None) };
    let name: Reference = repository.parse().map_err(errors::bad_reference)?;
    if name.digest().is_some() {
        return Err(ApiError::invalid("cannot import digest reference"));
    }
    match request.query.text("tag") {
        None => Ok(Some(name)),
        Some(tag) => name.with_tag(tag).map(Some).map_err(errors::bad_reference),
    }
}

async fn named(api: &Arc<Api>, image: &Image, name: Option<&Reference>) -> Result<(), ApiError> {
    let Some(name) = name.cloned() else { return Ok(()) };
    let (store, id, wanted) = (api.images.clone(), image.id.clone(), name.clone());
    blocking(move || store.tag(&id, &wanted)).await?.map_err(|error| errors::store(&error))?;
    api.announce_image("tag", image, &name.familiar());
    Ok(())
}

/// What of a container's configuration an image can say.
fn run_config(config: &ContainerConfig) -> RunConfig {
    fn set<V>(map: Option<&BTreeMap<String, V>>) -> BTreeMap<String, Empty> {
        map.map(|map| map.keys().map(|key| (key.clone(), Empty {})).collect()).unwrap_or_default()
    }
    RunConfig {
        user: config.user.clone(),
        exposed_ports: set(config.exposed_ports.as_ref()),
        env: config.env.clone().unwrap_or_default(),
        entrypoint: config.entrypoint.clone(),
        cmd: config.cmd.clone(),
        volumes: set(config.volumes.as_ref()),
        working_dir: config.working_dir.clone(),
        labels: config.labels.clone().unwrap_or_default(),
        stop_signal: config.stop_signal.clone(),
        healthcheck: config.healthcheck.as_ref().map(health_check),
        shell: config.shell.clone().unwrap_or_default(),
        on_build: config.on_build.clone().unwrap_or_default(),
    }
}

fn health_check(check: &HealthConfig) -> Healthcheck {
    Healthcheck {
        test: check.test.clone().unwrap_or_default(),
        interval: check.interval,
        timeout: check.timeout,
        start_period: check.start_period,
        start_interval: check.start_interval,
        retries: check.retries,
    }
}

/// `wanted`, filled up by what the container has: sets grow, single values stay as wanted.
fn merged(mut wanted: RunConfig, container: RunConfig) -> RunConfig {
    let or = |wanted: &mut String, other: String| {
        if wanted.is_empty() {
            *wanted = other;
        }
    };
    or(&mut wanted.user, container.user);
    or(&mut wanted.working_dir, container.working_dir);
    or(&mut wanted.stop_signal, container.stop_signal);
    for (port, empty) in container.exposed_ports {
        wanted.exposed_ports.entry(port).or_insert(empty);
    }
    for (path, empty) in container.volumes {
        wanted.volumes.entry(path).or_insert(empty);
    }
    for (key, value) in container.labels {
        wanted.labels.entry(key).or_insert(value);
    }
    let key = |line: &str| line.split('=').next().unwrap_or_default().to_owned();
    let known: HashSet<String> = wanted.env.iter().map(|line| key(line)).collect();
    wanted.env.extend(container.env.into_iter().filter(|line| !known.contains(&key(line))));
    // A new entry point means that the old command was meant for another program.
    if wanted.entrypoint.as_ref().is_none_or(Vec::is_empty) {
        if wanted.cmd.as_ref().is_none_or(Vec::is_empty) {
            wanted.cmd = container.cmd;
        }
        wanted.entrypoint = wanted.entrypoint.or(container.entrypoint);
    }
    wanted.healthcheck = wanted.healthcheck.or(container.healthcheck);
    if wanted.shell.is_empty() {
        wanted.shell = container.shell;
    }
    if wanted.on_build.is_empty() {
        wanted.on_build = container.on_build;
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wanted_values_win_and_sets_grow() {
        let words = |text: &str| Some(text.split(' ').map(str::to_owned).collect::<Vec<_>>());
        let container = RunConfig {
            user: "me".into(),
            env: vec!["A=1".into(), "B=2".into()],
            cmd: words("sh"),
            entrypoint: words("run"),
            labels: BTreeMap::from([("a".into(), "old".into()), ("b".into(), "old".into())]),
            ..RunConfig::default()
        };
        let wanted = RunConfig {
            env: vec!["B=3".into()],
            labels: BTreeMap::from([("a".into(), "new".into())]),
            ..RunConfig::default()
        };
        let all = merged(wanted, container.clone());
        assert_eq!(all.env, ["B=3", "A=1"]);
        assert_eq!((all.user.as_str(), all.cmd, all.entrypoint), ("me", words("sh"), words("run")));
        assert_eq!((all.labels["a"].as_str(), all.labels["b"].as_str()), ("new", "old"));
        let other = RunConfig { entrypoint: words("other"), ..RunConfig::default() };
        assert_eq!(merged(other, container).cmd, None);
    }
}
