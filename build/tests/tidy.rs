//! The rules of docs/architecture.md and docs/style.md that a script can see, as tests.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Longest room in lines, tests included. Rooms aim at 150 to 500 lines without tests.
const ROOM_MAX: usize = 700;

/// Rooms over [`ROOM_MAX`], with the length they may not exceed. This list may only shrink.
const TOO_LONG: &[(&str, usize)] = &[];

/// Which workspace crates each crate may use (docs/architecture.md, Folders). Tests may use more.
const EDGES: &[(&str, &[&str])] = &[
    ("runtime/sys", &[]),
    ("runtime", &["berth-sys", "berth-control"]),
    ("image", &["berth-sys"]),
    ("init/control", &["berth-sys"]),
    ("init/pid1", &["berth-sys", "berth-control"]),
    ("init/net", &["berth-sys"]),
    ("init/api", &[]),
    ("init/agent", &["berth-sys", "berth-control", "berth-runtime", "berth-image", "berth-net", "berth-api"]),
    ("build", &["berth-image", "berth-api", "qemu-test"]),
    ("qemu-test", &["berth-api", "berth-sys"]),
];

/// Packages that must never be linked into PID 1: it has no network, no HTTP, no async runtime.
const NOT_IN_PID1: &[&str] = &["tokio", "hyper", "rustls", "serde_json", "toml", "berth-image", "berth-net"];

/// Where nothing may panic: PID 1 takes the machine with it.
const PANIC_FREE: &[&str] = &["init/pid1/src/", "init/control/src/"];

/// What panics.
const PANICS: &[&str] = &[".unwrap()", ".expect(", "unreachable!(", "panic!(", "assert!(", "assert_eq!("];

/// File names that say nothing.
const EMPTY_NAMES: &[&str] = &["util", "utils", "common", "helper", "helpers", "manager", "misc"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("build/ is in the workspace").to_owned()
}

/// Every `.rs` file of the workspace, relative to its root.
fn rust_files() -> Vec<PathBuf> {
    fn walk(directory: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).expect("readable folder") {
            let path = entry.expect("readable entry").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                walk(&path, files);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    let mut files = Vec::new();
    walk(&root(), &mut files);
    files.sort();
    files
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// The `[dependencies]` of a manifest, without those for tests.
fn dependencies(folder: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(folder).join("Cargo.toml")).expect("manifest");
    let mut inside = false;
    let mut names = Vec::new();
    for line in text.lines() {
        if line.starts_with('[') {
            inside = line.trim() == "[dependencies]";
        } else if inside
            && let Some(name) = line.split(['.', '=', ' ']).next()
            && !name.is_empty()
            && !name.starts_with('#')
        {
            names.push(name.to_owned());
        }
    }
    names
}

#[test]
fn dependencies_point_one_way() {
    for (folder, allowed) in EDGES {
        for name in dependencies(folder) {
            let ours = name.starts_with("berth-") || name == "qemu-test";
            assert!(
                !ours || allowed.contains(&name.as_str()),
                "{folder} may not use {name}: see the table of folders in docs/architecture.md"
            );
        }
    }
}

#[test]
fn every_crate_has_its_edges_listed() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("manifest");
    let members =
        manifest.split("members = [").nth(1).and_then(|rest| rest.split(']').next()).expect("members");
    for member in members.split('"').skip(1).step_by(2) {
        assert!(EDGES.iter().any(|(folder, _)| *folder == member), "{member} is missing from EDGES");
    }
}

#[test]
fn pid1_links_no_network_stack() {
    for folder in ["init/pid1", "init/control", "runtime/sys"] {
        for name in dependencies(folder) {
            assert!(!NOT_IN_PID1.contains(&name.as_str()), "{folder} may not use {name}");
        }
    }
}

