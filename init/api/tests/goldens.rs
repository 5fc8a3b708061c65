//! Our types against what real clients sent and a real engine answered.

use std::path::{Path, PathBuf};

use berth_api::docker::{containers, events, exec, images, networks, stats, system, volumes};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name)
}

fn response(name: &str) -> String {
    std::fs::read_to_string(folder("responses").join(name)).unwrap()
}

/// Decodes and encodes again; both sides must be the same JSON.
fn round_trip<T: DeserializeOwned + Serialize>(text: &str) {
    let recorded: Value = serde_json::from_str(text).unwrap();
    let typed: T = serde_json::from_value(recorded.clone()).unwrap();
    let ours = serde_json::to_value(&typed).unwrap();
    assert_eq!(differences("", &recorded, &ours), Vec::<String>::new());
}

fn differences(at: &str, recorded: &Value, ours: &Value) -> Vec<String> {
    match (recorded, ours) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            let side = |map: &serde_json::Map<String, Value>, key: &str| map.get(key).cloned();
            keys.into_iter()
                .flat_map(|key| match (side(a, key), side(b, key)) {
                    (Some(x), Some(y)) => differences(&format!("{at}.{key}"), &x, &y),
                    (x, y) => vec![format!("{at}.{key}: recorded {x:?}, ours {y:?}")],
                })
                .collect()
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => a
            .iter()
            .zip(b)
            .enumerate()
            .flat_map(|(index, (x, y))| differences(&format!("{at}[{index}]"), x, y))
            .collect(),
        (a, b) if a == b => Vec::new(),
        (a, b) => vec![format!("{at}: recorded {a}, ours {b}")],
    }
}

fn decode<T: DeserializeOwned>(text: &[u8], name: &str) {
    if let Err(error) = berth_api::decode::from_slice::<T>(text) {
        panic!("{name}: {error}");
    }
}

#[test]
fn every_recorded_request_body_decodes() {
    let mut seen = 0;
    for entry in std::fs::read_dir(folder("requests")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read(&path).unwrap();
        match name.trim_start_matches("cli_").trim_start_matches("compose_") {
            n if n.starts_with("containers_create") => decode::<containers::CreateBody>(&text, &name),
            n if n.starts_with("containers_exec") => decode::<exec::ExecBody>(&text, &name),
            n if n.starts_with("containers_update") => decode::<containers::UpdateBody>(&text, &name),
            n if n.starts_with("exec_start") => decode::<exec::ExecStartBody>(&text, &name),
            n if n.starts_with("networks_create") => decode::<networks::NetworkCreate>(&text, &name),
            n if n.starts_with("networks_connect") => decode::<networks::Connect>(&text, &name),
            n if n.starts_with("networks_disconnect") => decode::<networks::Disconnect>(&text, &name),
            n if n.starts_with("volumes_create") => decode::<volumes::VolumeCreate>(&text, &name),
            n => panic!("{n}: no type for it"),
        }
        seen += 1;
    }
    assert!(seen >= 94, "{seen} bodies seen");
}

#[test]
fn a_create_body_is_echoed_as_it_was_sent() {
    for entry in std::fs::read_dir(folder("requests")).unwrap() {
        let path = entry.unwrap().path();
        if path.to_string_lossy().contains("containers_create") {
            round_trip::<containers::CreateBody>(&std::fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn answers_about_containers_round_trip() {
    round_trip::<containers::ContainerInspect>(&response("container-inspect.json"));
    round_trip::<Vec<containers::ContainerSummary>>(&response("containers-json.json"));
    round_trip::<containers::TopAnswer>(&response("top.json"));
    round_trip::<Vec<containers::Change>>(&response("changes.json"));
    round_trip::<stats::Stats>(&response("stats.json"));
}

#[test]
fn answers_about_images_round_trip() {
    round_trip::<Vec<images::ImageSummary>>(&response("images-json.json"));
    round_trip::<images::ImageInspect>(&response("image-inspect.json"));
    round_trip::<Vec<images::HistoryItem>>(&response("history.json"));
}

#[test]
fn answers_about_networks_and_volumes_round_trip() {
    round_trip::<Vec<networks::Network>>(&response("networks.json"));
    round_trip::<networks::Network>(&response("network-bridge.json"));
    round_trip::<volumes::Volume>(&response("volume.json"));
    round_trip::<volumes::VolumeList>(&response("volumes.json"));
}

#[test]
fn answers_about_the_system_round_trip() {
    round_trip::<system::VersionAnswer>(&response("version.json"));
    round_trip::<system::Info>(&response("info.json"));
    round_trip::<system::DiskUsage>(&response("df.json"));
    for line in response("events.json").lines() {
        round_trip::<events::EventMessage>(line);
    }
}
