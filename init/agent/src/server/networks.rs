//! Networks.

use berth_api::docker::networks::{Connect, Disconnect, Network, NetworkCreate, NetworkCreated, PruneAnswer};
use hyper::StatusCode;

use super::containers::filters::Filters;
use super::errors::ApiError;
use super::request::Request;
use super::respond;
use super::routes::Answer;
use super::time;

const KNOWN: [&str; 9] = ["dangling", "driver", "id", "label", "name", "scope", "type", "until", "label!"];

/// Names of the networks that are always there.
pub(crate) const PREDEFINED: [&str; 3] = ["bridge", "host", "none"];

pub(crate) async fn list(request: Request) -> Answer {
    let filters = Filters::parse(request.query.get("filters"), &KNOWN)?;
    for kind in filters.get("type") {
        if !matches!(kind.as_str(), "custom" | "builtin") {
            return Err(ApiError::invalid(format!("invalid filter: 'type'='{kind}'")));
        }
    }
    let dangling = filters.boolean("dangling")?;
    let mut networks = request.api.owner.networks().await?;
    networks.retain(|network| fits(network, &filters, dangling));
    // The list names networks; who is in them is told by inspect.
    for network in &mut networks {
        network.containers.clear();
    }
    Ok(respond::ok(&networks))
}

fn fits(network: &Network, filters: &Filters, dangling: Option<bool>) -> bool {
    let builtin = PREDEFINED.contains(&network.name.as_str());
    let kind = filters.exact("type", if builtin { "builtin" } else { "custom" });
    let unused = !builtin && network.containers.is_empty();
    let id = !filters.has("id") || filters.get("id").iter().any(|part| network.id.starts_with(part.as_str()));
    kind && id
        && dangling.is_none_or(|wanted| wanted == unused)
        && filters.matches("name", &[&network.name])
        && filters.exact("driver", &network.driver)
        && filters.exact("scope", &network.scope)
        && filters.labels_match(network.labels.as_ref())
}

/// The network meant by a name, an id or a unique start of an id.
async fn find(request: &Request, name: &str) -> Result<Network, ApiError> {
    let mut networks = request.api.owner.networks().await?;
    let exact = networks.iter().position(|network| network.id == name);
    let exact = exact.or_else(|| networks.iter().position(|network| network.name == name));
    if let Some(index) = exact {
        return Ok(networks.swap_remove(index));
    }
    networks.retain(|network| !name.is_empty() && network.id.starts_with(name));
    match networks.len() {
        0 => Err(ApiError::not_found(format!("network {name} not found"))),
        1 => Ok(networks.swap_remove(0)),
        count => Err(ApiError::invalid(format!(
            "network {name} is ambiguous ({count} matches found on ID prefix)"
        ))),
    }
}

pub(crate) async fn inspect(request: Request, name: &str) -> Answer {
    if let Some(scope) = request.query.text("scope")
        && scope != "local"
    {
        return Err(ApiError::not_found(format!("network {name} not found")));
    }
    Ok(respond::ok(&find(&request, name).await?))
}

pub(crate) async fn create(mut request: Request) -> Answer {
    let mut body: NetworkCreate = request.json().await?;
    if body.name.trim().is_empty() {
        return Err(ApiError::invalid("invalid name: name is empty"));
    }
    if PREDEFINED.contains(&body.name.as_str()) {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            format!("operation is not permitted on predefined {} network ", body.name),
        ));
    }
    if body.driver.is_empty() || body.driver == "default" {
        "bridge".clone_into(&mut body.driver);
    }
    match body.driver.as_str() {
        "bridge" | "macvlan" | "ipvlan" => {}
        "host" | "null" => {
            return Err(ApiError::new(
                StatusCode::FORBIDDEN,
                format!("only one instance of {:?} network is allowed", body.driver),
            ));
        }
        other => return Err(ApiError::not_found(format!("plugin {other:?} not found"))),
    }
    let id = request.api.owner.network_create(body).await?;
    Ok(respond::json(StatusCode::CREATED, &NetworkCreated { id, warning: String::new() }))
}

pub(crate) async fn remove(request: Request, name: &str) -> Answer {
    let network = find(&request, name).await?;
    if PREDEFINED.contains(&network.name.as_str()) {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            format!("{} is a pre-defined network and cannot be removed", network.name),
        ));
    }
    request.api.owner.network_remove(&network.id).await?;
    Ok(respond::empty(StatusCode::NO_CONTENT))
}

pub(crate) async fn connect(mut request: Request, name: &str) -> Answer {
    let body: Connect = request.json().await?;
    let network = find(&request, name).await?;
    let container = request.api.owner.view(&body.container).await?;
    let settings = body.endpoint_config.unwrap_or_default();
    request.api.owner.network_connect(&network.id, &container.id, settings).await?;
    Ok(respond::empty(StatusCode::OK))
}

pub(crate) async fn disconnect(mut request: Request, name: &str) -> Answer {
    let body: Disconnect = request.json().await?;
    let network = find(&request, name).await?;
    let container = match request.api.owner.view(&body.container).await {
        Ok(view) => view.id.clone(),
        // What is left of a container that is gone can be named by its id.
        Err(_) if body.force => body.container.clone(),
        Err(refusal) => return Err(refusal.into()),
    };
    request.api.owner.network_disconnect(&network.id, &container, body.force).await?;
    Ok(respond::empty(StatusCode::OK))
}

pub(crate) async fn prune(request: Request) -> Answer {
    let filters = Filters::parse(request.query.get("filters"), &["until", "label", "label!"])?;
    let until_ns = filters.until_ns(time::now_ns())?;
    let mut deleted = Vec::new();
    for network in request.api.owner.networks().await? {
        let created_ns = time::parse_seconds(&network.created).saturating_mul(1_000_000_000);
        let kept = PREDEFINED.contains(&network.name.as_str())
            || !network.containers.is_empty()
            || until_ns.is_some_and(|until| created_ns > until)
            || !filters.labels_match(network.labels.as_ref());
        // One that came into use meanwhile stays.
        if !kept && request.api.owner.network_remove(&network.id).await.is_ok() {
            deleted.push(network.name);
        }
    }
    Ok(respond::ok(&PruneAnswer { networks_deleted: (!deleted.is_empty()).then_some(deleted) }))
}
