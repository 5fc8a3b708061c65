//! Listing containers.

use std::sync::Arc;

use super::filters::Filters;
use super::{size, view};
use crate::command::{State, View};
use crate::server::Api;
use crate::server::errors::ApiError;
use crate::server::images::blocking;
use crate::server::request::Request;
use crate::server::respond;
use crate::server::routes::Answer;
use crate::server::time;

const KNOWN: [&str; 16] = [
    "ancestor",
    "before",
    "exited",
    "expose",
    "health",
    "id",
    "isolation",
    "is-task",
    "label",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
    "label!",
];

const STATES: [&str; 7] = ["created", "running", "paused", "restarting", "removing", "exited", "dead"];

pub(crate) async fn list(request: Request) -> Answer {
    let limit = request.query.integer("limit")?.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(0);
    let filters = Filters::parse(request.query.get("filters"), &KNOWN)?;
    let wanted = Wanted::new(&request.api, filters).await?;
    let all = request.query.flag("all") || limit > 0 || wanted.all_states();
    let size = request.query.flag("size");
    let now_ns = time::now_ns();
    let mut answer = Vec::new();
    for found in request.api.owner.list().await? {
        let included = all || matches!(found.state, State::Running { .. } | State::Restarting { .. });
        if !included || !wanted.fits(&found) {
            continue;
        }
        let mut summary = view::summary(&found, now_ns);
        if size {
            let id = found.id.clone();
            // Left out when nothing was written, as the reference engine does.
            summary.size_rw = blocking(move || size::written_bytes(&id)).await?.filter(|bytes| *bytes > 0);
            summary.size_root_fs =
                Some(request.api.image_size(&found.image_id) + summary.size_rw.unwrap_or(0));
        }
        answer.push(summary);
        if limit > 0 && answer.len() == limit {
            break;
        }
    }
    Ok(respond::ok(&answer))
}

/// The filters of a list with what they refer to looked up.
struct Wanted {
    filters: Filters,
    before: Option<Arc<View>>,
    since: Option<Arc<View>>,
    exited: Vec<i64>,
    ports: Vec<(&'static str, PortRange)>,
    ancestors: Vec<String>,
}

impl Wanted {
    async fn new(api: &Api, filters: Filters) -> Result<Self, ApiError> {
        for status in filters.get("status") {
            if !STATES.contains(&status.as_str()) {
                return Err(ApiError::invalid(format!("invalid filter 'status={status}'")));
            }
        }
        for health in filters.get("health") {
            if !["none", "starting", "healthy", "unhealthy"].contains(&health.as_str()) {
                return Err(ApiError::invalid(format!("invalid filter 'health={health}'")));
            }
        }
        let mut exited = Vec::new();
        for code in filters.get("exited") {
            exited.push(
                code.parse().map_err(|_| ApiError::invalid(format!("invalid filter 'exited={code}'")))?,
            );
        }
        let mut ports = Vec::new();
        for key in ["publish", "expose"] {
            for text in filters.get(key) {
                let range = PortRange::parse(text)
                    .ok_or_else(|| ApiError::invalid(format!("invalid filter '{key}={text}'")))?;
                ports.push((key, range));
            }
        }
        let mut found = [None, None];
        for (slot, key) in found.iter_mut().zip(["before", "since"]) {
            if let Some(name) = filters.get(key).first() {
                *slot = Some(api.owner.view(name).await?);
            }
        }
        let [before, since] = found;
        let ancestors = filters.get("ancestor").iter().map(|name| api.image_id(name)).collect();
        Ok(Self { filters, before, since, exited, ports, ancestors })
    }

    /// Whether stopped containers are meant, too.
    fn all_states(&self) -> bool {
        self.filters.has("status") || self.filters.has("exited")
    }

    fn fits(&self, view: &View) -> bool {
        self.fits_names(view) && self.fits_state(view) && self.fits_places(view) && self.fits_age(view)
    }

    fn fits_names(&self, view: &View) -> bool {
        let filters = &self.filters;
        let slashed = format!("/{}", view.name);
        let ancestor = !filters.has("ancestor")
            || self.ancestors.contains(&view.image_id)
            || filters.get("ancestor").contains(&view.image_name);
        let id =
            !filters.has("id") || filters.get("id").iter().any(|prefix| view.id.starts_with(prefix.as_str()));
        id && ancestor
            && filters.matches("name", &[&view.name, &slashed])
            && filters.labels_match(view.config.labels.as_ref())
            && !filters.says_yes("is-task")
    }

    fn fits_state(&self, view: &View) -> bool {
        let health = view.health.as_ref().map_or("none", |health| health.status.as_str());
        let exited = self.exited.is_empty()
            || matches!(&view.state, State::Exited(end) if self.exited.contains(&end.code));
        self.filters.exact("status", view::status_word(&view.state))
            && self.filters.exact("health", health)
            && exited
    }

    fn fits_places(&self, view: &View) -> bool {
        let filters = &self.filters;
        let network = !filters.has("network")
            || filters.get("network").iter().any(|wanted| {
                view.networks.iter().any(|(name, endpoint)| {
                    name == wanted || (!wanted.is_empty() && endpoint.network_id.starts_with(wanted.as_str()))
                })
            });
        let volume = !filters.has("volume")
            || filters.get("volume").iter().any(|wanted| {
                view.mounts
                    .iter()
                    .any(|mount| [&mount.name, &mount.destination, &mount.source].contains(&wanted))
            });
        network && volume && self.fits_ports(view, "publish") && self.fits_ports(view, "expose")
    }

    fn fits_ports(&self, view: &View, key: &str) -> bool {
        let mut wanted =
            self.ports.iter().filter(|(kind, _)| *kind == key).map(|(_, range)| range).peekable();
        if wanted.peek().is_none() {
            return true;
        }
        let exposed = view.config.exposed_ports.iter().flat_map(|ports| ports.keys());
        let published: Vec<(u16, String)> = view::ports(view)
            .into_iter()
            .filter(|port| port.public_port != 0)
            .map(|p| (p.public_port, p.kind))
            .collect();
        let exposed: Vec<(u16, String)> = exposed
            .filter_map(|name| {
                let (number, kind) = name.split_once('/').unwrap_or((name, "tcp"));
                Some((number.parse().ok()?, kind.to_owned()))
            })
            .collect();
        let ports = if key == "publish" { published } else { exposed };
        wanted.any(|range| ports.iter().any(|(port, kind)| range.holds(*port, kind)))
    }

    fn fits_age(&self, view: &View) -> bool {
        self.before.as_ref().is_none_or(|other| view.created_ns < other.created_ns)
            && self.since.as_ref().is_none_or(|other| view.created_ns > other.created_ns)
    }
}

/// `80`, `80/udp`, `8000-8010/tcp`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PortRange {
    first: u16,
    last: u16,
    kind: String,
}

impl PortRange {
    fn parse(text: &str) -> Option<Self> {
        let (numbers, kind) = text.split_once('/').unwrap_or((text, "tcp"));
        let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
        Some(Self { first: first.parse().ok()?, last: last.parse().ok()?, kind: kind.to_owned() })
    }

    fn holds(&self, port: u16, kind: &str) -> bool {
        (self.first..=self.last).contains(&port) && self.kind == kind
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_ranges_are_read() {
        let range = PortRange::parse("8000-8010/udp").unwrap();
        assert!(range.holds(8005, "udp"));
        assert!(!range.holds(8005, "tcp"));
        assert!(!range.holds(8011, "udp"));
        assert!(PortRange::parse("80").unwrap().holds(80, "tcp"));
        assert_eq!(PortRange::parse("x"), None);
    }
}
