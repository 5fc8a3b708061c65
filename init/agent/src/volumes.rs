//! Volumes: directories that outlive containers. `<root>/<name>/{volume.json,_data}`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use berth_api::docker::volumes::{Volume, VolumeCreate};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::command::{Event, Refusal};
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
    events: OnceLock<broadcast::Sender<Event>>,
}

/// What a volume holds, by the options it was made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// A directory of its own.
    Own,
    /// A directory of the host.
    Bind(String),
    /// Memory, with the options of the file system; each container has its own.
    Tmpfs(Vec<String>),
}

/// Why options are none of the local driver's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OptionError {
    /// Known and not offered.
    #[error("{0}")]
    Unsupported(String),
    /// Unknown or incomplete.
    #[error("{0}")]
    Invalid(String),
}

impl Content {
    /// Reads options.
    pub(crate) fn of(options: Option<&BTreeMap<String, String>>) -> Result<Self, OptionError> {
        let Some(options) = options else { return Ok(Self::Own) };
        let invalid = |text: String| Err(OptionError::Invalid(text));
        if let Some(key) = options.keys().find(|key| !matches!(key.as_str(), "type" | "o" | "device")) {
            return invalid(format!("invalid option: {key:?}"));
        }
        let get = |key: &str| options.get(key).map(String::as_str).unwrap_or_default();
        let (kind, device) = (get("type"), get("device"));
        let list: Vec<&str> = get("o").split(',').filter(|option| !option.is_empty()).collect();
        let bind = list.iter().any(|option| matches!(*option, "bind" | "rbind"));
        match (kind, device) {
            ("", "") => invalid("missing required option: \"device\"".to_owned()),
            ("", _) if !bind => invalid("missing required option: \"type\"".to_owned()),
            (_, "") => invalid("missing required option: \"device\"".to_owned()),
            (_, path) if bind => {
                if !path.starts_with('/') || path.split('/').any(|part| part == "..") {
                    return invalid(format!("invalid device: {path:?} is no absolute path"));
                }
                Ok(Self::Bind(path.to_owned()))
            }
            ("tmpfs", _) => Ok(Self::Tmpfs(list.into_iter().map(str::to_owned).collect())),
            (kind, _) => Err(OptionError::Unsupported(format!(
                "volumes of type {kind:?} are not offered; tmpfs and bind are"
            ))),
        }
    }
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
        Ok(Self { root: root.to_owned(), known: Mutex::new(known), events: OnceLock::new() })
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
        let options = body.driver_opts.filter(|options| !options.is_empty());
        Content::of(options.as_ref()).map_err(|why| match why {
            OptionError::Unsupported(text) => Refusal::Unsupported(text),
            OptionError::Invalid(text) => Refusal::Invalid(format!("create {}: {text}", body.name)),
        })?;
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
        let record = Record { format: FORMAT, name: name.clone(), created_at, labels: Some(labels), options };
        self.make(&record).map_err(|error| Refusal::Failed(format!("create {name}: {error}")))?;
        let volume = self.show(&record);
        known.insert(name, record);
        drop(known);
        self.announce(&volume.name, "create", &[]);
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
        drop(known);
        self.announce(name, "destroy", &[]);
        Ok(())
    }

    /// What a container sees of a volume.
    pub(crate) fn content(&self, name: &str) -> Result<Content, Refusal> {
        let known = self.lock();
        let record =
            known.get(name).ok_or_else(|| Refusal::NotFound(format!("get {name}: no such volume")))?;
        Content::of(record.options.as_ref()).map_err(|why| Refusal::Failed(format!("volume {name}: {why}")))
    }

    /// Says from now on what happens to volumes.
    pub(crate) fn tell(&self, events: broadcast::Sender<Event>) {
        // Told once, at the start.
        let _ = self.events.set(events);
    }

    /// Tells of something that happened to a volume.
    pub(crate) fn announce(&self, name: &str, action: &str, more: &[(&str, &str)]) {
        let Some(events) = self.events.get() else { return };
        let attributes = std::iter::once(&("driver", "local")).chain(more);
        let event = Event {
            kind: "volume",
            action: action.to_owned(),
            id: name.to_owned(),
            attributes: attributes.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            at_ns: crate::logs::now_ns(),
        };
        // No receiver is no error: nobody listens.
        let _ = events.send(event);
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
    fn options_say_what_a_volume_holds() {
        let of = |pairs: &[(&str, &str)]| {
            let options = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            Content::of(Some(&options))
        };
        assert_eq!(Content::of(None), Ok(Content::Own));
        let bind = Ok(Content::Bind("/srv/data".to_owned()));
        assert_eq!(of(&[("type", "none"), ("o", "bind"), ("device", "/srv/data")]), bind);
        assert_eq!(of(&[("o", "bind,rw"), ("device", "/srv/data")]), bind);
        let memory = Content::Tmpfs(vec!["size=1m".to_owned(), "uid=5".to_owned()]);
        assert_eq!(of(&[("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=1m,uid=5")]), Ok(memory));
        assert!(matches!(
            of(&[("type", "nfs"), ("device", ":/x"), ("o", "addr=x")]),
            Err(OptionError::Unsupported(_))
        ));
        for bad in [
            &[("size", "1")][..],
            &[("type", "tmpfs")],
            &[("device", "x")],
            &[("o", "bind"), ("device", "/a/../../etc")],
            &[("o", "bind"), ("device", "relative")],
        ] {
            assert!(matches!(of(bad), Err(OptionError::Invalid(_))), "{bad:?}");
        }
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
