//! The rules of the source tree that no compiler checks: who may use whom, how large a file grows, where `unsafe` is.
//!
//! The rules are docs/architecture.md ("Folders") and docs/style.md; a rule changes there and here in one commit.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Crate → the crates of this workspace it may use.
const EDGES: &[(&str, &[&str])] = &[
    ("berth-sys", &[]),
    ("berth-runtime", &["berth-sys"]),
    ("berth-image", &["berth-sys"]),
    ("berth-control", &["berth-sys"]),
    ("berth-init", &["berth-control", "berth-sys"]),
    ("berth-net", &["berth-sys"]),
    ("berth-api", &[]),
    (
        "berth-agent",
        &["berth-api", "berth-control", "berth-image", "berth-net", "berth-runtime", "berth-sys"],
    ),
    ("qemu-test", &["berth-api"]),
    ("berth-build", &["berth-api", "berth-image", "qemu-test"]),
];

/// The five folders that hold source.
const FOLDERS: &[&str] = &["runtime", "image", "init", "build", "qemu-test"];

/// The largest room, tests included; unit: lines.
const ROOM_LINES: usize = 700;

/// Larger rooms that exist, with their size: an entry may shrink or go, never grow, and none is added.
const LARGE_ROOMS: &[(&str, usize)] = &[];

/// The only folder with `unsafe`.
const UNSAFE_FOLDER: &str = "runtime/sys/";

/// Where nothing may panic: PID 1 takes the machine with it.
const PANIC_FREE_FOLDERS: &[&str] = &["init/pid1/src/", "init/control/src/"];

/// What panics.
const PANICS: &[&str] = &[".unwrap()", ".expect(", "unreachable!(", "panic!(", "assert!(", "assert_eq!("];

/// Names that say nothing.
const EMPTY_NAMES: &[&str] = &["util", "utils", "common", "helper", "helpers", "manager", "misc"];

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("build/ is in the checkout").to_owned()
}

/// Paths below the checkout of all files with one of these endings.
fn files(endings: &[&str]) -> Vec<String> {
    let root = checkout();
    let mut open: Vec<PathBuf> = FOLDERS.iter().map(|folder| root.join(folder)).collect();
    let mut found = Vec::new();
    while let Some(folder) = open.pop() {
        for entry in
            fs::read_dir(&folder).expect("folder of the checkout").map(|entry| entry.expect("entry").path())
        {
            if entry.is_dir() {
                open.push(entry);
            } else if endings.iter().any(|ending| entry.to_string_lossy().ends_with(ending)) {
                found.push(
                    entry.strip_prefix(&root).expect("below the checkout").to_string_lossy().into_owned(),
                );
            }
        }
    }
    found.sort();
    found
}

