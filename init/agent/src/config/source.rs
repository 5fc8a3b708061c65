//! Where the machine file comes from. Later sources win whole, they are not merged: a machine's settings are always
//! one text that somebody wrote.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::fallback::{self, LAST_GOOD};
use super::file::{self, FILE_MAX, FileError, Machine};

/// Built into the root image.
const BUILT_IN: &str = "/etc/berth/machine.toml";
/// The kernel's command line; the file travels base64 in this option.
const COMMAND_LINE: &str = "/proc/cmdline";
const OPTION: &str = "berth.config=";
/// QEMU's firmware configuration device.
const FIRMWARE: &str = "/sys/firmware/qemu_fw_cfg/by_name/opt/org.berth/machine.toml/raw";

/// The machine file in force.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    /// Name of the source, `defaults` when there is none.
    pub(crate) source: String,
    /// Its text, empty for the defaults.
    pub(crate) text: String,
    /// What it says; when it is broken, the last good file or what can be read of it.
    pub(crate) machine: Machine,
    /// Why it is not in force.
    pub(crate) error: Option<FileError>,
}

/// Find, read and decide the machine file. Never fails: see [`Loaded::error`].
pub(crate) fn load() -> Loaded {
    load_from(Path::new("/"))
}

fn load_from(root: &Path) -> Loaded {
    let under = |path: &str| root.join(path.trim_start_matches('/'));
    let found = firmware(&under(FIRMWARE))
        .or_else(|| command_line(&under(COMMAND_LINE)))
        .or_else(|| built_in(&under(BUILT_IN)));
    let Some((source, text)) = found else {
        let machine = Machine::default();
        return Loaded { source: "defaults".to_owned(), text: String::new(), machine, error: None };
    };
    let kept = under(LAST_GOOD);
    let (text, error) = match text {
        Err(error) => (String::new(), error),
        Ok(text) => match file::parse(&text, &source) {
            Ok(machine) => {
                // Not kept (full disk): the next broken file is salvaged instead, continuing.
                let _ = fallback::remember(&kept, &text);
                return Loaded { source, text, machine, error: None };
            }
            Err(error) => (text, error),
        },
    };
    let machine = fallback::last_good(&kept).unwrap_or_else(|| fallback::salvage(&text));
    Loaded { source, text: String::new(), machine, error: Some(error) }
}

type Found = (String, Result<String, FileError>);

fn built_in(path: &Path) -> Option<Found> {
    read(path, BUILT_IN)
}

fn firmware(path: &Path) -> Option<Found> {
    read(path, "fw_cfg opt/org.berth/machine.toml")
}

fn command_line(path: &Path) -> Option<Found> {
    let source = "kernel command line berth.config";
    let (_, line) = read(path, source)?;
    let line = line.ok()?;
    let encoded = line.split_ascii_whitespace().rev().find_map(|word| word.strip_prefix(OPTION))?;
    let text = STANDARD
        .decode(encoded)
        .map_err(|error| refuse(source, format!("not base64: {error}"), "encode the file with base64 -w0"))
        .and_then(|bytes| utf8(bytes, source));
    Some((source.to_owned(), text))
}

fn read(path: &Path, source: &str) -> Option<Found> {
    let file = File::open(path).ok()?;
    let mut bytes = Vec::new();
    let limit = u64::try_from(FILE_MAX).unwrap_or(u64::MAX);
    let text = match file.take(limit + 1).read_to_end(&mut bytes) {
        Err(error) => Err(refuse(source, format!("cannot be read: {error}"), "check the source")),
        Ok(_) if bytes.len() > FILE_MAX => {
            Err(refuse(source, format!("longer than {FILE_MAX} bytes"), "make it shorter"))
        }
        Ok(_) => utf8(bytes, source),
    };
    Some((source.to_owned(), text))
}

fn utf8(bytes: Vec<u8>, source: &str) -> Result<String, FileError> {
    String::from_utf8(bytes).map_err(|_| refuse(source, "not UTF-8".to_owned(), "save it as UTF-8"))
}

fn refuse(source: &str, problem: String, remedy: &str) -> FileError {
    FileError { file: source.to_owned(), line: 1, key: String::new(), problem, remedy: remedy.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root_with(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a temporary directory");
        for (path, text) in files {
            let path = root.path().join(path.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
            std::fs::write(path, text).expect("a file");
        }
        root
    }

    fn named(name: &str) -> String {
        format!("version = 1\n[host]\nname = \"{name}\"\n")
    }

    #[test]
    fn no_source_gives_the_defaults_without_error() {
        let root = root_with(&[]);
        let loaded = load_from(root.path());
        assert_eq!((loaded.source.as_str(), loaded.error.is_none()), ("defaults", true));
    }

    #[test]
    fn later_sources_win_whole() {
        let encoded = format!("quiet berth.config={} x=y\n", STANDARD.encode(named("line")));
        let cases: [(&[(&str, &str)], &str); 3] = [
            (&[(BUILT_IN, &named("image"))], "image"),
            (&[(BUILT_IN, &named("image")), (COMMAND_LINE, &encoded)], "line"),
            (&[(COMMAND_LINE, &encoded), (FIRMWARE, &named("firmware"))], "firmware"),
        ];
        for (files, name) in cases {
            assert_eq!(load_from(root_with(files).path()).machine.name, name);
        }
    }

    #[test]
    fn a_broken_file_leaves_the_last_good_one_in_force() {
        let root = root_with(&[(FIRMWARE, &named("good")), (LAST_GOOD, "")]);
        assert_eq!(load_from(root.path()).machine.name, "good");
        std::fs::write(root.path().join(FIRMWARE.trim_start_matches('/')), "version = 1\nhots = 2\n").expect("a file");
        let loaded = load_from(root.path());
        assert_eq!((loaded.machine.name.as_str(), loaded.error.is_some()), ("good", true));
    }

    #[test]
    fn a_broken_file_falls_back_to_the_defaults_and_keeps_the_error() {
        let broken = root_with(&[(FIRMWARE, "version = 1\nhots = 2\n")]);
        let loaded = load_from(broken.path());
        assert_eq!(loaded.machine.name, "berth");
        assert_eq!(loaded.error.map(|error| error.line), Some(2));
        let garbled = root_with(&[(COMMAND_LINE, "berth.config=%%%")]);
        assert!(load_from(garbled.path()).error.is_some_and(|error| error.problem.contains("base64")));
    }
}
