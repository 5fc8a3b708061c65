//! Random requests against every route: each gets an answer, none a surprise, and the server is well afterwards.

use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::Server;

/// Requests of a run.
const REQUESTS: usize = 1500;
/// An answer that has not come by then belongs to a stream, which stays open.
const PATIENCE: Duration = Duration::from_millis(200);

/// A small generator of random numbers (xorshift), the same for the same seed.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % sides as u64).unwrap()
    }

    fn pick<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.throw(list.len())]
    }
}

const WORDS: [&str; 60] = [
    "containers",
    "images",
    "networks",
    "volumes",
    "exec",
    "system",
    "host",
    "v1",
    "json",
    "create",
    "prune",
    "start",
    "stop",
    "restart",
    "kill",
    "pause",
    "unpause",
    "rename",
    "update",
    "wait",
    "resize",
    "attach",
    "logs",
    "top",
    "stats",
    "archive",
    "export",
    "changes",
    "ws",
    "tag",
    "history",
    "get",
    "load",
    "search",
    "push",
    "connect",
    "disconnect",
    "df",
    "events",
    "info",
    "version",
    "_ping",
    "auth",
    "plugins",
    "swarm",
    "session",
    "build",
    "commit",
    "distribution",
    "status",
    "config",
    "e1",
    "alpine",
    "bridge",
    "%00",
    "%2e%2e",
    "a%2Fb",
    "ünïcode",
    "x",
    "%",
];

const ROUTES: [&str; 14] = [
    "/containers/e1/",
    "/containers/",
    "/images/alpine/",
    "/images/",
    "/networks/bridge/",
    "/networks/",
    "/volumes/x/",
    "/volumes/",
    "/exec/e1/",
    "/system/",
    "/host/v1/",
    "/v1.51/",
    "/v1.24/containers/e1/",
    "/",
];

const QUERY: [&str; 28] = [
    "all=1",
    "limit=-1",
    "limit=99999999999999999999",
    "filters={",
    "filters=[]",
    "filters={\"status\":[\"x\"]}",
    "filters={\"name\":[\"((((\"]}",
    "filters={\"until\":[\"x\"]}",
    "filters={\"label\":{\"a\":true}}",
    "t=-1",
    "t=x",
    "signal=FOO",
    "signal=9",
    "name=a%20b",
    "name=ok",
    "condition=removed",
    "h=1&w=1",
    "h=-1&w=99999999999",
    "stdout=1",
    "tail=x",
    "since=1e9",
    "until=-5",
    "stream=0",
    "one-shot=1",
    "repo=A&tag=:",
    "fromImage=A%20B",
    "ps_args=-o",
    "size=1",
];

const BODIES: [&str; 12] = [
    "",
    "{}",
    "[]",
    "null",
    "{",
    "\u{0}\u{1}",
    "{\"Image\":\"alpine\"}",
    "{\"Image\":7}",
    "{\"Cmd\":{\"a\":1}}",
    "{\"Image\":\"alpine\",\"HostConfig\":{\"Memory\":-1,\"Binds\":[\":::\",\"\"]}}",
    "{\"Name\":\"\u{7f}\",\"Driver\":\"bridge\",\"IPAM\":{\"Config\":[{\"Subnet\":\"x\"}]}}",
    "{\"Image\":\"alpine\",\"HostConfig\":{\"PortBindings\":{\"/\":null,\"80\":[{}]},\"Mounts\":[{}]}}",
];

fn request(dice: &mut Dice) -> String {
    let method = dice.pick(&["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS"]);
    let mut path = dice.pick(&ROUTES).to_owned();
    for _ in 0..dice.throw(3) {
        path.push_str(dice.pick(&WORDS));
        path.push('/');
    }
    path.push_str(dice.pick(&WORDS));
    path.push('?');
    for _ in 0..dice.throw(3) {
        path.push_str(dice.pick(&QUERY));
        path.push('&');
    }
    // What ends the test program itself is not asked for.
    let path = path.replace("agent/crash", "agent").replace(' ', "%20").replace('"', "%22");
    let body = dice.pick(&BODIES);
    let kind = dice.pick(&[
        "application/json",
        "application/json; charset=utf-8",
        "text/plain",
        "application/x-tar",
    ]);
    let upgrade =
        if dice.throw(8) == 0 { "Connection: Upgrade\r\nUpgrade: tcp\r\n" } else { "Connection: close\r\n" };
    format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{upgrade}\r\n{body}",
        body.len()
    )
}

/// The status of the answer; none when it is a stream that stays open.
async fn status(server: &Server, request: &str) -> Option<u16> {
    let mut stream = UnixStream::connect(&server.socket).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = async {
        while !answer.windows(4).any(|part| part == b"\r\n\r\n") {
            if stream.read_buf(&mut answer).await.unwrap() == 0 {
                break;
            }
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, read).await.is_ok();
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    assert!(status.is_some() || !in_time, "no answer to {request:?}: {text:?}");
    status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_requests_get_declared_answers() {
    let server = Server::start();
    let client = server.client();
    let body = json!({ "Image": "alpine", "Cmd": ["sleep", "9"] });
    client.post::<Value>("/containers/create?name=e1", &body).await.unwrap();
    let seed = 0x5eed_0001_u64;
    let mut dice = Dice(seed);
    for number in 0..REQUESTS {
        let request = request(&mut dice);
        let status = status(&server, &request).await;
        let declared = status.is_none_or(|status| status < 500 || matches!(status, 500 | 501 | 503));
        assert!(declared, "seed {seed:#x}, request {number}: {status:?} to {request:?}");
    }
    assert_eq!(client.probe(Method::GET, "/_ping").await.unwrap().0, 200);
    let (status, list) = client.probe(Method::GET, "/containers/json?all=1").await.unwrap();
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&list));
}
