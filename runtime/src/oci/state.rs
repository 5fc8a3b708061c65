//! What is kept of a container between two calls: a directory with a record, the specification and the gate.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use super::spec::Spec;
use super::{OciError, file, system};

/// Where records are kept unless told otherwise.
pub const ROOT: &str = "/run/berth-runtime";
/// The socket a created container listens on for its start.
pub(super) const GATE: &str = "gate";
/// Format of [`Record`].
const FORMAT: u32 = 1;
/// Longest id in bytes.
const ID_MAX: usize = 128;

/// Status of a container (runtime-spec, runtime, State).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// `create` is under way.
    Creating,
    /// Set up, not started.
    Created,
    /// Its program runs.
    Running,
    /// Its processes are stopped until `resume`.
    Paused,
    /// Its program ended.
    Stopped,
}

impl std::fmt::Display for Status {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// The record on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Format of this record.
    pub format: u32,
    /// Container id.
    pub id: String,
    /// Bundle directory, absolute.
    pub bundle: PathBuf,
    /// Pid of its first process, 0 while there is none.
    pub pid: i32,
    /// Start time of that process in clock ticks since boot: a pid alone may come back.
    pub pid_start: u64,
    /// Its control group below the mount point of cgroup2.
    pub cgroup: PathBuf,
    /// Whether it has a user namespace of its own.
    pub user_namespace: bool,
    /// Seconds since 1970 at its creation.
    pub created: u64,
}

/// State as the specification shows it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    /// Version of the specification.
    pub oci_version: String,
    /// Container id.
    pub id: String,
    /// Status.
    pub status: Status,
    /// Pid; 0 when stopped.
    pub pid: i32,
    /// Bundle directory.
    pub bundle: PathBuf,
    /// Annotations of the bundle.
    pub annotations: std::collections::BTreeMap<String, String>,
}

/// An open container directory, locked against other calls.
#[derive(Debug)]
pub struct Container {
    /// Its directory.
    pub dir: PathBuf,
    /// What is known of it.
    pub record: Record,
    /// Its specification.
    pub spec: Spec,
    lock: File,
}

impl Drop for Container {
    /// A created container's process has a copy of the descriptor until its program starts; closing ours would leave
    /// the lock with it.
    fn drop(&mut self) {
        let _ = rustix::fs::flock(&self.lock, rustix::fs::FlockOperation::Unlock);
    }
}

impl Container {
    /// Reserves an id: makes its directory.
    ///
    /// # Errors
    /// `Exists` when it is taken, `Id` when it is not one.
    pub fn reserve(root: &Path, id: &str, bundle: &Path, spec: Spec) -> Result<Self, OciError> {
        let dir = directory(root, id)?;
        std::fs::create_dir_all(root).map_err(file("make", root))?;
        std::fs::create_dir(&dir).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => OciError::Exists(id.to_owned()),
            _ => OciError::File { what: "make", path: dir.clone(), source: error },
        })?;
        let lock = lock(&dir)?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let record = Record {
            format: FORMAT,
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            pid: 0,
            pid_start: 0,
            cgroup: PathBuf::new(),
            user_namespace: false,
            created: now.map_or(0, |time| time.as_secs()),
        };
        write_json(&dir.join("config.json"), &spec)?;
        let container = Self { dir, record, spec, lock };
        container.save()?;
        Ok(container)
    }

    /// Opens a container and waits until no other call works on it.
    ///
    /// # Errors
    /// `Unknown` when there is none.
    pub fn open(root: &Path, id: &str) -> Result<Self, OciError> {
        let dir = directory(root, id)?;
        if !dir.is_dir() {
            return Err(OciError::Unknown(id.to_owned()));
        }
        let lock = lock(&dir)?;
        let record: Record = read_json(&dir.join("record.json"))?;
        if record.format != FORMAT {
            return Err(OciError::Spec(format!("record of format {}", record.format)));
        }
        let spec = read_json(&dir.join("config.json"))?;
        Ok(Self { dir, record, spec, lock })
    }

    /// Every container below `root`, by name.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list(root: &Path) -> Result<Vec<String>, OciError> {
        let entries = match std::fs::read_dir(root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(file("read", root)(error)),
        };
        let names = entries.filter_map(Result::ok).filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> = names.collect();
        names.sort();
        Ok(names)
    }

    /// Writes the record aside and renames it.
    pub fn save(&self) -> Result<(), OciError> {
        write_json(&self.dir.join("record.json"), &self.record)
    }

    /// Notes the first process.
    pub fn set_process(&mut self, pid: i32) -> Result<(), OciError> {
        self.record.pid = pid;
        self.record.pid_start = stat_of(pid).map_or(0, |stat| stat.start);
        self.save()
    }

    /// What the container is now.
    pub fn status(&self) -> Status {
        let record = &self.record;
        if record.pid == 0 {
            return Status::Creating;
        }
        match stat_of(record.pid) {
            Some(stat) if stat.start == record.pid_start && !stat.ended => {
                if self.dir.join(GATE).exists() {
                    Status::Created
                } else if super::end::group_of(self).is_some_and(|group| group.frozen().unwrap_or(false)) {
                    Status::Paused
                } else {
                    Status::Running
                }
            }
            _ => Status::Stopped,
        }
    }

    /// State for people, programs and hooks.
    pub fn shown(&self, status: Status) -> Shown {
        Shown {
            oci_version: super::spec::VERSION.to_owned(),
            id: self.record.id.clone(),
            status,
            pid: if status == Status::Stopped { 0 } else { self.record.pid },
            bundle: self.record.bundle.clone(),
            annotations: self.spec.annotations.clone(),
        }
    }

    /// The pidfd of the first process; the process is checked to be the one on record.
    ///
    /// # Errors
    /// `Status` when it has ended.
    pub fn pidfd(&self) -> Result<std::os::fd::OwnedFd, OciError> {
        let ended = || OciError::Status { id: self.record.id.clone(), status: Status::Stopped };
        let pid = Pid::from_raw(self.record.pid).ok_or_else(ended)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|_| ended())?;
        let lives = matches!(self.status(), Status::Created | Status::Running | Status::Paused);
        if lives { Ok(pidfd) } else { Err(ended()) }
    }

    /// Forgets the container.
    pub fn remove(&self) -> Result<(), OciError> {
        std::fs::remove_dir_all(&self.dir).map_err(file("remove", &self.dir))
    }
}

