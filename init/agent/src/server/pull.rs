//! Pulling an image, and telling how it goes.

use berth_api::docker::images::{Progress as Line, ProgressDetail};
use berth_image::{Image, Progress, PullError, Reference, Status};
use bytes::Bytes;
use tokio::sync::mpsc;

use super::credentials::{credentials, platform};
use super::errors::{self, ApiError};
use super::progress::{self, LINES_IN_FLIGHT, failure};
use super::request::Request;
use super::respond::{self, Pieces, json_line};
use super::routes::Answer;

/// Steps on their way from the puller; more are dropped by it.
const STEPS_IN_FLIGHT: usize = 256;

pub(crate) async fn create(request: Request) -> Answer {
    if request.query.text("fromSrc").is_some() {
        return super::author::import(request).await;
    }
    let reference = reference(&request)?;
    let platform = platform(&request)?;
    let credentials = credentials(request.header("x-registry-auth"))?;
    let (steps, mut progress) = mpsc::channel(STEPS_IN_FLIGHT);
    let (puller, wanted) = (request.api.puller.clone(), reference.clone());
    let mut pull =
        tokio::spawn(async move { puller.pull(&wanted, &platform, credentials, Some(steps)).await });
    // A failure before the first step has a status of its own, as `docker run` of an unknown image expects.
    let Some(first) = progress.recv().await else {
        let image = (&mut pull).await.map_err(|error| ApiError::failed(error.to_string()))?;
        let image = image.map_err(|error| errors::pull(&error))?;
        request.api.announce_pull(&reference, &image);
        return Ok(respond::whole(
            hyper::StatusCode::OK,
            respond::JSON,
            Ending::of(&reference, &image).lines(),
        ));
    };
    let (lines, receiver) = mpsc::channel::<Bytes>(LINES_IN_FLIGHT);
    tokio::spawn(report(request, reference, pull, first, progress, lines));
    Ok(respond::streamed(respond::JSON, Pieces::new(receiver, |line: Bytes| line)))
}

async fn report(
    request: Request,
    reference: Reference,
    mut pull: tokio::task::JoinHandle<Result<Image, PullError>>,
    first: Progress,
    mut progress: mpsc::Receiver<Progress>,
    lines: mpsc::Sender<Bytes>,
) {
    let opening = Line {
        status: format!("Pulling from {}", short_repository(&reference)),
        id: reference.selector(),
        ..Line::default()
    };
    // A client that went away is noticed below.
    let _ = lines.send(json_line(&opening)).await;
    let mut ending = Ending::default();
    let mut step = Some(first);
    while let Some(current) = step {
        if !ending.takes(&current.status) {
            // A slow client misses steps, never the end.
            let _ = lines.try_send(json_line(&line(&current)));
        }
        step = tokio::select! {
            next = progress.recv() => next,
            () = lines.closed() => {
                // Nobody waits for it any more. What is in the store already is found by the next pull.
                pull.abort();
                return;
            }
        };
    }
    let last = match (&mut pull).await {
        Ok(Ok(image)) => {
            request.api.announce_pull(&reference, &image);
            ending.complete(&reference, &image).lines()
        }
        Ok(Err(error)) => failure(&errors::pull(&error).message),
        Err(error) => failure(&error.to_string()),
    };
    // A client that went away needs no end.
    let _ = lines.send(last).await;
}

/// The repository as the opening line names it: with `library/`, without Docker Hub's host.
fn short_repository(reference: &Reference) -> String {
    if reference.familiar_name() == reference.name() {
        reference.name()
    } else {
        reference.repository().to_owned()
    }
}

/// The last two lines of a pull.
#[derive(Default)]
struct Ending {
    digest: Option<String>,
    up_to_date: bool,
    name: String,
}

impl Ending {
    /// The end of a pull that told no steps.
    fn of(reference: &Reference, image: &Image) -> Self {
        Self { up_to_date: true, ..Self::default() }.complete(reference, image)
    }

    /// Keeps what belongs to the end; false for an ordinary step.
    fn takes(&mut self, status: &Status) -> bool {
        match status {
            Status::Digest(digest) => self.digest = Some(digest.to_string()),
            Status::UpToDate => self.up_to_date = true,
            Status::Downloaded => self.up_to_date = false,
            _ => return false,
        }
        true
    }

    fn complete(mut self, reference: &Reference, image: &Image) -> Self {
        self.name = reference.familiar();
        self.digest.get_or_insert_with(|| image.manifest.to_string());
        self
    }

    fn lines(&self) -> Bytes {
        let what = if self.up_to_date { "Image is up to date" } else { "Downloaded newer image" };
        let mut lines = Vec::new();
        for status in [
            self.digest.as_ref().map(|digest| format!("Digest: {digest}")),
            Some(format!("Status: {what} for {}", self.name)),
        ] {
            lines.extend(status.map(|status| json_line(&Line { status, ..Line::default() })));
        }
        lines.concat().into()
    }
}

/// A step as a line.
fn line(step: &Progress) -> Line {
    let (detail, bar) = match &step.status {
        Status::Downloading { current, total } => {
            (ProgressDetail { current: *current, total: *total }, progress::bar(*current, *total))
        }
        _ => (ProgressDetail::default(), String::new()),
    };
    Line {
        status: step.status.to_string(),
        progress_detail: step.layer.is_some().then_some(detail),
        progress: bar,
        id: step.layer.clone().unwrap_or_default(),
        ..Line::default()
    }
}

fn reference(request: &Request) -> Result<Reference, ApiError> {
    let name = request.query.get("fromImage").unwrap_or_default();
    let reference: Reference = name.parse().map_err(errors::bad_reference)?;
    match request.query.text("tag") {
        None => Ok(reference),
        Some(digest) if digest.contains(':') => {
            Ok(reference.with_digest(digest.parse().map_err(|_| ApiError::invalid("invalid digest format"))?))
        }
        Some(tag) => reference.with_tag(tag).map_err(errors::bad_reference),
    }
}
