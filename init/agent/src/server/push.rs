//! Pushing an image, and telling how it goes.

use berth_api::docker::images::{Progress as Line, ProgressDetail};
use berth_image::{Credentials, PushError, PushProgress, PushStatus, Pushed, Reference};
use bytes::Bytes;
use serde_json::json;
use tokio::sync::mpsc;

use super::Api;
use super::credentials::credentials;
use super::errors::{self, ApiError};
use super::progress::{self, LINES_IN_FLIGHT, failure};
use super::request::Request;
use super::respond::{self, Pieces, json_line};
use super::routes::Answer;

/// Steps on their way from the pusher; more are dropped by it.
const STEPS_IN_FLIGHT: usize = 256;

/// `POST /images/{name}/push`: one tag, or all of the repository when none is named.
pub(crate) fn push(request: Request, name: &str) -> Answer {
    let reference: Reference = name.parse().map_err(errors::bad_reference)?;
    if reference.digest().is_some() {
        return Err(ApiError::invalid("cannot push a digest reference"));
    }
    let names = match request.query.text("tag") {
        Some(tag) => vec![reference.with_tag(tag).map_err(errors::bad_reference)?],
        None => {
            let tags = request.api.images.tags_of(name);
            if tags.is_empty() { vec![reference.clone()] } else { tags }
        }
    };
    // As the reference engine does: credentials that cannot be read count as none, and the registry decides.
    let auth = credentials(request.header("x-registry-auth")).unwrap_or_default();
    let (lines, receiver) = mpsc::channel::<Bytes>(LINES_IN_FLIGHT);
    let api = request.api;
    tokio::spawn(async move {
        let opening = format!("The push refers to repository [{}]", reference.name());
        let _ = lines.send(json_line(&Line { status: opening, ..Line::default() })).await;
        tokio::select! {
            () = push_all(&api, &names, auth.as_ref(), &lines) => {}
            // Nobody waits for it any more. What was sent is found by the next push.
            () = lines.closed() => {}
        }
    });
    Ok(respond::streamed(respond::JSON, Pieces::new(receiver, |line: Bytes| line)))
}

async fn push_all(api: &Api, names: &[Reference], auth: Option<&Credentials>, lines: &mpsc::Sender<Bytes>) {
    for name in names {
        // A client that went away needs no end.
        let _ = match push_one(api, name, auth, lines).await {
            Ok(pushed) => {
                if let Ok(image) = api.images.find(&name.to_string()) {
                    api.announce_image_as("push", &image, &name.familiar(), &name.familiar_name());
                }
                lines.send(last_lines(name, &pushed)).await
            }
            Err(error) => {
                let _ = lines.send(failure(&errors::chain(&error))).await;
                return;
            }
        };
    }
}

async fn push_one(
    api: &Api,
    name: &Reference,
    auth: Option<&Credentials>,
    lines: &mpsc::Sender<Bytes>,
) -> Result<Pushed, PushError> {
    let (steps, mut progress) = mpsc::channel(STEPS_IN_FLIGHT);
    let tell = async {
        while let Some(step) = progress.recv().await {
            // A slow client misses steps, never the end.
            let _ = lines.try_send(json_line(&line(&step)));
        }
    };
    let (pushed, ()) = tokio::join!(api.puller.push(name, auth.cloned(), Some(steps)), tell);
    pushed
}

fn last_lines(name: &Reference, pushed: &Pushed) -> Bytes {
    let tag = name.tag().unwrap_or_default();
    let Pushed { digest, size } = pushed;
    let told = Line { status: format!("{tag}: digest: {digest} size: {size}"), ..Line::default() };
    let aux = Line {
        progress_detail: Some(ProgressDetail::default()),
        aux: Some(json!({ "Tag": tag, "Digest": digest.to_string(), "Size": size })),
        ..Line::default()
    };
    [json_line(&told), json_line(&aux)].concat().into()
}

/// A step as a line.
fn line(step: &PushProgress) -> Line {
    let (status, detail, bar) = match &step.status {
        PushStatus::Preparing => ("Preparing".to_owned(), ProgressDetail::default(), String::new()),
        PushStatus::AlreadyExists => {
            ("Layer already exists".to_owned(), ProgressDetail::default(), String::new())
        }
        PushStatus::Mounted(from) => {
            (format!("Mounted from {from}"), ProgressDetail::default(), String::new())
        }
        PushStatus::Pushing { current, total } => (
            "Pushing".to_owned(),
            ProgressDetail { current: *current, total: *total },
            progress::bar(*current, *total),
        ),
        PushStatus::Pushed => ("Pushed".to_owned(), ProgressDetail::default(), String::new()),
    };
    Line { status, progress_detail: Some(detail), progress: bar, id: step.layer.clone(), ..Line::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &Bytes) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    #[test]
    fn steps_and_the_end_have_dockers_form() {
        let step = |status| json_line(&line(&PushProgress { layer: "abc".into(), status }));
        assert_eq!(
            text(&step(PushStatus::Mounted("a/b".into()))),
            "{\"status\":\"Mounted from a/b\",\"progressDetail\":{},\"id\":\"abc\"}\r\n"
        );
        let pushing = step(PushStatus::Pushing { current: 1, total: 2 });
        assert!(text(&pushing).contains(r#""progressDetail":{"current":1,"total":2}"#), "{pushing:?}");
        let digest: berth_image::Digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
        let end = last_lines(&"x:1".parse().unwrap(), &Pushed { digest: digest.clone(), size: 7 });
        assert_eq!(
            text(&end),
            format!(
                "{{\"status\":\"1: digest: {digest} size: 7\"}}\r\n{{\"progressDetail\":{{}},\"aux\":{{\"Digest\":\
                 \"{digest}\",\"Size\":7,\"Tag\":\"1\"}}}}\r\n"
            )
        );
    }
}
