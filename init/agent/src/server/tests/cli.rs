//! The stock command line against the server. Each test does nothing where there is no `docker`.

use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::Server;

pub(super) struct Output {
    pub(super) code: i32,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

pub(super) fn is_there() -> bool {
    std::process::Command::new("docker")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok()
}

/// Runs `docker WORDS` with `input` on its standard input.
pub(super) async fn docker_with(server: &Server, words: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new("docker")
        .args(words)
        .env("DOCKER_HOST", format!("unix://{}", server.socket.display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input).await.unwrap();
    drop(stdin);
    let deadline = std::time::Duration::from_secs(30);
    let output =
        tokio::time::timeout(deadline, child.wait_with_output()).await.expect("docker hangs").unwrap();
    Output {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

pub(super) async fn docker(server: &Server, words: &[&str]) -> Output {
    docker_with(server, words, b"").await
}

/// Runs and wants success; answers with standard output.
pub(super) async fn fine(server: &Server, words: &[&str]) -> String {
    let output = docker(server, words).await;
    assert_eq!(output.code, 0, "docker {words:?}: {}", output.stderr);
    output.stdout
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn run_prints_output_and_passes_the_exit_code_on() {
    if !is_there() {
        return;
    }
    let server = Server::start();
    assert_eq!(fine(&server, &["run", "--rm", "alpine", "echo", "hello", "world"]).await, "hello world\n");
    assert_eq!(docker(&server, &["run", "--rm", "alpine", "exit", "7"]).await.code, 7);
    assert_eq!(docker(&server, &["run", "alpine", "exit", "3"]).await.code, 3);
    let failed = docker(&server, &["run", "--rm", "alpine", "/nope"]).await;
    assert_eq!(failed.code, 127, "{}", failed.stderr);
    // Only the one that was not to be removed is left.
    assert_eq!(fine(&server, &["ps", "-aq"]).await.lines().count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn input_reaches_the_program_and_its_end_ends_it() {
    if !is_there() {
        return;
    }
    let server = Server::start();
    let output = docker_with(&server, &["run", "--rm", "-i", "alpine", "cat"], b"some input\n").await;
    assert_eq!((output.code, output.stdout.as_str()), (0, "some input\n"), "{}", output.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_detached_container_is_listed_stopped_and_removed() {
    if !is_there() {
        return;
    }
    let server = Server::start();
    let id = fine(&server, &["run", "-d", "--name", "web", "-l", "a=b", "alpine", "sleep", "60"]).await;
    assert_eq!(id.trim().len(), 64);
    let row = fine(&server, &["ps", "--format", "{{.Names}} {{.State}} {{.Image}} {{.Command}}"]).await;
    assert_eq!(row, "web running alpine \"sleep 60\"\n");
    assert!(fine(&server, &["ps", "--format", "{{.Status}}"]).await.starts_with("Up "));
    assert_eq!(fine(&server, &["ps", "-q", "--filter", "label=a=c"]).await, "");
    assert_eq!(fine(&server, &["inspect", "-f", "{{.State.Pid}} {{.Name}}", "web"]).await, "4242 /web\n");
    let refused = docker(&server, &["rm", "web"]).await;
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("container is running: stop the container before removing"));
    assert_eq!(fine(&server, &["pause", "web"]).await, "web\n");
    assert!(fine(&server, &["ps", "--format", "{{.Status}}"]).await.contains("(Paused)"));
    fine(&server, &["unpause", "web"]).await;
    fine(&server, &["rename", "web", "web2"]).await;
    assert_eq!(fine(&server, &["stop", "web2"]).await, "web2\n");
    assert!(fine(&server, &["ps", "-a", "--format", "{{.Status}}"]).await.starts_with("Exited (137) "));
    assert_eq!(fine(&server, &["wait", "web2"]).await, "137\n");
    assert_eq!(fine(&server, &["rm", "web2"]).await, "web2\n");
    assert_eq!(fine(&server, &["ps", "-aq"]).await, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_and_exec_work() {
    if !is_there() {
        return;
    }
    let server = Server::start();
    fine(&server, &["run", "--name", "ee", "alpine", "echo", "kept"]).await;
    assert_eq!(fine(&server, &["logs", "ee"]).await, "kept\n");
    assert_eq!(fine(&server, &["logs", "-t", "ee"]).await, "2020-09-13T12:26:40.000000000Z kept\n");
    fine(&server, &["run", "-d", "--name", "ss", "alpine", "sleep", "60"]).await;
    assert_eq!(fine(&server, &["exec", "ss", "echo", "in", "it"]).await, "in it\n");
    assert_eq!(docker(&server, &["exec", "ss", "exit", "9"]).await.code, 9);
    let failed = docker(&server, &["exec", "ss", "/nope"]).await;
    assert_eq!(failed.code, 127, "{}", failed.stderr);
    assert!(failed.stdout.contains("OCI runtime exec failed"), "{}", failed.stdout);
    let output = docker_with(&server, &["exec", "-i", "ss", "cat"], b"to exec").await;
    assert_eq!((output.code, output.stdout.as_str()), (0, "to exec"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_networks_volumes_and_the_system_are_shown() {
    if !is_there() {
        return;
    }
    let server = Server::start();
    assert_eq!(fine(&server, &["images", "--format", "{{.Repository}}:{{.Tag}}"]).await, "alpine:latest\n");
    fine(&server, &["tag", "alpine", "other/name:v1"]).await;
    assert_eq!(fine(&server, &["images", "-q", "other/name"]).await.lines().count(), 1);
    assert_eq!(fine(&server, &["rmi", "other/name:v1"]).await, "Untagged: other/name:v1\n");
    assert_eq!(
        fine(&server, &["image", "inspect", "-f", "{{.Os}} {{.Config.Cmd}}", "alpine"]).await,
        "linux [/bin/sh]\n"
    );
    assert_eq!(fine(&server, &["network", "create", "n"]).await.trim().len(), 64);
    let names = fine(&server, &["network", "ls", "--format", "{{.Name}}"]).await;
    assert_eq!(names, "bridge\nhost\nn\nnone\n");
    assert_eq!(fine(&server, &["network", "rm", "n"]).await, "n\n");
    assert_eq!(fine(&server, &["volume", "create", "vol"]).await.trim(), "vol");
    assert_eq!(fine(&server, &["volume", "ls", "-q"]).await, "vol\n");
    assert_eq!(fine(&server, &["volume", "rm", "vol"]).await, "vol\n");
    assert!(fine(&server, &["version"]).await.contains("API version:      1.51 (minimum version 1.24)"));
    assert!(fine(&server, &["info"]).await.contains("Server Version: 28.5.2+berth"));
    fine(&server, &["system", "df"]).await;
    let missing = docker(&server, &["inspect", "nothing"]).await;
    assert!(missing.stderr.contains("No such object: nothing"), "{}", missing.stderr);
    let swarm = docker(&server, &["service", "ls"]).await;
    assert!(swarm.stderr.contains("This node is not a swarm manager"), "{}", swarm.stderr);
}