/// The directory of an id, which is one path component of harmless characters.
fn directory(root: &Path, id: &str) -> Result<PathBuf, OciError> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_.+-".contains(&byte);
    if id.is_empty() || id.len() > ID_MAX || id == "." || id == ".." || !id.bytes().all(legal) {
        return Err(OciError::Id(id.chars().take(ID_MAX).collect()));
    }
    Ok(root.join(id))
}

fn lock(dir: &Path) -> Result<File, OciError> {
    let path = dir.join("lock");
    let opened = File::create(&path).map_err(file("open", &path))?;
    rustix::fs::flock(&opened, rustix::fs::FlockOperation::LockExclusive).map_err(system("lock"))?;
    Ok(opened)
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), OciError> {
    let text =
        serde_json::to_vec(value).map_err(|source| OciError::Json { path: path.to_owned(), source })?;
    let aside = path.with_extension("new");
    std::fs::write(&aside, text).map_err(file("write", &aside))?;
    std::fs::rename(&aside, path).map_err(file("rename", path))
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, OciError> {
    let text = std::fs::read(path).map_err(file("read", path))?;
    serde_json::from_slice(&text).map_err(|source| OciError::Json { path: path.to_owned(), source })
}

struct Stat {
    ended: bool,
    start: u64,
}

/// `/proc/<pid>/stat`: state and start time, counted from behind the name, which may hold anything.
fn stat_of(pid: i32) -> Option<Stat> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    let start = fields.nth(18)?.parse().ok()?;
    Some(Stat { ended: matches!(state, "Z" | "X"), start })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_one_harmless_path_component() {
        for id in ["a", "web-1", "a.b_c+d", &"x".repeat(ID_MAX)] {
            assert!(directory(Path::new("/r"), id).is_ok(), "{id}");
        }
        for id in ["", ".", "..", "a/b", "a b", "a\n", &"x".repeat(ID_MAX + 1)] {
            assert!(directory(Path::new("/r"), id).is_err(), "{id:?}");
        }
    }

    #[test]
    fn the_name_of_a_process_does_not_confuse_its_start_time() {
        let text = "7 (a) Z 1) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 9";
        let stat = parse_stat(text).unwrap();
        assert_eq!((stat.start, stat.ended), (4242, false));
        assert!(parse_stat(&text.replace(" S ", " Z ")).unwrap().ended);
        assert!(parse_stat("").is_none());
    }

    #[test]
    fn an_id_is_reserved_once_and_forgotten() {
        let root = std::env::temp_dir().join(format!("berth-oci-state-{}", std::process::id()));
        let spec = Spec { oci_version: "1.0.2".to_owned(), ..Spec::default() };
        let container = Container::reserve(&root, "one", Path::new("/b"), spec.clone()).unwrap();
        assert!(matches!(Container::reserve(&root, "one", Path::new("/b"), spec), Err(OciError::Exists(_))));
        assert_eq!(container.status(), Status::Creating);
        drop(container);
        let mut container = Container::open(&root, "one").unwrap();
        container.set_process(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert_eq!(container.status(), Status::Running);
        container.record.pid_start += 1;
        assert_eq!(container.status(), Status::Stopped);
        container.remove().unwrap();
        assert!(matches!(Container::open(&root, "one"), Err(OciError::Unknown(_))));
        let _ = std::fs::remove_dir_all(&root);
    }
}
