//! Images: list, inspect, history, tag, remove, prune. Pulling has its own room.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_api::docker::Empty;
use berth_api::docker::containers::{GraphDriver, HealthConfig};
use berth_api::docker::images::{
    Deleted, HistoryItem, ImageConfig, ImageInspect, ImageMetadata, ImageSummary, PruneAnswer, RootFs,
};
use berth_image::store::Step;
use berth_image::{Image, Reference, Removed, RunConfig, Use};
use hyper::StatusCode;

use super::Api;
use super::containers::filters::Filters;
use super::containers::lifecycle::is_running;
use super::errors::ApiError;
use super::request::Request;
use super::respond;
use super::routes::Answer;
use super::time;
use crate::command::{Event, View};

const KNOWN: [&str; 7] = ["before", "dangling", "label", "label!", "reference", "since", "until"];

impl Api {
    /// The image a client names, or 404 in Docker's words.
    pub(crate) fn require_image(&self, name: &str) -> Result<Image, ApiError> {
        self.images.find(name).map_err(|error| super::errors::no_image(name, &error))
    }

    /// The id a name stands for; the name itself when there is no such image.
    pub(crate) fn image_id(&self, name: &str) -> String {
        self.images.find(name).map_or_else(|_| name.to_owned(), |image| image.id.to_string())
    }

    /// Bytes of an image's content, 0 when it is gone.
    pub(crate) fn image_size(&self, id: &str) -> i64 {
        self.images.find(id).map_or(0, |image| i64::try_from(image.size).unwrap_or(i64::MAX))
    }

    /// Tells of something that happened to an image.
    pub(crate) fn announce_image(&self, action: &str, image: &Image, name: &str) {
        self.announce_image_as(action, image, &image.id.to_string(), name);
    }

    /// Tells of an image that was pulled.
    pub(crate) fn announce_pull(&self, reference: &Reference, image: &Image) {
        self.announce_image_as("pull", image, &reference.familiar(), &reference.familiar_name());
    }

    /// As [`Self::announce_image`], of what goes by a name rather than by its id. Labels tell what kind of image it is.
    pub(crate) fn announce_image_as(&self, action: &str, image: &Image, id: &str, name: &str) {
        let mut attributes = image.config.config.labels.clone();
        attributes.insert("name".to_owned(), name.to_owned());
        self.owner.announce(Event {
            kind: "image",
            action: action.to_owned(),
            id: id.to_owned(),
            attributes,
            at_ns: time::now_ns(),
        });
    }
}

pub(crate) fn list(request: &Request) -> Answer {
    let api = &request.api;
    let mut filters = Filters::parse(request.query.get("filters"), &KNOWN)?;
    if let Some(pattern) = request.query.text("filter") {
        // The form of clients before 1.25.
        filters = Filters::parse(Some(&serde_json::json!({ "reference": [pattern] }).to_string()), &KNOWN)?;
    }
    let dangling = filters.boolean("dangling")?;
    let until = filters.until_ns(time::now_ns())?.map(|ns| ns / 1_000_000_000);
    let created = |key: &str| -> Result<Option<i64>, ApiError> {
        let name = filters.get(key).first();
        Ok(name
            .map(|name| api.require_image(name))
            .transpose()?
            .map(|image| time::parse_seconds(&image.created)))
    };
    let (before, since) = (created("before")?, created("since")?);
    let mut answer = Vec::new();
    for image in api.images.list() {
        let made = time::parse_seconds(&image.created);
        let labels = &image.config.config.labels;
        // A `reference` filter also hides the image's other names.
        let patterns = filters.get("reference");
        let meant = |name: &&Reference| patterns.is_empty() || patterns.iter().any(|p| fits_pattern(name, p));
        let names: Vec<String> = image.names.iter().filter(meant).map(Reference::familiar).collect();
        let wanted = (patterns.is_empty() || !names.is_empty())
            && dangling.is_none_or(|wanted| wanted == image.names.is_empty())
            && before.is_none_or(|before| made < before)
            && since.is_none_or(|since| made > since)
            && until.is_none_or(|until| made <= until)
            && filters.labels_match(Some(labels));
        if wanted {
            let mut entry = ImageSummary { repo_tags: Some(names), ..summary(&image) };
            let digest_meant = |text: &String| text.parse().is_ok_and(|name: Reference| meant(&&name));
            entry.repo_digests =
                Some(image.repo_digests.iter().filter(|text| digest_meant(text)).cloned().collect());
            answer.push(entry);
        }
    }
    Ok(respond::ok(&answer))
}

/// Images with the number of containers that use each, for `GET /system/df`.
pub(crate) fn summaries(api: &Api, views: &[Arc<View>]) -> Vec<ImageSummary> {
    let with_users = |image: &Image| {
        let id = image.id.to_string();
        let users = views.iter().filter(|view| view.image_id == id).count();
        ImageSummary {
            containers: i64::try_from(users).unwrap_or(i64::MAX),
            shared_size: 0,
            ..summary(image)
        }
    };
    api.images.list().iter().map(with_users).collect()
}

