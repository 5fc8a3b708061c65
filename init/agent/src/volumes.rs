//! Volumes: directories that outlive containers. `<root>/<name>/{volume.json,_data}`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use berth_api::docker::volumes::{Volume, VolumeCreate};
use serde::{Deserialize, Serialize};

use crate::command::Refusal;
use crate::config::legal_name;
use crate::store::{remove_tree, write_durably};

/// Label of volumes that were made without a name.
pub(crate) const ANONYMOUS_LABEL: &str = "com.docker.volume.anonymous";
/// The format written to `volume.json`.
const FORMAT: u32 = 1;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    format: u32,
    name: String,
    created_at: String,
    labels: Option<BTreeMap<String, String>>,
    options: Option<BTreeMap<String, String>>,
}

/// All volumes.
#[derive(Debug)]
pub(crate) struct Volumes {
    root: PathBuf,
    known: Mutex<BTreeMap<String, Record>>,
}

impl Volumes {
    /// Opens or makes the directory of volumes. A volume that cannot be read is logged and left alone.
    pub(crate) fn open(root: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(root)?;
        let mut known = BTreeMap::new();
        for entry in std::fs::read_dir(root)? {
            let path = entry?.path();
            match std::fs::read(path.join("volume.json")) {
                Ok(text) => match serde_json::from_slice::<Record>(&text) {
                    Ok(record) => {
                        known.insert(record.name.clone(), record);
                    }
                    Err(error) => {
                        crate::log::warning!("volume {} cannot be read: {error}, continuing", path.display());
                    }
                },
                // Half-made or half-removed: the record is written last and removed first.
                Err(error) if error.kind() == io::ErrorKind::NotFound => remove_tree(&path)?,
                Err(error) => return Err(error),
            }
        }
        Ok(Self { root: root.to_owned(), known: Mutex::new(known) })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Record>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The directory that holds a volume's content.
    pub(crate) fn data(&self, name: &str) -> PathBuf {
        self.root.join(name).join("_data")
    }

    /// All, by name.
    pub(crate) fn list(&self) -> Vec<Volume> {
        self.lock().values().map(|record| self.show(record)).collect()
    }

    fn show(&self, record: &Record) -> Volume {
        Volume {
            created_at: record.created_at.clone(),
            driver: "local".to_owned(),
            labels: record.labels.clone(),
            mountpoint: self.data(&record.name).to_string_lossy().into_owned(),
            name: record.name.clone(),
            options: record.options.clone(),
            scope: "local".to_owned(),
            usage_data: None,
        }
    }

    /// Makes a volume, or gives the one that has the name.
    pub(crate) fn create(&self, body: VolumeCreate) -> Result<Volume, Refusal> {
        if !matches!(body.driver.as_str(), "" | "local") {
            return Err(Refusal::NotFound(format!(
                "error looking up volume plugin {0}: plugin \"{0}\" not found",
                body.driver
            )));
        }
        if body.driver_opts.as_ref().is_some_and(|options| !options.is_empty()) {
            return Err(Refusal::Unsupported("options of the local volume driver are not offered".to_owned()));
        }
        let mut labels = body.labels.unwrap_or_default();
        let name = if body.name.is_empty() {
            labels.insert(ANONYMOUS_LABEL.to_owned(), String::new());
            crate::id::random().map_err(|error| Refusal::Failed(error.to_string()))?
        } else {
            body.name
        };
        if !legal_name(&name) {
            return Err(Refusal::Invalid(format!(
                "create {name}: \"{name}\" includes invalid characters for a local volume name, only \
                 \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path"
            )));
        }
        let mut known = self.lock();
        if let Some(record) = known.get(&name) {
            return Ok(self.show(record));
        }
        let created_at = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let record = Record { format: FORMAT, name: name.clone(), created_at, labels: Some(labels), options: None };
        self.make(&record).map_err(|error| Refusal::Failed(format!("create {name}: {error}")))?;
        let volume = self.show(&record);
        known.insert(name, record);
        Ok(volume)
    }

    fn make(&self, record: &Record) -> io::Result<()> {
        std::fs::create_dir_all(self.data(&record.name))?;
        let text = serde_json::to_vec(record)?;
        write_durably(&self.root.join(&record.name).join("volume.json"), &text)
    }

    /// Removes a volume that no container uses (the caller checked).
    pub(crate) fn remove(&self, name: &str) -> Result<(), Refusal> {
        let mut known = self.lock();
        if !known.contains_key(name) {
            return Err(Refusal::NotFound(format!("get {name}: no such volume")));
        }
        let dir = self.root.join(name);
        let removed = match std::fs::remove_file(dir.join("volume.json")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => remove_tree(&dir),
        };
        removed.map_err(|error| Refusal::Failed(format!("remove {name}: {error}")))?;
        known.remove(name);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> VolumeCreate {
        VolumeCreate { name: name.to_owned(), ..VolumeCreate::default() }
    }

    #[test]
    fn volumes_survive_reopening_and_leftovers_do_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let volumes = Volumes::open(dir.path()).expect("volumes");
        volumes.create(named("data")).expect("a volume");
        std::fs::write(volumes.data("data").join("file"), "kept").expect("a file");
        let again = volumes.create(named("data")).expect("the same volume");
        assert_eq!(again.name, "data");
        std::fs::create_dir_all(dir.path().join("half/_data")).expect("a leftover");
        let volumes = Volumes::open(dir.path()).expect("volumes");
        assert_eq!(volumes.list().len(), 1);
        assert_eq!(std::fs::read(volumes.data("data").join("file")).expect("a file"), b"kept");
        assert!(!dir.path().join("half").exists());
        volumes.remove("data").expect("a removal");
        assert!(matches!(volumes.remove("data"), Err(Refusal::NotFound(_))));
    }

    #[test]
    fn names_that_reach_elsewhere_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let volumes = Volumes::open(dir.path()).expect("volumes");
        for name in ["..", "a/b", ".hidden", "a"] {
            assert!(matches!(volumes.create(named(name)), Err(Refusal::Invalid(_))), "{name}");
        }
        let anonymous = volumes.create(named("")).expect("an anonymous volume");
        assert!(anonymous.labels.is_some_and(|labels| labels.contains_key(ANONYMOUS_LABEL)));
    }
}
