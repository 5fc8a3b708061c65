//! Waiting for a container's end.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use berth_api::docker::containers::{WaitAnswer, WaitError};
use bytes::Bytes;
use hyper::body::Frame;
use tokio::sync::oneshot;

use crate::command::{WaitEnd, WaitFor};
use crate::server::errors::ApiError;
use crate::server::request::Request;
use crate::server::respond;
use crate::server::routes::Answer;

/// Answers at once with the head, when the container ended with the body: `docker run` starts the container only when
/// it has seen the head.
pub(crate) async fn wait(request: Request, name: &str) -> Answer {
    let until = match request.query.get("condition").unwrap_or_default() {
        "" | "not-running" => WaitFor::NotRunning,
        "next-exit" => WaitFor::NextExit,
        "removed" => WaitFor::Removed,
        other => return Err(ApiError::invalid(format!("invalid condition: {other:?}"))),
    };
    let view = request.api.owner.view(name).await?;
    let end = request.api.owner.wait(&view.id, until).await?;
    Ok(respond::streamed(respond::JSON, Ending(Some(end))))
}

/// A body that is there when the wait is over.
struct Ending(Option<oneshot::Receiver<WaitEnd>>);

impl hyper::body::Body for Ending {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(receiver) = &mut self.0 else { return Poll::Ready(None) };
        let end = std::task::ready!(Pin::new(receiver).poll(context));
        self.0 = None;
        let answer = match end {
            Ok(end) => {
                WaitAnswer { status_code: end.code, error: end.error.map(|message| WaitError { message }) }
            }
            Err(_) => WaitAnswer {
                status_code: -1,
                error: Some(WaitError { message: "the agent is shutting down".to_owned() }),
            },
        };
        let mut bytes = serde_json::to_vec(&answer).unwrap_or_default();
        bytes.push(b'\n');
        Poll::Ready(Some(Ok(Frame::data(bytes.into()))))
    }
}
