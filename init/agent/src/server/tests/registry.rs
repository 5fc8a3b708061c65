//! A registry in memory, as far as pushes, pulls, searches and log-ins need one, and the server in front of it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use berth_api::docker::images::{ImageInspect, Progress as Line};
use berth_image::Digest;
use bollard_stubs::models;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use super::Server;
use super::cli::{docker, docker_with, fine, is_there};
use super::images::archive;

/// What the registry holds, by path.
#[derive(Default)]
struct Content {
    blobs: HashMap<String, Bytes>,
    manifests: HashMap<String, Bytes>,
}

/// The registry, and the server that may talk to it.
struct Site {
    host: String,
    server: Server,
    _content: Arc<Mutex<Content>>,
}

impl Site {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let content = Arc::new(Mutex::new(Content::default()));
        let shared = content.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let content = shared.clone();
                let service = service_fn(move |request| {
                    let content = content.clone();
                    async move { Ok::<_, Infallible>(answer(&content, request).await) }
                });
                let serving = hyper::server::conn::http1::Builder::new();
                tokio::spawn(async move { serving.serve_connection(TokioIo::new(stream), service).await });
            }
        });
        let server = Server::with_registry(&host);
        Self { host, server, _content: content }
    }

    /// Loads an image under a name of this registry.
    async fn load(&self, name: &str, layers: &[&[u8]]) -> String {
        let name = format!("{}/{name}", self.host);
        let bytes = archive(&name, layers);
        self.server.client().post_bytes("/images/load", "application/x-tar", bytes.into()).await.unwrap();
        name
    }
}

fn reply(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    reply
}