#[test]
fn rooms_say_what_they_are_for_and_stay_small() {
    let exceptions: BTreeMap<&str, usize> = TOO_LONG.iter().copied().collect();
    let mut complaints = Vec::new();
    for path in rust_files() {
        let text = fs::read_to_string(&path).expect("readable file");
        let name = shown(&path);
        if !text.starts_with("//! ") {
            complaints.push(format!("{name}: the first line does not say what it is for"));
        }
        let lines = text.lines().count();
        match exceptions.get(name.as_str()) {
            None if lines > ROOM_MAX => {
                complaints.push(format!("{name}: {lines} lines, a room has {ROOM_MAX}"));
            }
            Some(&limit) if lines > limit => {
                complaints.push(format!("{name}: {lines} lines, its exception is {limit}"));
            }
            Some(_) if lines <= ROOM_MAX => {
                complaints.push(format!("{name}: fits now, take it off the list"));
            }
            _ => {}
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn unsafe_stays_in_runtime_sys() {
    let word = concat!("un", "safe");
    for path in rust_files() {
        let name = shown(&path);
        if name.starts_with("runtime/sys/") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("readable file");
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let used = [" {", " fn", " impl", " extern"]
                .iter()
                .any(|after| code.contains(&format!("{word}{after}")));
            assert!(!used, "{name}:{}: {word} belongs in runtime/sys", number + 1);
        }
    }
}

#[test]
fn only_runtime_sys_states_its_own_lints() {
    for (folder, _) in EDGES {
        let text = fs::read_to_string(root().join(folder).join("Cargo.toml")).expect("manifest");
        let inherits = text.contains("[lints]\nworkspace = true");
        assert!(
            inherits || *folder == "runtime/sys",
            "{folder}/Cargo.toml must inherit the workspace's lints"
        );
    }
}

#[test]
fn no_marks_of_unfinished_work() {
    let marks = [
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("FIX", "ME"),
        concat!("#[ign", "ore"),
    ];
    for path in rust_files() {
        let text = fs::read_to_string(&path).expect("readable file");
        // Tests that boot machines wait for `cargo berth test`, which runs them all.
        let text = text.replace(concat!("#[ign", "ore = \"boots a machine: cargo berth test\"]"), "");
        for mark in marks {
            assert!(!text.contains(mark), "{}: {mark}", shown(&path));
        }
    }
}

#[test]
fn documents_name_files_that_exist() {
    let text = fs::read_to_string(root().join("README.md")).expect("README.md");
    for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
        let local = !target.contains("://") && !target.starts_with('#');
        let path = target.split('#').next().unwrap_or_default();
        assert!(!local || root().join(path).exists(), "README.md links to {target}, which is not there");
    }
}

#[test]
fn nothing_in_pid1_panics() {
    let mut complaints = Vec::new();
    for path in rust_files() {
        let name = shown(&path);
        if !PANIC_FREE.iter().any(|folder| name.starts_with(folder)) || name.contains("test") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("readable file");
        let code = text.split_once("#[cfg(test)]\nmod").map_or(text.as_str(), |(code, _)| code);
        for (number, line) in (1..).zip(code.lines()) {
            let code = line.split("//").next().unwrap_or_default();
            if PANICS.iter().any(|word| code.contains(word)) && !code.contains("debug_assert") {
                complaints.push(format!("{name}:{number}: {}", line.trim()));
            }
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn names_say_something() {
    for path in rust_files() {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        assert!(!EMPTY_NAMES.contains(&stem), "{}: a name that says nothing", shown(&path));
    }
}

#[test]
fn no_file_knows_a_machine_it_was_written_on() {
    // Put together here, so that this file does not hold them.
    let machines: Vec<String> = ["work"].iter().map(|name| format!("/{name}/")).collect();
    let others = ["Cargo.toml", "README.md", "CHANGELOG.md", "deny.toml", ".ci/run", ".cargo/config.toml"];
    let mut complaints = Vec::new();
    for path in rust_files().into_iter().chain(others.map(|name| root().join(name))) {
        let text = fs::read_to_string(&path).expect("readable file");
        let told = text.lines().filter(|line| machines.iter().any(|machine| line.contains(machine.as_str())));
        complaints.extend(told.map(|line| format!("{}: {}", shown(&path), line.trim())));
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn every_dependency_comes_from_crates_io() {
    let source = "\"registry+https://github.com/rust-lang/crates.io-index\"";
    let lock = fs::read_to_string(root().join("Cargo.lock")).expect("lock file");
    for from in lock.lines().filter_map(|line| line.strip_prefix("source = ")) {
        assert_eq!(from, source, "a dependency of another source");
    }
}