fn text(path: &str) -> String {
    fs::read_to_string(checkout().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Fails with all of them at once.
fn none(broken: Vec<String>) {
    assert!(broken.is_empty(), "\n  {}\n", broken.join("\n  "));
}

/// The part before the tests at a file's end.
fn without_tests(source: &str) -> &str {
    source.split_once("#[cfg(test)]\nmod").map_or(source, |(code, _)| code)
}

/// A line without its comment. Good enough for words that no string here holds.
fn code(line: &str) -> &str {
    line.split_once("//").map_or(line, |(code, _)| code)
}

#[test]
fn crates_use_only_what_the_map_allows() {
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        EDGES.iter().map(|(name, uses)| (*name, uses.iter().copied().collect())).collect();
    let mut broken = Vec::new();
    let manifests = files(&["Cargo.toml"]);
    assert_eq!(manifests.len(), EDGES.len(), "a crate is missing in the map, or the map names one too many");
    for path in manifests.iter().filter(|path| !path.contains("/fuzz/")) {
        let manifest: toml::Table = text(path).parse().expect("manifest");
        let name = manifest["package"]["name"].as_str().expect("package name").to_owned();
        let Some(uses) = allowed.get(name.as_str()) else {
            broken.push(format!("{name} is not in the map"));
            continue;
        };
        // What tests alone use is no edge of what ships.
        for table in ["dependencies", "build-dependencies"] {
            let Some(dependencies) = manifest.get(table).and_then(toml::Value::as_table) else { continue };
            let ours = dependencies.keys().filter(|name| name.starts_with("berth-") || *name == "qemu-test");
            broken.extend(
                ours.filter(|used| !uses.contains(used.as_str()))
                    .map(|used| format!("{name} may not use {used}")),
            );
        }
    }
    none(broken);
}

#[test]
fn rooms_stay_small() {
    let exceptions: BTreeMap<&str, usize> = LARGE_ROOMS.iter().copied().collect();
    let mut broken = Vec::new();
    for path in files(&[".rs"]) {
        let lines = text(&path).lines().count();
        match exceptions.get(path.as_str()) {
            Some(most) if lines > *most => broken.push(format!("{path} grew from {most} to {lines} lines")),
            Some(_) if lines <= ROOM_LINES => {
                broken.push(format!("{path} is small now: take it off the list"))
            }
            None if lines > ROOM_LINES => {
                broken.push(format!("{path} has {lines} lines, more than {ROOM_LINES}"))
            }
            Some(_) | None => {}
        }
    }
    none(broken);
}

#[test]
fn files_say_what_they_are_for() {
    let silent = files(&[".rs"]).into_iter().filter(|path| !text(path).starts_with("//!"));
    none(silent.map(|path| format!("{path} does not begin with //!")).collect());
}

#[test]
fn names_say_something() {
    let stem = |path: &String| {
        Path::new(path).file_stem().is_some_and(|stem| EMPTY_NAMES.iter().any(|name| stem == *name))
    };
    none(files(&[".rs"]).into_iter().filter(stem).collect());
}

#[test]
fn unsafe_is_in_one_place() {
    let mut broken = Vec::new();
    for path in
        files(&[".rs"]).iter().filter(|path| !path.starts_with(UNSAFE_FOLDER) && !path.ends_with("tidy.rs"))
    {
        for (number, line) in (1..).zip(text(path).lines()) {
            let words = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "allow(unsafe_code"];
            if words.iter().any(|word| code(line).contains(word)) {
                broken.push(format!("{path}:{number}: {}", line.trim()));
            }
        }
    }
    none(broken);
}

#[test]
fn nothing_in_pid_1_panics() {
    let mut broken = Vec::new();
    let within = |path: &&String| {
        PANIC_FREE_FOLDERS.iter().any(|folder| path.starts_with(folder)) && !path.contains("test")
    };
    for path in files(&[".rs"]).iter().filter(within) {
        for (number, line) in (1..).zip(without_tests(&text(path)).lines()) {
            if PANICS.iter().any(|word| code(line).contains(word)) && !line.contains("debug_assert") {
                broken.push(format!("{path}:{number}: {}", line.trim()));
            }
        }
    }
    none(broken);
}

#[test]
fn no_file_knows_a_machine_it_was_written_on() {
    // Put together here so that this file does not hold them.
    let paths: Vec<String> = ["work", "home"].iter().map(|name| format!("/{name}/")).collect();
    let mut broken = Vec::new();
    let mut all = files(&[".rs", ".toml", ".md", ".sh"]);
    all.extend(
        ["Cargo.toml", "README.md", "CHANGELOG.md", "deny.toml", ".ci/run", ".cargo/config.toml"]
            .map(str::to_owned),
    );
    for path in all {
        for (number, line) in (1..).zip(text(&path).lines()) {
            if paths.iter().any(|machine| line.contains(machine.as_str())) {
                broken.push(format!("{path}:{number}: {}", line.trim()));
            }
        }
    }
    none(broken);
}

#[test]
fn every_dependency_comes_from_crates_io() {
    let source = "registry+https://github.com/rust-lang/crates.io-index";
    let lock = text("Cargo.lock");
    let foreign = lock
        .lines()
        .filter_map(|line| line.strip_prefix("source = "))
        .filter(|from| from.trim_matches('"') != source);
    none(foreign.map(str::to_owned).collect());
}
