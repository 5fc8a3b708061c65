//! Images in and out of the server: archives, commits, pushes, and what is told of them.

use berth_api::docker::events::EventMessage;
use berth_api::docker::images::{HistoryItem, ImageInspect, Progress as Line};
use berth_image::Digest;
use berth_image::pack::{Head, Writer};
use bollard_stubs::models;
use bytes::Bytes;
use serde_json::{Value, json};

use super::Server;
use super::cli::{docker, docker_with, fine, is_there};

const TAR: &str = "application/x-tar";

/// An archive of plain files.
fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes);
    for (path, content) in files {
        let size = content.len() as u64;
        writer
            .head(&Head { mode: 0o644, size, ..Head::new(b'0', path.as_bytes().to_vec()) })
            .and_then(|()| writer.data(content))
            .and_then(|()| writer.end_data(size))
            .unwrap();
    }
    writer.finish().unwrap();
    bytes
}

/// What `docker save` gives of an image called `name` with one file per layer.
fn archive(name: &str, contents: &[&[u8]]) -> Vec<u8> {
    let layers: Vec<Vec<u8>> = contents.iter().map(|content| tar(&[("file", content)])).collect();
    let ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    let steps: Vec<Value> = ids.iter().map(|_| json!({ "created_by": "step" })).collect();
    let config = json!({ "architecture": "amd64", "os": "linux", "created": "2024-01-02T03:04:05Z",
        "config": { "Labels": { "kind": "demo" } },
        "rootfs": { "type": "layers", "diff_ids": ids }, "history": steps })
    .to_string();
    let paths: Vec<String> = (0..layers.len()).map(|number| format!("{number}.tar")).collect();
    let index = json!([{ "Config": "c.json", "RepoTags": [name], "Layers": paths }]).to_string();
    let mut files: Vec<(&str, &[u8])> =
        paths.iter().map(String::as_str).zip(layers.iter().map(Vec::as_slice)).collect();
    files.push(("c.json", config.as_bytes()));
    files.push(("manifest.json", index.as_bytes()));
    tar(&files)
}

/// The lines of a progress stream.
fn lines(bytes: &[u8]) -> Vec<Line> {
    serde_json::Deserializer::from_slice(bytes).into_iter().map(|line| line.unwrap()).collect()
}

async fn load(server: &Server, path: &str, archive: Vec<u8>) -> Vec<Line> {
    lines(&server.client().post_bytes(path, TAR, archive.into()).await.unwrap())
}

