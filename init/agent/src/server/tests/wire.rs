//! What goes over the wire: heads, frames, early flushes.

use std::time::Duration;

use berth_api::client::{FrameStream, read_frame};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::Server;

async fn made(server: &Server, body: Value) -> String {
    let answer: Value = server.client().post("/containers/create", &body).await.unwrap();
    answer["Id"].as_str().unwrap().to_owned()
}

/// Sends raw bytes; answers with what comes until the peer closes or `marker` was seen.
async fn raw(server: &Server, request: &str, marker: &str) -> String {
    let mut stream = UnixStream::connect(&server.socket).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = Vec::new();
    let read = async {
        while !String::from_utf8_lossy(&text).contains(marker) {
            if stream.read_buf(&mut text).await.unwrap() == 0 {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), read).await.expect("no answer");
    String::from_utf8_lossy(&text).into_owned()
}

#[tokio::test]
async fn every_answer_carries_the_engines_headers() {
    let server = Server::start();
    for path in ["/_ping", "/v1.40/_ping", "/nosuch", "/v1.99/version"] {
        let head = raw(&server, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"), "\r\n\r\n").await;
        let head = head.to_ascii_lowercase();
        for header in
            ["api-version: 1.51", "docker-experimental: false", "ostype: linux", "server: docker/28"]
        {
            assert!(head.contains(header), "{path}: {header} in {head}");
        }
    }
}

#[tokio::test]
async fn a_head_request_for_ping_has_no_body() {
    let server = Server::start();
    let request = "HEAD /_ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answer = raw(&server, request, "never").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("builder-version: 1"));
}

/// `docker run` asks to wait, and starts the container only when the head of the answer is there.
#[tokio::test]
async fn the_head_of_a_wait_comes_before_the_container_ends() {
    let server = Server::start();
    let client = server.client();
    let id = made(&server, json!({ "Image": "alpine", "Cmd": ["exit", "5"] })).await;
    let mut wait = client.post_stream(&format!("/containers/{id}/wait?condition=next-exit")).await.unwrap();
    client.post_empty(&format!("/containers/{id}/start")).await.unwrap();
    let end: Value = wait.next_json().await.unwrap().unwrap();
    assert_eq!(end, json!({ "StatusCode": 5 }));
}

#[tokio::test]
async fn the_head_of_events_comes_before_the_first_event() {
    let server = Server::start();
    let mut events = server.client().stream("/events").await.unwrap();
    made(&server, json!({ "Image": "alpine", "Cmd": ["exit", "0"], "Labels": { "k": "v" } })).await;
    let event: Value = events.next_json().await.unwrap().unwrap();
    assert_eq!((event["Type"].as_str(), event["Action"].as_str()), (Some("container"), Some("create")));
    assert_eq!(event["Actor"]["Attributes"]["k"], "v");
}

#[tokio::test]
async fn events_of_the_past_are_replayed_until_the_time_given() {
    let server = Server::start();
    made(&server, json!({ "Image": "alpine", "Cmd": ["exit", "0"] })).await;
    let until = super::super::time::now_ns() / 1_000_000_000 + 1;
    let mut events = server.client().stream(&format!("/events?since=1&until={until}")).await.unwrap();
    assert!(events.next_json::<Value>().await.unwrap().is_some());
    assert!(events.next_json::<Value>().await.unwrap().is_none());
}

#[tokio::test]
async fn a_hijacked_attach_carries_frames_out_and_input_in() {
    let server = Server::start();
    let client = server.client();
    let body = json!({ "Image": "alpine", "Cmd": ["cat"], "OpenStdin": true, "StdinOnce": true });
    let id = made(&server, body).await;
    let path = format!("/containers/{id}/attach?stream=1&stdin=1&stdout=1");
    let mut attached = client.hijack(&path, &()).await.unwrap();
    assert!(attached.is_multiplexed());
    client.post_empty(&format!("/containers/{id}/start")).await.unwrap();
    attached.write_all(b"one").await.unwrap();
    let frame = read_frame(&mut attached).await.unwrap().unwrap();
    assert_eq!((frame.stream, &frame.bytes[..]), (FrameStream::Stdout, &b"one"[..]));
    attached.write_all(b"two").await.unwrap();
    attached.shutdown().await.unwrap();
    // The end of input is not the end of output.
    assert_eq!(&read_frame(&mut attached).await.unwrap().unwrap().bytes[..], b"two");
    assert_eq!(read_frame(&mut attached).await.unwrap(), None);
}

#[tokio::test]
async fn clients_before_1_42_and_terminals_get_raw_streams() {
    let server = Server::start();
    let client = server.client();
    let id = made(&server, json!({ "Image": "alpine", "Cmd": ["sleep"], "Tty": true })).await;
    let attach = async |version: &str| {
        let path = format!("{version}/containers/{id}/attach?stream=1&stdout=1");
        client.hijack(&path, &()).await.unwrap().content_type().to_owned()
    };
    assert_eq!(attach("/v1.51").await, "application/vnd.docker.raw-stream");
    let id = made(&server, json!({ "Image": "alpine", "Cmd": ["sleep"] })).await;
    let path = |version: &str| format!("{version}/containers/{id}/attach?stream=1&stdout=1");
    let old = client.hijack(&path("/v1.41"), &()).await.unwrap();
    assert_eq!(old.content_type(), "application/vnd.docker.raw-stream");
    let new = client.hijack(&path("/v1.42"), &()).await.unwrap();
    assert_eq!(new.content_type(), "application/vnd.docker.multiplexed-stream");
}

#[tokio::test]
async fn an_attach_that_fails_is_an_ordinary_error() {
    let server = Server::start();
    let error = server.client().hijack("/containers/nope/attach?stream=1", &()).await.err().unwrap();
    assert_eq!(error.status(), Some(404));
}

#[tokio::test]
async fn a_body_that_is_too_long_is_refused() {
    let server = Server::start();
    let long = "x".repeat(super::super::request::MAX_JSON_BYTES + 1);
    let error =
        server.client().post::<Value>("/containers/create", &json!({ "Image": long })).await.unwrap_err();
    assert_eq!(error.status(), Some(413), "{error}");
}

#[tokio::test]
async fn text_where_json_is_wanted_is_refused_in_docker_words() {
    let server = Server::start();
    let request = "POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n\
                   Content-Length: 2\r\nConnection: close\r\n\r\n{}";
    let answer = raw(&server, request, "never").await;
    assert!(answer.starts_with("HTTP/1.1 400"));
    assert!(answer.contains(
        "unsupported Content-Type header (application/x-www-form-urlencoded): must be 'application/json'"
    ));
}
