//! The host API: the machine itself.

use std::sync::Arc;

use berth_api::host::{Config, Status};
use hyper::{Response, StatusCode};

use super::request::Request;
use super::respond::{self, Body};
use super::routes::Answer;

/// Going down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Power {
    /// Power off.
    Off,
    /// Reboot.
    Reboot,
}

/// What handlers ask of the machine; the agent's main task gives it.
pub(crate) trait Machine: Send + Sync {
    /// The machine at a glance. May read files.
    fn status(&self) -> Status;
    /// The machine file in force.
    fn config(&self) -> Config;
    /// Ask init to go down in order; returns at once.
    fn power(&self, power: Power);
    /// Facts for `GET /info`.
    fn facts(&self) -> Facts;
}

/// What `GET /info` tells of the machine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// Stable id of the machine.
    pub(crate) id: String,
    /// Host name.
    pub(crate) name: String,
    /// Registries reached by plain HTTP, `host[:port]`.
    pub(crate) insecure_registries: Vec<String>,
    /// Name of the operating system, from os-release.
    pub(crate) operating_system: String,
}

pub(crate) async fn status(request: Request) -> Answer {
    let machine = Arc::clone(&request.api.machine);
    let status = tokio::task::spawn_blocking(move || machine.status()).await;
    Ok(respond::ok(&status.map_err(|error| super::errors::ApiError::failed(error.to_string()))?))
}

pub(crate) fn config(request: &Request) -> Response<Body> {
    respond::ok(&request.api.machine.config())
}

pub(crate) fn power(request: &Request, power: Power) -> Response<Body> {
    request.api.machine.power(power);
    respond::empty(StatusCode::ACCEPTED)
}

/// Ends the agent as a fault would, once the answer is on its way: a way to see that nothing is lost.
pub(crate) fn crash() -> Response<Body> {
    tokio::spawn(async {
        // Long enough for the answer to be written; the process ends in any case.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        std::process::abort();
    });
    respond::empty(StatusCode::ACCEPTED)
}
