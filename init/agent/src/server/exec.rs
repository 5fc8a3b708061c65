//! Exec sessions.

use berth_api::docker::exec::{ExecBody, ExecCreated, ExecInspect, ExecStartBody, ProcessConfig};
use hyper::StatusCode;
use tokio::sync::mpsc;

use super::containers::attach::size;
use super::containers::{lifecycle, validate};
use super::errors::ApiError;
use super::request::Request;
use super::routes::Answer;
use super::{respond, stream};
use crate::command::{Attachment, Chunk, ExecCreate, ExecStart, ExecView, State, Stream};

pub(crate) async fn create(mut request: Request, name: &str) -> Answer {
    let body: ExecBody = request.json().await?;
    if body.cmd.as_ref().is_none_or(Vec::is_empty) {
        return Err(ApiError::invalid("No exec command specified"));
    }
    stream::detach_keys(&body.detach_keys)?;
    validate::environment(body.env.as_deref())?;
    let view = request.api.owner.view(name).await?;
    match view.state {
        State::Running { paused: false, .. } => {}
        State::Running { paused: true, .. } => {
            return Err(ApiError::conflict(format!(
                "Container {} is paused, unpause the container before exec",
                view.id
            )));
        }
        State::Restarting { .. } => {
            return Err(ApiError::conflict(format!(
                "Container {} is restarting, wait until the container is running",
                view.id
            )));
        }
        _ => return Err(lifecycle::not_running(&view.id)),
    }
    let id = request.api.owner.exec_create(&view.id, ExecCreate { docker: body }).await?;
    Ok(respond::json(StatusCode::CREATED, &ExecCreated { id }))
}

pub(crate) async fn start(mut request: Request, id: &str) -> Answer {
    let body: ExecStartBody = request.json_or_default().await?;
    let view = request.api.owner.exec_view(id).await?;
    if view.running {
        return Err(ApiError::conflict(format!("Error: Exec command {id} is already running")));
    }
    if view.code.is_some() {
        return Err(ApiError::conflict(format!("Error: Exec command {id} has already run")));
    }
    let size = body.console_size.or(view.body.console_size).map(|[rows, columns]| (rows, columns));
    let start = ExecStart { detach: body.detach, tty: body.tty, size: size.filter(|size| *size != (0, 0)) };
    let keys = stream::detach_keys(&view.body.detach_keys)?;
    let tty = body.tty;
    match request.api.owner.exec_start(id, start).await {
        Ok(Some(attachment)) => {
            // Whether output comes in frames is what this request says, not what the session was made with.
            let attachment = Attachment { tty, ..attachment };
            Ok(stream::hijack(&mut request, attachment, keys, std::future::ready(())))
        }
        Ok(None) => Ok(respond::empty(StatusCode::OK)),
        Err(refusal) if !body.detach && has_ended(&request, id).await => {
            let told = told(&refusal.to_string(), tty);
            Ok(stream::hijack(&mut request, told, keys, std::future::ready(())))
        }
        Err(refusal) => Err(refusal.into()),
    }
}

/// Whether the session was started and its program could not be run: the exit code says so.
async fn has_ended(request: &Request, id: &str) -> bool {
    request.api.owner.exec_view(id).await.is_ok_and(|view| view.code.is_some())
}

/// A session that says why its program could not be run. Clients print it and read the exit code afterwards.
fn told(text: &str, tty: bool) -> Attachment {
    let (sender, output) = mpsc::channel(1);
    // The channel is empty and open, so this does not fail.
    let _ = sender.try_send(Chunk { stream: Stream::Out, bytes: format!("{text}\r\n").into() });
    Attachment { tty, output, input: None }
}

pub(crate) async fn resize(request: Request, id: &str) -> Answer {
    let (rows, columns) = size(&request.query)?;
    request.api.owner.exec_resize(id, rows, columns).await?;
    Ok(respond::empty(StatusCode::OK))
}

pub(crate) async fn inspect(request: Request, id: &str) -> Answer {
    Ok(respond::ok(&inspect_view(request.api.owner.exec_view(id).await?)))
}

fn inspect_view(view: ExecView) -> ExecInspect {
    let mut words = view.body.cmd.unwrap_or_default().into_iter();
    ExecInspect {
        id: view.id,
        running: view.running,
        exit_code: view.code,
        process_config: ProcessConfig {
            tty: view.body.tty,
            entrypoint: words.next().unwrap_or_default(),
            arguments: words.collect(),
            privileged: view.body.privileged,
            user: view.body.user,
        },
        open_stdin: view.body.attach_stdin,
        open_stderr: view.body.attach_stderr,
        open_stdout: view.body.attach_stdout,
        can_remove: false,
        container_id: view.container,
        detach_keys: view.body.detach_keys,
        pid: view.pid,
    }
}
