//! Opening the store: locking it, removing leftovers, and reading the records into memory.
//!
//! This is the ordinary start path and the recovery path at once. Whatever a power cut left behind is either whole
//! or thrown away here.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::FlockOperation;

use super::files::{self, Sync};
use super::images::{Entry, Name, RECORD_FORMAT, Record};
use super::layers::{LAYER_FORMAT, Layer, LayerNumber};
use super::upkeep::{self, Upkeep};
use super::{Inner, State, Store, StoreError};
use crate::config::ImageConfig;
use crate::manifest::CONFIG_SIZE_MAX;

const FORMAT: &str = "1";
const DIRECTORIES: [&str; 7] =
    ["blobs/sha256", "blobs/sha512", "images", "names", "layers", "staging", "trash"];
/// How long a finished layer of an unfinished pull is kept for the next try.
const ORPHAN_LIFE: Duration = Duration::from_hours(24);

impl Store {
    /// Opens the store below `root`, making it if there is none.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let make = |path: &Path| {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
            made.map_err(StoreError::io("create", path))
        };
        make(root)?;
        let lock = lock(root)?;
        check_format(root)?;
        for directory in DIRECTORIES {
            make(&root.join(directory))?;
        }
        let upkeep = Upkeep::start(root).map_err(StoreError::io("start upkeep of", root))?;
        let boot = boot_id();
        let mut state = State::default();
        read_layers(root, &boot, &mut state)?;
        let store = Self {
            inner: Arc::new(Inner {
                root: root.to_owned(),
                boot,
                state: Mutex::new(State::default()),
                upkeep,
                _lock: lock.into(),
            }),
        };
        store.read_images(&mut state)?;
        store.read_names(&mut state)?;
        *store.state() = state;
        upkeep::empty(&root.join("staging"));
        store.sweep(ORPHAN_LIFE)?;
        store.inner.upkeep.empty_trash();
        store.inner.upkeep.make_durable();
        Ok(store)
    }

    fn read_images(&self, state: &mut State) -> Result<(), StoreError> {
        for path in entries(&self.inner.root.join("images"))? {
            let whole = files::read_record::<Record>(&path)
                .filter(|record| record.format == RECORD_FORMAT && self.image_path(&record.id) == path)
                .and_then(|record| self.complete(state, record));
            match whole {
                Some(entry) => {
                    state.images.insert(entry.record.id.clone(), entry);
                }
                None => files::remove(&path)?,
            }
        }
        Ok(())
    }

    /// The image of a record, if all its parts are there and its configuration is what its id says.
    fn complete(&self, state: &State, record: Record) -> Option<Entry> {
        let bytes = self.known_blob(&record.id, CONFIG_SIZE_MAX)?;
        let config = ImageConfig::parse(&bytes, record.layers.len()).ok()?;
        let whole =
            record.layers.iter().zip(&config.rootfs.diff_ids).all(|(number, diff_id)| {
                state.layers.get(number).is_some_and(|layer| layer.diff_id == *diff_id)
            });
        whole.then(|| Entry { record, config: Arc::new(config) })
    }

    fn read_names(&self, state: &mut State) -> Result<(), StoreError> {
        for path in entries(&self.inner.root.join("names"))? {
            let name = files::read_record::<Name>(&path)
                .filter(|name| name.format == RECORD_FORMAT && self.name_path(&name.name) == path);
            match name {
                Some(name) if state.images.contains_key(&name.image) => {
                    state.names.insert(name.name, name.image);
                }
                Some(name) => {
                    state.lost.push(name.name);
                    files::remove(&path)?;
                }
                None => files::remove(&path)?,
            }
        }
        Ok(())
    }
}

fn lock(root: &Path) -> Result<File, StoreError> {
    let path = root.join("lock");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(StoreError::io("open", &path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::Locked(root.to_owned())),
        Err(error) => Err(StoreError::io("lock", &path)(error.into())),
    }
}

fn check_format(root: &Path) -> Result<(), StoreError> {
    let path = root.join("format");
    match files::read(&path, 64) {
        // An empty file is what a power cut during the very first open can leave.
        Ok(bytes) if bytes.is_empty() => files::write(&path, FORMAT.as_bytes(), Sync::Now),
        Ok(bytes) if bytes.trim_ascii() == FORMAT.as_bytes() => Ok(()),
        Ok(bytes) => Err(StoreError::Format(String::from_utf8_lossy(&bytes).trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            files::write(&path, FORMAT.as_bytes(), Sync::Now)
        }
        Err(error) => Err(StoreError::io("read", &path)(error)),
    }
}

fn read_layers(root: &Path, boot: &str, state: &mut State) -> Result<(), StoreError> {
    for path in entries(&root.join("layers"))? {
        let number =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<u64>().ok());
        let layer = files::read_record::<Layer>(&path.join("layer.json"))
            .filter(|layer| layer.format == LAYER_FORMAT)
            .filter(|layer| layer.boot == boot || path.join("complete").exists());
        if let (Some(number), Some(layer)) = (number, layer) {
            state.next = state.next.max(number);
            state.layers.insert(LayerNumber(number), layer);
        } else {
            let name = path.file_name().unwrap_or(path.as_os_str());
            let trash = root.join("trash").join(name);
            upkeep::empty(&trash);
            fs::rename(&path, &trash).map_err(StoreError::io("discard", &path))?;
        }
    }
    // Numbers of what still lies in the trash must not be given out again either.
    for path in entries(&root.join("trash"))? {
        let number =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<u64>().ok());
        state.next = state.next.max(number.unwrap_or_default());
    }
    Ok(())
}

fn entries(directory: &Path) -> Result<Vec<std::path::PathBuf>, StoreError> {
    let list = || -> io::Result<Vec<_>> {
        fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.path())).collect()
    };
    list().map_err(StoreError::io("list", directory))
}

/// Identifies this boot of the kernel. Without it no unmarked layer is ever trusted, which is the safe side.
fn boot_id() -> String {
    let read = files::read(Path::new("/proc/sys/kernel/random/boot_id"), 128);
    let text = read.ok().map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned());
    text.filter(|text| !text.is_empty()).unwrap_or_else(|| {
        let now = jiff::Timestamp::now();
        format!("unknown-{now}-{}", std::process::id())
    })
}
