//! The recorded bad requests: method, path, status and text of a real engine's answers.

use hyper::Method;
use serde_json::{Value, json};

use super::Server;

const CREATE: &str = "/containers/create";

/// A request with a body, where the recording does not tell it.
struct Case {
    method: &'static str,
    path: &'static str,
    body: Option<Value>,
    status: u16,
    /// Message of the error; empty where only the status counts. `E1` and `E2` stand for the ids.
    message: &'static str,
}

const fn case(
    method: &'static str,
    path: &'static str,
    body: Option<Value>,
    status: u16,
    message: &'static str,
) -> Case {
    Case { method, path, body, status, message }
}

/// The requests of `errors.txt`, with the bodies that led to the answers. `e1` is created, `e2` runs.
#[allow(clippy::too_many_lines, reason = "a table")]
fn cases() -> Vec<Case> {
    let image = |more: Value| {
        let mut body = json!({ "Image": "alpine" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Some(body)
    };
    let host = |host: Value| image(json!({ "HostConfig": host }));
    vec![
        case(
            "GET",
            "/v1.99/version",
            None,
            400,
            "client version 1.99 is too new. Maximum supported API version is 1.51",
        ),
        case(
            "GET",
            "/v1.10/version",
            None,
            400,
            "client version 1.10 is too old. Minimum supported API version is 1.24, please upgrade your client to a \
             newer version",
        ),
        case("GET", "/nosuch", None, 404, "page not found"),
        case("GET", "/containers/nope/json", None, 404, "No such container: nope"),
        case("POST", CREATE, None, 400, "invalid JSON: got EOF while reading request body"),
        case("POST", CREATE, Some(json!({})), 400, "config cannot be empty in order to create a container"),
        case("POST", CREATE, Some(json!({ "Image": "nope:1" })), 404, "No such image: nope:1"),
        case(
            "POST",
            "/containers/create?name=e1",
            image(json!({})),
            409,
            "Conflict. The container name \"/e1\" is already in use by container \"E1\". You have to remove (or \
             rename) that container to be able to reuse that name.",
        ),
        case(
            "POST",
            "/containers/create?name=a%20b",
            image(json!({})),
            400,
            "Invalid container name (a b), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed",
        ),
        case(
            "POST",
            CREATE,
            host(json!({ "AutoRemove": true, "RestartPolicy": { "Name": "always" } })),
            400,
            "can't create 'AutoRemove' container with restart policy",
        ),
        case(
            "POST",
            CREATE,
            host(json!({ "Binds": ["/a:b"] })),
            500,
            "invalid volume specification: '/a:b': invalid mount config for type \"bind\": invalid mount path: 'b' \
             mount path must be absolute",
        ),
        case("POST", CREATE, host(json!({ "Memory": 1 })), 400, "Minimum memory limit allowed is 6MB"),
        case("POST", CREATE, image(json!({ "Env": ["=x"] })), 400, "invalid environment variable: =x"),
        case(
            "POST",
            CREATE,
            host(json!({ "CapAdd": ["FOO"] })),
            400,
            "invalid CapAdd: unknown capability: \"CAP_FOO\"",
        ),
        case(
            "POST",
            CREATE,
            host(json!({ "PortBindings": { "99999/tcp": [] } })),
            400,
            "invalid port specification: \"99999\"",
        ),
        case(
            "POST",
            CREATE,
            host(json!({ "Mounts": [{ "Type": "bind", "Source": "/nosuch", "Target": "/m" }] })),
            400,
            "invalid mount config for type \"bind\": bind source path does not exist: /nosuch",
        ),
        case(
            "POST",
            CREATE,
            host(json!({ "Binds": ["/tmp:/a", "/tmp:/a"] })),
            400,
            "Duplicate mount point: /a",
        ),
        case(
            "POST",
            CREATE,
            image(json!({ "HostConfig": { "NetworkMode": "bridge" },
                "NetworkingConfig": { "EndpointsConfig": { "bridge": { "Aliases": ["x"] } } } })),
            400,
            "invalid config for network bridge: invalid endpoint settings:\nnetwork-scoped alias is supported only \
             for containers in user defined networks",
        ),
        case("POST", "/containers/e2/start", None, 304, ""),
        case("POST", "/containers/nope/start", None, 404, "No such container: nope"),
        case("POST", "/containers/e1/stop", None, 304, ""),
        case(
            "POST",
            "/containers/e1/kill",
            None,
            409,
            "cannot kill container: e1: container E1 is not running",
        ),
        case(
            "POST",
            "/containers/e2/kill?signal=FOO",
            None,
            400,
            "cannot kill container: e2: invalid signal: FOO",
        ),
        case("POST", "/containers/e1/pause", None, 409, "container E1 is not running"),
        case("POST", "/containers/e2/unpause", None, 500, "Container E2 is not paused"),
        case(
            "DELETE",
            "/containers/e2",
            None,
            409,
            "cannot remove container \"e2\": container is running: stop the container before removing or force remove",
        ),
        case("DELETE", "/containers/nope", None, 404, "No such container: nope"),
        case(
            "POST",
            "/containers/e1/rename?name=e2",
            None,
            409,
            "Error when allocating new name: Conflict. The container name \"/e2\" is already in use by container \
             \"E2\". You have to remove (or rename) that container to be able to reuse that name.",
        ),
        case("POST", "/containers/e1/rename?name=", None, 400, "Neither old nor new names may be empty"),
        case(
            "POST",
            "/containers/e2/resize?h=x&w=1",
            None,
            400,
            "invalid resize height \"x\": invalid syntax",
        ),
        case("POST", "/containers/e1/resize?h=1&w=1", None, 409, "container E1 is not running"),
        case("GET", "/containers/e2/logs", None, 400, "Bad parameters: you must choose at least one stream"),
        case("GET", "/containers/e1/top", None, 409, "container E1 is not running"),
        case(
            "POST",
            "/containers/e1/exec",
            Some(json!({ "Cmd": ["x"] })),
            409,
            "container E1 is not running",
        ),
        case("POST", "/containers/e2/exec", Some(json!({})), 400, "No exec command specified"),
        case("POST", "/exec/nope/start", Some(json!({})), 404, "No such exec instance: nope"),
        case("GET", "/exec/nope/json", None, 404, "No such exec instance: nope"),
        case("POST", "/containers/e2/wait?condition=foo", None, 400, "invalid condition: \"foo\""),
        case(
            "POST",
            "/containers/e2/update",
            Some(json!({ "Memory": 1 })),
            400,
            "Minimum memory limit allowed is 6MB",
        ),
        case("GET", "/containers/json?filters=%7Bbad", None, 400, "invalid filter"),
        case(
            "GET",
            "/containers/json?filters=%7B%22nope%22%3A%5B%22x%22%5D%7D",
            None,
            400,
            "invalid filter 'nope'",
        ),
        case("GET", "/containers/json?limit=x", None, 500, "strconv.Atoi: parsing \"x\": invalid syntax"),
        case("GET", "/images/nope/json", None, 404, "No such image: nope:latest"),
        case("DELETE", "/images/nope", None, 404, "No such image: nope:latest"),
        case(
            "POST",
            "/images/alpine/tag?repo=A&tag=1",
            None,
            400,
            "invalid reference format: repository name (library/A) must be lowercase",
        ),
        case(
            "POST",
            "/networks/create",
            Some(json!({ "Name": "bridge" })),
            403,
            "operation is not permitted on predefined bridge network ",
        ),
        case("POST", "/networks/create", Some(json!({ "Name": "" })), 400, "invalid name: name is empty"),
        case(
            "POST",
            "/networks/create",
            Some(json!({ "Name": "x", "Driver": "nodrv" })),
            404,
            "plugin \"nodrv\" not found",
        ),
        case(
            "DELETE",
            "/networks/bridge",
            None,
            403,
            "bridge is a pre-defined network and cannot be removed",
        ),
        case("DELETE", "/networks/nope", None, 404, "network nope not found"),
        case(
            "POST",
            "/networks/bridge/connect",
            Some(json!({ "Container": "nope" })),
            404,
            "No such container: nope",
        ),
        case(
            "POST",
            "/volumes/create",
            Some(json!({ "Name": "a b" })),
            400,
            "create a b: \"a b\" includes invalid characters for a local volume name, only \
             \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path",
        ),
        case(
            "POST",
            "/volumes/create",
            Some(json!({ "Name": "z", "Driver": "nodrv" })),
            404,
            "create z: error looking up volume plugin nodrv: plugin \"nodrv\" not found",
        ),
        case("DELETE", "/volumes/nope", None, 404, "get nope: no such volume"),
        case("GET", "/volumes/nope", None, 404, "get nope: no such volume"),
        case(
            "GET",
            "/services",
            None,
            503,
            "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this \
             node to swarm and try again.",
        ),
        case("GET", "/containers/nope/changes", None, 404, "No such container: nope"),
        case("GET", "/containers/e1/export", None, 501, "exporting a container is not offered"),
        case("POST", "/build", None, 501, ""),
        case("GET", "/images/get?names=nope", None, 404, "No such image: nope"),
        case("GET", "/images/nope/get", None, 404, "No such image: nope"),
        case("POST", "/images/nope/push", None, 200, ""),
        case(
            "POST",
            "/images/A/push",
            None,
            400,
            "invalid reference format: repository name (library/A) must be lowercase",
        ),
        case("GET", "/distribution/nope%20x/json", None, 400, "invalid reference format"),
        case("POST", "/commit?container=nope", None, 404, "No such container: nope"),
        case("POST", "/commit?container=e1&changes=RUN%20x", None, 400, "RUN is not a valid change command"),
        case(
            "POST",
            "/images/create?fromSrc=-&repo=A",
            None,
            400,
            "invalid reference format: repository name (library/A) must be lowercase",
        ),
        case(
            "GET",
            "/images/search?term=x&limit=101",
            None,
            400,
            "limit 101 is outside the range of [1, 100]",
        ),
        case("POST", "/build/prune", None, 200, ""),
        case("GET", "/plugins", None, 200, ""),
        case("GET", "/plugins/x/json", None, 404, "page not found"),
        case("GET", "/events?since=x", None, 500, "strconv.ParseInt: parsing \"x\": invalid syntax"),
    ]
}

#[tokio::test]
async fn bad_requests_get_the_recorded_answers() {
    let server = Server::start();
    let client = server.client();
    let make = |name: &'static str, words: Value| {
        let client = client.clone();
        async move {
            let body = json!({ "Image": "alpine", "Cmd": words });
            let path = format!("/containers/create?name={name}");
            client.post::<Value>(&path, &body).await.unwrap()["Id"].as_str().unwrap().to_owned()
        }
    };
    let e1 = make("e1", json!(["sleep", "9"])).await;
    let e2 = make("e2", json!(["sleep", "9"])).await;
    client.post_empty("/containers/e2/start").await.unwrap();
    let mut wrong = Vec::new();
    for Case { method, path, body, status, message } in cases() {
        let (got, text) = if let Some(body) = body {
            match client.post::<Value>(path, &body).await {
                Ok(value) => (200, value.to_string()),
                Err(berth_api::client::ClientError::Refused { status, message, .. }) => (status, message),
                Err(error) => panic!("{method} {path}: {error}"),
            }
        } else {
            let (status, bytes) = client.probe(method.parse::<Method>().unwrap(), path).await.unwrap();
            let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            (status.as_u16(), body["message"].as_str().unwrap_or_default().to_owned())
        };
        let expected = message.replace("E1", &e1).replace("E2", &e2);
        if got != status || (!expected.is_empty() && text != expected) {
            wrong.push(format!("{method} {path}: wanted {status} {expected:?}, got {got} {text:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
