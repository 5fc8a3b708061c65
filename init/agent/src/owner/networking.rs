//! Containers' networks: connecting and disconnecting, also while they run.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use berth_api::docker::containers::EndpointSettings;

use super::container::Container;
use super::{Owner, save};
use crate::command::{Id, Refusal};
use crate::networks::{ConnectError, DEFAULT, Member};
use crate::phase::Phase;
use crate::start::{self, Machinery};
use crate::store::{EndpointRecord, Status};

impl Owner {
    /// Puts a container into a network.
    pub(super) fn connect(
        &mut self,
        id: &str,
        network: &str,
        settings: EndpointSettings,
    ) -> Result<(), Refusal> {
        let name = self.machinery.networks.resolve(network);
        let name = name.ok_or_else(|| match network {
            "host" | "none" => private_mode(network),
            _ => Refusal::NotFound(format!("network {network} not found")),
        })?;
        if name == DEFAULT && settings.aliases.as_ref().is_some_and(|aliases| !aliases.is_empty()) {
            return Err(Refusal::Invalid(
                "invalid endpoint settings:\nnetwork-scoped alias is supported only for containers in user defined \
                 networks"
                    .to_owned(),
            ));
        }
        self.change_networks(id, |machinery, container| {
            let record = &mut container.record;
            if record.networks.contains_key(&name) {
                return Err(Refusal::Forbidden(format!(
                    "endpoint with name {} already exists in network {name}",
                    record.name
                )));
            }
            record.networks.insert(name.clone(), settings);
            let member = Member::of(record).map_err(Refusal::Invalid)?;
            with_namespace(container, |netns| {
                machinery.networks.connect(&member, &name, netns.as_fd()).map_err(|error| refused(&error))
            })
        })
    }

    /// Takes a container out of a network.
    pub(super) fn disconnect(&mut self, id: &str, network: &str) -> Result<(), Refusal> {
        let name = self.machinery.networks.resolve(network).unwrap_or_else(|| network.to_owned());
        self.change_networks(id, |machinery, container| {
            let record = &mut container.record;
            if record.networks.remove(&name).is_none() {
                return Err(Refusal::Failed(format!(
                    "container {} is not connected to the network {name}",
                    record.id
                )));
            }
            let id: Id = record.id.clone();
            with_namespace(container, |netns| Ok(machinery.networks.disconnect(&id, &name, netns.as_fd())))
        })
    }

    /// Changes a container's networks. The owner waits: a run that ended meanwhile would leave a place behind.
    fn change_networks(
        &mut self,
        id: &str,
        change: impl FnOnce(&Machinery, &mut Container) -> Result<Option<Places>, Refusal>,
    ) -> Result<(), Refusal> {
        let machinery = self.machinery.clone();
        let container = self.get(id)?;
        let mode = container.record.host_config.network_mode.as_str();
        if matches!(mode, "host" | "none") {
            return Err(private_mode(mode));
        }
        if mode.starts_with("container:") {
            return Err(Refusal::Invalid(
                "container sharing network namespace with another container or host cannot be connected to any other \
                 network"
                    .to_owned(),
            ));
        }
        if container.record.phase() == Phase::Starting {
            return Err(Refusal::Conflict(format!(
                "container {} is starting, try again",
                container.record.name
            )));
        }
        let old = container.record.clone();
        let changed = tokio::task::block_in_place(|| change(&machinery, container));
        let places = match changed {
            Ok(places) => places,
            Err(error) => {
                container.record = old;
                return Err(error);
            }
        };
        if let (Some(after), Status::Running(run)) = (places, &mut container.record.status) {
            let before: Places = std::mem::take(&mut run.endpoints).into_iter().collect();
            run.endpoints = after.iter().cloned().collect();
            let dir = machinery.store.dir(&container.record.id);
            if let Err(error) = start::change_etc(&dir, &container.record, &before, &after) {
                crate::log::warning!("names of {}: {error}, continuing", container.record.name);
            }
        }
        // What the kernel has is what is shown, also when it could not be written down.
        container.show();
        save(&machinery, &container.record)
    }
}

/// A container's places, by network name.
type Places = Vec<(String, EndpointRecord)>;

/// Does something in the network namespace of a container that runs.
fn with_namespace(
    container: &Container,
    work: impl FnOnce(OwnedFd) -> Result<Places, Refusal>,
) -> Result<Option<Places>, Refusal> {
    let (Some(run), Some(live)) = (container.record.running(), &container.live) else { return Ok(None) };
    let failed = |error: std::io::Error| Refusal::Failed(format!("network namespace: {error}"));
    let netns = File::open(format!("/proc/{}/ns/net", run.pid)).map_err(failed)?;
    // The pid was the container's for certain if its process still lives after the open.
    if start::ended(&live.pidfd).map_err(failed)? {
        return Ok(None);
    }
    work(netns.into()).map(Some)
}

fn private_mode(mode: &str) -> Refusal {
    Refusal::Forbidden(match mode {
        "host" => {
            "container sharing network namespace with another container or host cannot be connected to any other \
             network"
        }
        _ => "container cannot be connected to multiple networks with one of the networks in private (none) mode",
    }.to_owned())
}

fn refused(error: &ConnectError) -> Refusal {
    let text = crate::log::chain(error);
    match error {
        ConnectError::NoNetwork(_) => Refusal::NotFound(text),
        ConnectError::Outside(_) | ConnectError::NotConfigured | ConnectError::NotOnDefault => {
            Refusal::Invalid(text)
        }
        ConnectError::Address(_) => Refusal::Forbidden(text),
        ConnectError::NoLink { .. }
        | ConnectError::Port { .. }
        | ConnectError::Interface(_)
        | ConnectError::Firewall(_)
        | ConnectError::Random(_) => Refusal::Failed(text),
    }
}
