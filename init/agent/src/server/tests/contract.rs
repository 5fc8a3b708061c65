//! Our answers decoded by the models that other clients are generated from.

use bollard_stubs::models;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::Server;

/// Decodes an answer; the error tells the path and the body.
async fn decodes<T: DeserializeOwned>(server: &Server, path: &str) {
    let bytes = server.client().get_bytes(path).await.unwrap();
    if let Err(error) = serde_json::from_slice::<T>(&bytes) {
        panic!("{path}: {error}\n{}", String::from_utf8_lossy(&bytes));
    }
}

/// As [`decodes`], of the answer to a `POST` of JSON.
async fn posted<T: DeserializeOwned>(server: &Server, path: &str, body: Value) {
    let value: Value = server.client().post(path, &body).await.unwrap();
    if let Err(error) = serde_json::from_value::<T>(value.clone()) {
        panic!("{path}: {error}\n{value}");
    }
}

#[tokio::test]
async fn answers_about_containers_fit_the_models() {
    let server = Server::start();
    let body = json!({ "Image": "alpine", "Cmd": ["sleep", "9"], "ExposedPorts": { "80/tcp": {} },
        "HostConfig": { "PortBindings": { "80/tcp": [{ "HostPort": "8080" }] } } });
    posted::<models::ContainerCreateResponse>(&server, "/containers/create?name=web", body).await;
    server.client().post_empty("/containers/web/start").await.unwrap();
    decodes::<Vec<models::ContainerSummary>>(&server, "/containers/json?all=1&size=1").await;
    decodes::<models::ContainerInspectResponse>(&server, "/containers/web/json?size=1").await;
    decodes::<models::ContainerStatsResponse>(&server, "/containers/web/stats?stream=0&one-shot=1").await;
    posted::<models::IdResponse>(&server, "/containers/web/exec", json!({ "Cmd": ["echo"] })).await;
    server.client().post_empty("/containers/web/stop").await.unwrap();
    posted::<models::ContainerWaitResponse>(&server, "/containers/web/wait", json!({})).await;
    posted::<models::ContainerPruneResponse>(&server, "/containers/prune", json!({})).await;
}

#[tokio::test]
async fn an_exec_session_fits_its_model() {
    let server = Server::start();
    let client = server.client();
    let body = json!({ "Image": "alpine", "Cmd": ["sleep", "9"] });
    client.post::<Value>("/containers/create?name=web", &body).await.unwrap();
    client.post_empty("/containers/web/start").await.unwrap();
    let made: Value = client.post("/containers/web/exec", &json!({ "Cmd": ["echo", "x"] })).await.unwrap();
    let path = format!("/exec/{}/json", made["Id"].as_str().unwrap());
    decodes::<models::ExecInspectResponse>(&server, &path).await;
}

#[tokio::test]
async fn answers_about_images_fit_the_models() {
    let server = Server::start();
    decodes::<Vec<models::ImageSummary>>(&server, "/images/json").await;
    decodes::<models::ImageInspect>(&server, "/images/alpine/json").await;
    decodes::<Vec<models::ImageHistoryResponseItem>>(&server, "/images/alpine/history").await;
    posted::<models::ImagePruneResponse>(&server, "/images/prune", json!({})).await;
    let deleted = server.client().delete("/images/alpine").await.unwrap();
    let deleted: Vec<models::ImageDeleteResponseItem> = serde_json::from_slice(&deleted).unwrap();
    assert_eq!(deleted[0].untagged.as_deref(), Some("alpine:latest"));
}

#[tokio::test]
async fn answers_about_networks_and_volumes_fit_the_models() {
    let server = Server::start();
    posted::<models::NetworkCreateResponse>(&server, "/networks/create", json!({ "Name": "front" })).await;
    decodes::<Vec<models::NetworkSummary>>(&server, "/networks").await;
    decodes::<models::NetworkInspect>(&server, "/networks/front").await;
    posted::<models::NetworkPruneResponse>(&server, "/networks/prune", json!({})).await;
    posted::<models::Volume>(&server, "/volumes/create", json!({ "Name": "data" })).await;
    decodes::<models::VolumeListResponse>(&server, "/volumes").await;
    decodes::<models::Volume>(&server, "/volumes/data").await;
    posted::<models::VolumePruneResponse>(&server, "/volumes/prune?filters={%22all%22:[%221%22]}", json!({}))
        .await;
}

#[tokio::test]
async fn answers_about_the_system_fit_the_models() {
    let server = Server::start();
    decodes::<models::SystemVersion>(&server, "/version").await;
    decodes::<models::SystemInfo>(&server, "/info").await;
    decodes::<models::SystemDataUsageResponse>(&server, "/system/df").await;
    let mut events = server.client().stream("/events").await.unwrap();
    let body = json!({ "Image": "alpine", "Cmd": ["exit", "0"] });
    server.client().post::<Value>("/containers/create", &body).await.unwrap();
    let event: models::EventMessage = events.next_json().await.unwrap().unwrap();
    assert_eq!(event.action.as_deref(), Some("create"));
    let error = server.client().probe(hyper::Method::GET, "/nosuch").await.unwrap().1;
    serde_json::from_slice::<models::ErrorResponse>(&error).unwrap();
}