async fn answer(content: &Mutex<Content>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
    let mut content = content.lock().unwrap();
    let authorized = parts.headers.get("authorization").is_some_and(|value| value == "Basic bWU6c2VjcmV0");
    match (&parts.method, path) {
        (_, "/v2/") if authorized => reply(StatusCode::OK, "{}"),
        (_, "/v2/") => {
            let mut reply = reply(StatusCode::UNAUTHORIZED, "");
            reply.headers_mut().insert("www-authenticate", "Basic realm=\"x\"".parse().unwrap());
            reply
        }
        (_, "/v1/search") => {
            let hits = json!({ "results": [
                { "name": "few", "star_count": 1, "is_official": false, "description": query },
                { "name": "many", "star_count": 9, "is_official": true, "description": "" },
            ] });
            reply(StatusCode::OK, hits.to_string())
        }
        (&Method::POST, path) if path.ends_with("/uploads/") => {
            let mut reply = reply(StatusCode::ACCEPTED, "");
            reply.headers_mut().insert("location", format!("{path}1").parse().unwrap());
            reply
        }
        (&Method::PUT, path) if path.contains("/uploads/") => {
            let digest = query.strip_prefix("digest=").unwrap().replace("%3A", ":");
            assert_eq!(Digest::of(&body).to_string(), digest);
            content.blobs.insert(digest, body);
            reply(StatusCode::CREATED, "")
        }
        (&Method::PUT, path) => {
            let (repository, _) = path.split_once("/manifests/").unwrap();
            content.manifests.insert(format!("{repository}/manifests/{}", Digest::of(&body)), body.clone());
            content.manifests.insert(path.to_owned(), body);
            reply(StatusCode::CREATED, "")
        }
        (_, path) => {
            let blob = path.rsplit('/').next().and_then(|digest| content.blobs.get(digest)).cloned();
            let found = content.manifests.get(path).cloned().map(|bytes| (bytes, true));
            let Some((bytes, manifest)) = found.or(blob.map(|bytes| (bytes, false))) else {
                return reply(StatusCode::NOT_FOUND, r#"{"errors":[{"message":"manifest unknown"}]}"#);
            };
            let mut reply = reply(StatusCode::OK, bytes);
            if manifest {
                let kind = "application/vnd.oci.image.manifest.v1+json".parse().unwrap();
                reply.headers_mut().insert("content-type", kind);
            }
            reply
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_tells_every_step_in_the_engines_words() {
    let site = Site::start().await;
    let name = site.load("team/app:1", &[&vec![7; 100_000], b"top"]).await;
    let path = format!("/images/{}/team/app/push?tag=1", site.host);
    let bytes = site.server.client().post_bytes(&path, "", Bytes::new()).await.unwrap();
    let lines: Vec<Line> =
        serde_json::Deserializer::from_slice(&bytes).into_iter().map(|line| line.unwrap()).collect();
    assert_eq!(lines[0].status, format!("The push refers to repository [{}/team/app]", site.host));
    for (status, count) in [("Preparing", 2), ("Pushed", 2)] {
        assert_eq!(lines.iter().filter(|line| line.status == status).count(), count, "{lines:?}");
    }
    let [told, aux] = &lines[lines.len() - 2..] else { panic!("{lines:?}") };
    let digest = aux.aux.as_ref().unwrap()["Digest"].as_str().unwrap();
    assert!(told.status.starts_with(&format!("1: digest: {digest} size: ")), "{told:?}");
    let image: ImageInspect = site.server.client().get(&format!("/images/{name}/json")).await.unwrap();
    assert_eq!(image.repo_digests, [format!("{}/team/app@{digest}", site.host)]);
    // What others generate from the interface reads every line.
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        serde_json::from_slice::<models::PushImageInfo>(line).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_pushed_is_described_and_pulled_with_the_same_digest() {
    let site = Site::start().await;
    let name = site.load("app:1", &[b"content"]).await;
    let client = site.server.client();
    client.post_bytes(&format!("/images/{}/app/push?tag=1", site.host), "", Bytes::new()).await.unwrap();
    let before: ImageInspect = client.get(&format!("/images/{name}/json")).await.unwrap();
    let described: Value = client.get(&format!("/distribution/{name}/json")).await.unwrap();
    serde_json::from_value::<models::DistributionInspect>(described.clone()).unwrap();
    let digest = described["Descriptor"]["digest"].as_str().unwrap();
    assert!(before.repo_digests[0].ends_with(digest));
    assert_eq!(described["Platforms"], json!([{ "architecture": "amd64", "os": "linux" }]));
    client.delete(&format!("/images/{name}")).await.unwrap();
    let path = format!("/images/create?fromImage={}/app&tag=1&platform=linux/amd64", site.host);
    client.post_empty(&path).await.unwrap();
    let after: ImageInspect = client.get(&format!("/images/{name}/json")).await.unwrap();
    assert_eq!((before.id, before.repo_digests), (after.id, after.repo_digests));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_search_is_answered_best_first_and_filtered() {
    let site = Site::start().await;
    let client = site.server.client();
    let search = format!("/images/search?term={}/any%20thing", site.host);
    let hits: Value = client.get(&search).await.unwrap();
    serde_json::from_value::<Vec<models::ImageSearchResponseItem>>(hits.clone()).unwrap();
    assert_eq!(hits[0]["name"], format!("{}/many", site.host));
    assert_eq!(hits[1]["description"], "q=any%20thing&n=25");
    for filter in ["{%22stars%22:[%222%22]}", "{%22is-official%22:[%22true%22]}"] {
        let hits: Vec<Value> = client.get(&format!("{search}&filters={filter}")).await.unwrap();
        assert_eq!(hits.len(), 1, "{filter}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_are_really_checked() {
    let site = Site::start().await;
    let auth = |password: &str| json!({ "username": "me", "password": password, "serveraddress": format!("http://{}/v2/", site.host) });
    let good: models::AuthResponse = site.server.client().post("/auth", &auth("secret")).await.unwrap();
    assert_eq!(good.status, "Login Succeeded");
    let bad = site.server.client().post::<Value>("/auth", &auth("wrong")).await.unwrap_err();
    assert_eq!(bad.status(), Some(401));
    assert!(bad.to_string().contains("401 Unauthorized"), "{bad}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_pushes_searches_and_logs_in() {
    if !is_there() {
        return;
    }
    let site = Site::start().await;
    let name = site.load("app:1", &[b"content"]).await;
    let pushed = fine(&site.server, &["push", &name]).await;
    assert!(pushed.contains("Pushed") && pushed.contains("1: digest: sha256:"), "{pushed}");
    assert_eq!(fine(&site.server, &["push", "-q", &name]).await.trim_end(), name);
    fine(&site.server, &["rmi", &name]).await;
    assert_eq!(fine(&site.server, &["pull", "-q", &name]).await.trim_end(), name);
    let term = format!("{}/x", site.host);
    let found = fine(&site.server, &["search", "--format", "{{.Name}}", &term]).await;
    assert_eq!(found, format!("{0}/many\n{0}/few\n", site.host));
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().to_str().unwrap();
    let login = ["--config", config, "login", "-u", "me", "--password-stdin", &site.host];
    let good = docker_with(&site.server, &login, b"secret").await;
    assert!(good.code == 0 && good.stdout.contains("Login Succeeded"), "{}{}", good.stdout, good.stderr);
    let bad = docker_with(&site.server, &login, b"wrong").await;
    assert!(bad.code == 1 && bad.stderr.contains("401"), "{}", bad.stderr);
    // A client that sends much of what is none still gets the answer.
    let file = folder.path().join("junk");
    std::fs::write(&file, vec![7; 8 << 20]).unwrap();
    let junk = docker(&site.server, &["load", "-i", file.to_str().unwrap()]).await;
    assert!(junk.code == 1 && !junk.stderr.contains("connect"), "{}", junk.stderr);
    assert_eq!(docker(&site.server, &["push", "nope:1"]).await.code, 1);
}