fn summary(image: &Image) -> ImageSummary {
    let labels = &image.config.config.labels;
    ImageSummary {
        containers: -1,
        created: time::parse_seconds(&image.created),
        id: image.id.to_string(),
        labels: (!labels.is_empty()).then(|| labels.clone()),
        parent_id: String::new(),
        repo_digests: Some(image.repo_digests.clone()),
        repo_tags: Some(image.names.iter().map(Reference::familiar).collect()),
        shared_size: -1,
        size: i64::try_from(image.size).unwrap_or(i64::MAX),
    }
}

/// Whether a `reference` filter means a name: a glob over the familiar name, with or without the tag.
fn fits_pattern(name: &Reference, pattern: &str) -> bool {
    let whole = |text: &str| glob(pattern.as_bytes(), text.as_bytes());
    whole(&name.familiar()) || whole(&name.familiar_name()) || whole(&name.to_string()) || whole(&name.name())
}

/// Go's `path.Match` without character classes: `*` is anything but a slash, `?` one character but a slash.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while let Some(&byte) = text.get(t) {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, t));
                p += 1;
            }
            Some(&wanted) if wanted == byte || (wanted == b'?' && byte != b'/') => {
                (p, t) = (p + 1, t + 1);
            }
            _ => match star {
                Some((after, from)) if text.get(from).is_some_and(|byte| *byte != b'/') => {
                    star = Some((after, from + 1));
                    (p, t) = (after, from + 1);
                }
                _ => return false,
            },
        }
    }
    pattern.get(p..).unwrap_or_default().iter().all(|byte| *byte == b'*')
}

pub(crate) fn inspect(request: &Request, name: &str) -> Answer {
    Ok(respond::ok(&inspect_view(&request.api.require_image(name)?)))
}

fn inspect_view(image: &Image) -> ImageInspect {
    let config = &image.config;
    let layers: Vec<String> = config.rootfs.diff_ids.iter().map(ToString::to_string).collect();
    ImageInspect {
        id: image.id.to_string(),
        repo_tags: image.names.iter().map(Reference::familiar).collect(),
        repo_digests: image.repo_digests.clone(),
        comment: config.history.last().map(|item| item.comment.clone()).unwrap_or_default(),
        created: image.created.clone(),
        author: config.author.clone(),
        config: run_config(&config.config),
        architecture: config.architecture.clone(),
        variant: config.variant.clone(),
        os: config.os.clone(),
        size: i64::try_from(image.size).unwrap_or(i64::MAX),
        graph_driver: GraphDriver { data: Some(BTreeMap::new()), name: "overlay2".to_owned() },
        root_fs: RootFs { kind: "layers".to_owned(), layers: (!layers.is_empty()).then_some(layers) },
        metadata: ImageMetadata {
            last_tag_time: time::rfc3339_nano(image.stored_at.saturating_mul(1_000_000_000)),
        },
        ..ImageInspect::default()
    }
}

/// The defaults an image gives to containers, with the reference engine's nulls.
#[allow(clippy::zero_sized_map_values, reason = "the values are `{}` on the wire")]
fn run_config(config: &RunConfig) -> ImageConfig {
    fn set<V>(map: &BTreeMap<String, V>) -> Option<BTreeMap<String, Empty>> {
        (!map.is_empty()).then(|| map.keys().map(|key| (key.clone(), Empty {})).collect())
    }
    let list = |list: &Vec<String>| (!list.is_empty()).then(|| list.clone());
    ImageConfig {
        cmd: config.cmd.clone(),
        entrypoint: config.entrypoint.clone(),
        env: list(&config.env),
        exposed_ports: set(&config.exposed_ports),
        healthcheck: config.healthcheck.as_ref().map(|check| HealthConfig {
            test: list(&check.test),
            interval: check.interval,
            timeout: check.timeout,
            start_period: check.start_period,
            start_interval: check.start_interval,
            retries: check.retries,
        }),
        labels: (!config.labels.is_empty()).then(|| config.labels.clone()),
        on_build: list(&config.on_build),
        shell: list(&config.shell),
        stop_signal: config.stop_signal.clone(),
        user: config.user.clone(),
        volumes: set(&config.volumes),
        working_dir: config.working_dir.clone(),
    }
}