fn said(lines: &[Line]) -> Vec<&str> {
    lines.iter().map(|line| line.stream.trim_end()).filter(|text| !text.is_empty()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_goes_out_and_comes_in_again_unchanged() {
    let server = Server::start();
    // Longer than what is read of a body before a handler asks for it.
    let bytes = archive("demo:1", &[&vec![7; 300_000], b"top"]);
    let told = load(&server, "/images/load?quiet=0", bytes).await;
    assert_eq!(said(&told), ["Loaded image: demo:1"]);
    let steps: Vec<&Line> = told.iter().filter(|line| line.status == "Loading layer").collect();
    assert!(steps.len() >= 2 && steps.iter().all(|line| line.id.len() == 12), "{steps:?}");
    let before: ImageInspect = server.client().get("/images/demo:1/json").await.unwrap();
    let saved = server.client().get_bytes("/images/demo/get").await.unwrap();
    server.client().delete("/images/demo:1").await.unwrap();
    assert_eq!(said(&load(&server, "/images/load", saved.to_vec()).await), ["Loaded image: demo:1"]);
    let after: ImageInspect = server.client().get("/images/demo:1/json").await.unwrap();
    assert_eq!((before.id, before.size, before.root_fs), (after.id, after.size, after.root_fs));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_images_fit_one_archive_and_ids_bring_no_names() {
    let server = Server::start();
    load(&server, "/images/load", archive("one:1", &[b"1"])).await;
    load(&server, "/images/load", archive("two:2", &[b"2"])).await;
    let two: ImageInspect = server.client().get("/images/two:2/json").await.unwrap();
    let path = format!("/images/get?names=one:1&names={}", two.id);
    let saved = server.client().get_bytes(&path).await.unwrap();
    for name in ["one:1", "two:2"] {
        server.client().delete(&format!("/images/{name}")).await.unwrap();
    }
    let told = load(&server, "/images/load", saved.to_vec()).await;
    assert_eq!(said(&told), ["Loaded image: one:1".to_owned(), format!("Loaded image ID: {}", two.id)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_is_taken_over_is_told() {
    let server = Server::start();
    load(&server, "/images/load", archive("demo:1", &[b"old"])).await;
    let old: ImageInspect = server.client().get("/images/demo:1/json").await.unwrap();
    let told = load(&server, "/images/load", archive("demo:1", &[b"new"])).await;
    let taken =
        format!("The image demo:1 already exists, renaming the old one with ID {} to empty string", old.id);
    assert_eq!(said(&told), [taken.as_str(), "Loaded image: demo:1"]);
    let dangling: Vec<Value> =
        server.client().get("/images/json?filters={%22dangling%22:[%22true%22]}").await.unwrap();
    assert_eq!(dangling[0]["Id"], old.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_archive_of_images_ends_the_stream_with_an_error() {
    let server = Server::start();
    for bytes in [b"no archive".to_vec(), tar(&[("a", b"b")]), Vec::new()] {
        let told = load(&server, "/images/load", bytes).await;
        let last = told.last().unwrap();
        assert!(
            !last.error.is_empty() && last.error_detail.as_ref().unwrap().message == last.error,
            "{told:?}"
        );
    }
    let mut half = archive("demo:1", &[&vec![1; 100_000]]);
    half.truncate(60_000);
    assert!(!load(&server, "/images/load", half).await.last().unwrap().error.is_empty());
    assert_eq!(server.client().probe(hyper::Method::GET, "/images/demo:1/json").await.unwrap().0, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_tells_the_size_of_each_layer() {
    let server = Server::start();
    load(&server, "/images/load", archive("demo:1", &[&[7; 3000], &[8; 40]])).await;
    let items: Vec<HistoryItem> = server.client().get("/images/demo:1/history").await.unwrap();
    assert_eq!(items.iter().map(|item| item.size).collect::<Vec<_>>(), [40, 3000]);
    assert_eq!(items[0].tags.as_deref(), Some(&["demo:1".to_owned()][..]));
    assert_eq!(items[1].id, "<missing>");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_system_is_imported_with_what_was_said_of_it() {
    let server = Server::start();
    let path = "/images/create?fromSrc=-&repo=made&tag=2&message=why&changes=ENV%20A%3D1&changes=CMD%20%5B%22x%22%5D";
    let told = lines(&server.client().post_bytes(path, TAR, tar(&[("f", b"x")]).into()).await.unwrap());
    let image: ImageInspect = server.client().get("/images/made:2/json").await.unwrap();
    assert_eq!(told[0].status, image.id);
    assert_eq!((image.comment.as_str(), image.os.as_str()), ("why", "linux"));
    assert_eq!(image.config.env, Some(vec!["A=1".to_owned()]));
    assert_eq!(image.config.cmd, Some(vec!["x".to_owned()]));
    assert_eq!(image.root_fs.layers.map(|layers| layers.len()), Some(1));
    let url = "/images/create?fromSrc=http://example.test/x.tar";
    assert_eq!(server.client().post_empty(url).await.unwrap_err().status(), Some(501));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_becomes_an_image_of_its_configuration() {
    let server = Server::start();
    let body = json!({ "Image": "alpine", "Cmd": ["sleep", "9"], "Env": ["B=2"], "Labels": { "l": "1" } });
    server.client().post::<Value>("/containers/create?name=box", &body).await.unwrap();
    let path = "/commit?container=box&repo=made&tag=1&author=me&comment=why&changes=ENV%20A%3D1";
    let made: models::IdResponse = server.client().post(path, &Value::Null).await.unwrap();
    let image: ImageInspect = server.client().get("/images/made:1/json").await.unwrap();
    assert_eq!(made.id, image.id);
    assert_eq!((image.author.as_str(), image.comment.as_str()), ("me", "why"));
    let config = image.config;
    assert_eq!(config.cmd, Some(vec!["sleep".to_owned(), "9".to_owned()]));
    assert!(config.env.unwrap().iter().any(|line| line == "A=1"));
    assert_eq!(config.labels.unwrap()["l"], "1");
    // Nothing was written, so there is no new layer.
    assert_eq!(image.root_fs.layers, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_of_nothing_is_told_in_the_recorded_words() {
    let server = Server::start();
    let mut stream = server.client().post_stream("/images/nope/push").await.unwrap();
    let opening: Line = stream.next_json().await.unwrap().unwrap();
    assert_eq!(opening.status, "The push refers to repository [docker.io/library/nope]");
    let end: Line = stream.next_json().await.unwrap().unwrap();
    assert_eq!(end.error, "An image does not exist locally with the tag: nope");
    assert!(stream.next_json::<Line>().await.unwrap().is_none());
    let bytes = server.client().post_bytes("/images/alpine/push?tag=9", TAR, Bytes::new()).await.unwrap();
    assert_eq!(lines(&bytes)[1].error, "tag does not exist: alpine:9");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_does_not_answer_is_named() {
    let server = Server::start();
    for path in ["/images/search?term=127.0.0.1:1/x", "/distribution/127.0.0.1:1/x/json"] {
        let (status, body) = server.client().probe(hyper::Method::GET, path).await.unwrap();
        let text = String::from_utf8_lossy(&body).into_owned();
        assert!(status == 500 && text.contains("127.0.0.1:1"), "{path}: {status} {text}");
    }
    let auth = json!({ "username": "u", "password": "p", "serveraddress": "127.0.0.1:1" });
    let error = server.client().post::<Value>("/auth", &auth).await.unwrap_err();
    assert!(error.to_string().contains("login attempt to 127.0.0.1:1 failed"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_tell_of_what_happens_to_them() {
    let server = Server::start();
    let mut events = server.client().stream("/events?filters={%22type%22:[%22image%22]}").await.unwrap();
    load(&server, "/images/load", archive("demo:1", &[b"x"])).await;
    server.client().post_empty("/images/demo:1/tag?repo=other&tag=2").await.unwrap();
    server.client().get_bytes("/images/other:2/get").await.unwrap();
    server.client().delete("/images/other:2").await.unwrap();
    server.client().delete("/images/demo:1").await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 6 {
        let event: EventMessage = events.next_json().await.unwrap().unwrap();
        assert_eq!(event.actor.attributes["kind"], "demo", "labels are told");
        let name = event.actor.attributes["name"].clone();
        seen.push((event.action, if name.starts_with("sha256:") { "ID".to_owned() } else { name }));
    }
    let seen: Vec<(&str, &str)> =
        seen.iter().map(|(action, name)| (action.as_str(), name.as_str())).collect();
    assert_eq!(
        seen,
        [
            ("load", "ID"),
            ("tag", "other:2"),
            ("save", "ID"),
            ("untag", "ID"),
            ("untag", "ID"),
            ("delete", "ID")
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_moves_images_through_pipes() {
    if !is_there() {
        return;
    }
    let server = Server::start();
    let loaded = docker_with(&server, &["load"], &archive("demo:1", &[&vec![7; 200_000]])).await;
    assert_eq!((loaded.code, loaded.stdout.as_str()), (0, "Loaded image: demo:1\n"), "{}", loaded.stderr);
    let file = server.socket.with_extension("tar");
    fine(&server, &["save", "-o", file.to_str().unwrap(), "demo:1", "alpine"]).await;
    fine(&server, &["rmi", "demo:1"]).await;
    let again = fine(&server, &["load", "-i", file.to_str().unwrap()]).await;
    assert!(again.contains("Loaded image: demo:1"), "{again}");
    let id =
        docker_with(&server, &["import", "-c", "CMD x", "-", "made:1"], &tar(&[("f", b"x")])).await.stdout;
    assert!(id.starts_with("sha256:"), "{id}");
    assert_eq!(fine(&server, &["history", "-q", "--no-trunc", "made:1"]).await, id);
    fine(&server, &["create", "--name", "box", "demo:1", "x"]).await;
    let committed = fine(&server, &["commit", "-m", "why", "box", "made:2"]).await;
    assert_eq!(fine(&server, &["images", "-q", "--no-trunc", "made:2"]).await, committed);
    let push = docker(&server, &["push", "127.0.0.1:1/nope"]).await;
    assert!(push.code == 1 && push.stderr.contains("does not exist locally"), "{}", push.stderr);
}
