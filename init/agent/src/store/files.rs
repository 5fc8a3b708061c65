//! Records on disk: load, save, remove.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::record::{FORMAT, Record};
use super::sweep;

/// Longest record read, in bytes; a record holds what one API request could hold.
const RECORD_MAX: u64 = 16 << 20;

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The disk said no.
    #[error("{doing} {path}")]
    Io {
        /// What was done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Not a record.
    #[error("read record {path}")]
    Garbled {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// Written by a newer agent.
    #[error("record {path} has format {format}, this agent reads up to {FORMAT}")]
    Newer {
        /// Which.
        path: PathBuf,
        /// Its format.
        format: u64,
    },
}

/// The directory of all containers.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens or makes it, and clears away what a kill left half-made or half-removed.
    pub(crate) fn open(root: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(root).map_err(at("make", root))?;
        Ok(Self { root: root.to_owned() })
    }

    /// The directory of a container.
    pub(crate) fn dir(&self, id: &str) -> PathBuf {
        self.root.join(id)
    }

    /// All records, and what could not be read. Directories without a record are what a kill left: removed.
    pub(crate) fn load(&self) -> Result<(Vec<Record>, Vec<StoreError>), StoreError> {
        let (mut records, mut errors) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.root).map_err(at("list", &self.root))? {
            let dir = entry.map_err(at("list", &self.root))?.path();
            match read(&dir.join("record.json")) {
                Ok(record) => records.push(record),
                Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    sweep::remove_tree(&dir).map_err(at("remove leftover", &dir))?;
                }
                Err(error) => errors.push(error),
            }
        }
        Ok((records, errors))
    }

    /// Makes the directory of a new container; it counts only once its record is saved.
    pub(crate) fn make(&self, id: &str) -> Result<PathBuf, StoreError> {
        let dir = self.dir(id);
        for sub in ["rw/fs", "rw/work", "etc", "log"] {
            let path = dir.join(sub);
            fs::create_dir_all(&path).map_err(at("make", &path))?;
        }
        Ok(dir)
    }

    /// Writes a record so that it is there, whole, after a power cut.
    pub(crate) fn save(&self, record: &Record) -> Result<(), StoreError> {
        self.write(record, write_durably)
    }

    /// Writes a record so that it is there, whole, after a kill of the agent. For what a power cut ends anyway.
    pub(crate) fn note(&self, record: &Record) -> Result<(), StoreError> {
        self.write(record, |path, bytes| {
            let aside = path.with_extension("new");
            fs::write(&aside, bytes)?;
            fs::rename(&aside, path)
        })
    }

    fn write(
        &self,
        record: &Record,
        write: impl FnOnce(&Path, &[u8]) -> io::Result<()>,
    ) -> Result<(), StoreError> {
        let path = self.dir(&record.id).join("record.json");
        let text = serde_json::to_vec(record)
            .map_err(|source| StoreError::Garbled { path: path.clone(), source })?;
        write(&path, &text).map_err(at("write", &path))
    }

    /// Removes everything of a container. The record goes last but one, so a kill in between is finished later.
    pub(crate) fn remove(&self, id: &str) -> Result<(), StoreError> {
        let dir = self.dir(id);
        sweep::remove_tree(&dir).map_err(at("remove", &dir))
    }
}

fn at<'a>(doing: &'static str, path: &'a Path) -> impl Fn(io::Error) -> StoreError + 'a {
    move |source| StoreError::Io { doing, path: path.to_owned(), source }
}

fn read(path: &Path) -> Result<Record, StoreError> {
    let file = File::open(path).map_err(at("open", path))?;
    let mut text = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, RECORD_MAX), &mut text).map_err(at("read", path))?;
    let garbled = |source| StoreError::Garbled { path: path.to_owned(), source };
    let value: serde_json::Value = serde_json::from_slice(&text).map_err(garbled)?;
    let format = value.get("format").and_then(serde_json::Value::as_u64).unwrap_or(0);
    if format > u64::from(FORMAT) {
        return Err(StoreError::Newer { path: path.to_owned(), format });
    }
    serde_json::from_value(value).map_err(garbled)
}

/// Writes a file aside, syncs it, renames it into place and syncs the directory.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let aside = path.with_extension("new");
    let mut file = File::create(&aside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Status;

    fn fixture() -> Record {
        read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/records/format-1.json")))
            .expect("the fixture")
    }

    #[test]
    fn every_format_ever_written_still_loads() {
        let record = fixture();
        assert_eq!(record.name, "web");
        assert_eq!(record.config.stop_signal, "SIGQUIT");
        assert!(matches!(record.status, Status::Running(ref run) if run.pid == 812));
    }

    #[test]
    fn what_was_saved_is_loaded_and_leftovers_are_cleared() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).expect("a store");
        let record = fixture();
        store.make(&record.id).expect("its directory");
        store.save(&record).expect("a save");
        store.make(&"e".repeat(64)).expect("a leftover");
        let (records, errors) = store.load().expect("a load");
        assert_eq!((records, errors.len()), (vec![record.clone()], 0));
        assert!(!store.dir(&"e".repeat(64)).exists());
        store.remove(&record.id).expect("a removal");
        assert!(store.load().expect("a load").0.is_empty());
    }

    #[test]
    fn a_newer_or_garbled_record_is_reported_and_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).expect("a store");
        for (id, text) in [("a", "{\"format\":99}"), ("b", "{"), ("c", "{\"format\":1}")] {
            let dir = store.make(id).expect("a directory");
            fs::write(dir.join("record.json"), text).expect("a file");
        }
        let (records, errors) = store.load().expect("a load");
        assert_eq!((records.len(), errors.len()), (0, 3));
        assert!(store.dir("a").exists() && store.dir("b").exists());
    }
}