pub(crate) fn history(request: &Request, name: &str) -> Answer {
    let image = request.api.require_image(name)?;
    let items: Vec<HistoryItem> = request
        .api
        .images
        .history(&image)
        .into_iter()
        .enumerate()
        .map(|(index, Step { line, size })| {
            let newest = index == 0;
            HistoryItem {
                comment: line.comment,
                created: time::parse_seconds(&line.created),
                created_by: line.created_by,
                id: if newest { image.id.to_string() } else { "<missing>".to_owned() },
                size: i64::try_from(size).unwrap_or(i64::MAX),
                tags: (newest && !image.names.is_empty())
                    .then(|| image.names.iter().map(Reference::familiar).collect()),
            }
        })
        .collect();
    Ok(respond::ok(&items))
}

pub(crate) fn tag(request: &Request, name: &str) -> Answer {
    let repository = request.query.get("repo").unwrap_or_default();
    let target: Reference = repository.parse().map_err(super::errors::bad_reference)?;
    if target.digest().is_some() {
        return Err(ApiError::invalid("refusing to create a tag with a digest reference"));
    }
    let target = match request.query.text("tag") {
        Some(tag) => target.with_tag(tag).map_err(super::errors::bad_reference)?,
        None => target,
    };
    let image = request.api.require_image(name)?;
    request.api.images.tag(&image.id, &target).map_err(|error| super::errors::store(&error))?;
    request.api.announce_image("tag", &image, &target.familiar());
    Ok(respond::empty(StatusCode::CREATED))
}

/// Tells whether containers use an image.
fn users(views: &[Arc<View>]) -> impl Fn(&Image) -> Use {
    move |image: &Image| {
        let id = image.id.to_string();
        let mut using = views.iter().filter(|view| view.image_id == id);
        let short = |view: &Arc<View>| view.id.chars().take(12).collect::<String>();
        let Some(first) = using.clone().next() else { return Use::Free };
        match using.find(|view| is_running(view)) {
            Some(running) => Use::Running(short(running)),
            None => Use::Stopped(short(first)),
        }
    }
}

pub(crate) async fn remove(request: Request, name: &str) -> Answer {
    let force = request.query.flag("force");
    let image = request.api.require_image(name)?;
    let views = request.api.owner.list().await?;
    let (store, text) = (request.api.images.clone(), name.to_owned());
    let removed = blocking(move || store.remove(&text, force, &users(&views))).await?;
    let removed = removed.map_err(|error| super::errors::remove_image(name, &error))?;
    let gone = |item| reported(&request.api, std::slice::from_ref(&image), item);
    Ok(respond::ok(&removed.into_iter().map(gone).collect::<Vec<_>>()))
}

/// Tells of something removed; `images` are those that may be meant.
fn reported(api: &Api, images: &[Image], item: Removed) -> Deleted {
    match item {
        Removed::Untagged(name) => {
            let had = |image: &&Image| {
                image.names.iter().any(|known| known.familiar() == name) || image.repo_digests.contains(&name)
            };
            if let Some(image) = images.iter().find(had) {
                api.announce_image("untag", image, &image.id.to_string());
            }
            Deleted { untagged: Some(name), deleted: None }
        }
        Removed::Deleted(id) => {
            if let Some(image) = images.iter().find(|image| image.id.to_string() == id) {
                api.announce_image("delete", image, &id);
            }
            Deleted { untagged: None, deleted: Some(id) }
        }
    }
}

pub(crate) async fn prune(request: Request) -> Answer {
    let filters = Filters::parse(request.query.get("filters"), &["dangling", "label", "label!", "until"])?;
    let all = filters.boolean("dangling")? == Some(false);
    let until = filters.until_ns(time::now_ns())?.map(|ns| ns / 1_000_000_000);
    let views = request.api.owner.list().await?;
    let store = request.api.images.clone();
    let before = store.list();
    let pruned = blocking(move || {
        let in_use = users(&views);
        store.prune(all, &|image: &Image| {
            let young = until.is_some_and(|until| time::parse_seconds(&image.created) > until);
            if young || !filters.labels_match(Some(&image.config.config.labels)) {
                // Not meant by the filters: kept as if it were used.
                return Use::Stopped(String::new());
            }
            in_use(image)
        })
    })
    .await?
    .map_err(|error| super::errors::store(&error))?;
    let deleted: Vec<Deleted> =
        pruned.removed.into_iter().map(|item| reported(&request.api, &before, item)).collect();
    Ok(respond::ok(&PruneAnswer {
        images_deleted: (!deleted.is_empty()).then_some(deleted),
        space_reclaimed: pruned.freed,
    }))
}

/// Runs file work aside of the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| ApiError::failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_match_as_globs() {
        let name: Reference = "alpine:3.10".parse().unwrap();
        for (pattern, fits) in [
            ("alpine", true),
            ("alpine:3.10", true),
            ("alp*", true),
            ("*:3.*", true),
            ("alp?ne", true),
            ("docker.io/library/alpine", true),
            ("busybox", false),
            ("alpine:3.1", false),
            ("*/alpine", false),
        ] {
            assert_eq!(fits_pattern(&name, pattern), fits, "{pattern}");
        }
    }
}
