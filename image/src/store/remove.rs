//! Removing images: names first, then the image, then every layer and blob nothing refers to any more.
//!
//! Mark and sweep over memory, under the store's lock, so counts cannot drift. Layers that a running pull or a
//! container being made leases are kept. Directories are renamed into the trash and deleted in the background.

use std::collections::HashSet;
use std::fs;
use std::time::{Duration, SystemTime};

use super::files;
use super::images::{self, FindError, Image};
use super::layers::LayerNumber;
use super::{State, Store, StoreError};
use crate::digest::Digest;
use crate::reference::Reference;

/// Whether containers use an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Use {
    /// None does.
    Free,
    /// Containers that do not run; one of them by short id.
    Stopped(String),
    /// At least one runs; its short id.
    Running(String),
}

/// One thing that was removed, in the order Docker reports them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// A name or `repository@digest`, in familiar form.
    Untagged(String),
    /// An image id or a layer's diff id.
    Deleted(String),
}

/// The image cannot be removed. Texts are Docker's.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// No image goes by that name.
    #[error(transparent)]
    Find(#[from] FindError),
    /// Asked for by id, but it has names in several repositories.
    #[error("conflict: unable to delete {0} (must be forced) - image is referenced in multiple repositories")]
    ManyNames(String),
    /// A container needs the image and this is its last name.
    #[error(
        "conflict: unable to remove repository reference {name:?} (must force) - container {container} is using its referenced image {image}"
    )]
    Referenced {
        /// The name as the user wrote it.
        name: String,
        /// Short id of the container.
        container: String,
        /// Short id of the image.
        image: String,
    },
    /// A container that does not run needs it.
    #[error(
        "conflict: unable to delete {image} (must be forced) - image is being used by stopped container {container}"
    )]
    Stopped {
        /// Short id of the image.
        image: String,
        /// Short id of the container.
        container: String,
    },
    /// A running container needs it.
    #[error(
        "conflict: unable to delete {image} (cannot be forced) - image is being used by running container {container}"
    )]
    Running {
        /// Short id of the image.
        image: String,
        /// Short id of the container.
        container: String,
    },
    /// The store's files could not be changed.
    #[error("cannot remove image from the store")]
    Store(#[source] StoreError),
}

/// What a prune did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// What was removed.
    pub removed: Vec<Removed>,
    /// Bytes of file content in the layers that went.
    pub freed: u64,
}

impl Store {
    /// Removes the name `text`, and the image with it when that was its last name and nothing uses it.
    ///
    /// With `force` an id takes all its names along, and an image that containers use loses its name but stays,
    /// nameless, until they are gone. Only an id that running containers use cannot be forced.
    pub fn remove(
        &self,
        text: &str,
        force: bool,
        in_use: &dyn Fn(&Image) -> Use,
    ) -> Result<Vec<Removed>, RemoveError> {
        let mut state = self.state();
        let id = images::lookup(&state, text)?;
        let image = state.images.get(&id).map(|entry| images::image(&state, entry));
        let Some(image) = image else { return Err(FindError::NotFound(text.to_owned()).into()) };
        let named: Option<Reference> = text
            .parse::<Reference>()
            .ok()
            .filter(|name| name.digest().is_none() && state.names.get(name) == Some(&id));
        let going = match &named {
            Some(name) => vec![name.clone()],
            None => image.names.clone(),
        };
        let last = going.len() == image.names.len();
        if named.is_none() && !force {
            let repositories: HashSet<String> = image.names.iter().map(Reference::name).collect();
            if repositories.len() > 1 {
                return Err(RemoveError::ManyNames(image.id.short().to_owned()));
            }
        }
        let delete = last && may_delete(&image, named.as_ref().map(|_| text), force, in_use)?;
        let mut removed = Vec::new();
        self.untag(&mut state, &going, &mut removed).map_err(RemoveError::Store)?;
        if delete {
            self.delete_image(&mut state, &image, &mut removed).map_err(RemoveError::Store)?;
            let (layers, _) = self.sweep_state(&mut state, Duration::ZERO).map_err(RemoveError::Store)?;
            removed.extend(layers.into_iter().map(|diff_id| Removed::Deleted(diff_id.to_string())));
            self.inner.upkeep.empty_trash();
        }
        Ok(removed)
    }

    /// Removes every unused image without a name, or with `all` every unused image, and leftover layers.
    pub fn prune(&self, all: bool, in_use: &dyn Fn(&Image) -> Use) -> Result<Pruned, StoreError> {
        let mut state = self.state();
        let mut pruned = Pruned::default();
        let names = images::names_of(&state);
        let candidates: Vec<Image> = state
            .images
            .values()
            .filter(|entry| all || !names.contains_key(&entry.record.id))
            .map(|entry| images::image(&state, entry))
            .collect();
        for image in candidates.iter().filter(|image| in_use(image) == Use::Free) {
            self.untag(&mut state, &image.names, &mut pruned.removed)?;
            self.delete_image(&mut state, image, &mut pruned.removed)?;
        }
        let (layers, freed) = self.sweep_state(&mut state, Duration::ZERO)?;
        pruned.removed.extend(layers.into_iter().map(|diff_id| Removed::Deleted(diff_id.to_string())));
        pruned.freed = freed;
        self.inner.upkeep.empty_trash();
        Ok(pruned)
    }

    /// Bytes of file content over all layers, each counted once.
    pub fn disk_usage(&self) -> u64 {
        self.state().layers.values().map(|layer| layer.size).sum()
    }

    /// Drops layers and blobs no image refers to; layers only when they are older than `age`.
    pub(super) fn sweep(&self, age: Duration) -> Result<(), StoreError> {
        self.sweep_state(&mut self.state(), age).map(|_| ())
    }

    fn untag(
        &self,
        state: &mut State,
        names: &[Reference],
        removed: &mut Vec<Removed>,
    ) -> Result<(), StoreError> {
        for name in names {
            let path = self.name_path(name);
            files::remove(&path)?;
            files::sync_parent(&path).map_err(StoreError::io("sync", &path))?;
            state.names.remove(name);
            removed.push(Removed::Untagged(name.familiar()));
        }
        Ok(())
    }

    fn delete_image(
        &self,
        state: &mut State,
        image: &Image,
        removed: &mut Vec<Removed>,
    ) -> Result<(), StoreError> {
        let path = self.image_path(&image.id);
        files::remove(&path)?;
        files::sync_parent(&path).map_err(StoreError::io("sync", &path))?;
        state.images.remove(&image.id);
        removed.extend(image.repo_digests.iter().cloned().map(Removed::Untagged));
        removed.push(Removed::Deleted(image.id.to_string()));
        Ok(())
    }

    /// Returns the diff ids of the layers that went and the bytes they held.
    fn sweep_state(&self, state: &mut State, age: Duration) -> Result<(Vec<Digest>, u64), StoreError> {
        let kept: HashSet<LayerNumber> = state
            .images
            .values()
            .flat_map(|entry| entry.record.layers.iter().copied())
            .chain(state.pins.keys().copied())
            .collect();
        let unused: Vec<LayerNumber> = state
            .layers
            .keys()
            .copied()
            .filter(|number| !kept.contains(number) && self.is_older(*number, age))
            .collect();
        let mut gone = Vec::new();
        let mut freed = 0;
        for number in unused {
            let path = self.layer_directory(number);
            let trash = self.inner.root.join("trash").join(number.0.to_string());
            fs::rename(&path, &trash).map_err(StoreError::io("discard", &path))?;
            if let Some(layer) = state.layers.remove(&number) {
                freed += layer.size;
                gone.push(layer.diff_id);
            }
        }
        self.sweep_blobs(state)?;
        Ok((gone, freed))
    }

    fn sweep_blobs(&self, state: &State) -> Result<(), StoreError> {
        let kept: HashSet<_> = state
            .images
            .values()
            .flat_map(|entry| {
                [&entry.record.id, &entry.record.manifest].into_iter().chain(&entry.record.blobs)
            })
            .map(|digest| self.blob_path(digest))
            .collect();
        for algorithm in ["sha256", "sha512"] {
            let directory = self.inner.root.join("blobs").join(algorithm);
            let entries = fs::read_dir(&directory).map_err(StoreError::io("list", &directory))?;
            for entry in entries.filter_map(Result::ok) {
                if !kept.contains(&entry.path()) {
                    files::remove(&entry.path())?;
                }
            }
        }
        Ok(())
    }

    fn is_older(&self, number: LayerNumber, age: Duration) -> bool {
        if age.is_zero() {
            return true;
        }
        let written =
            fs::metadata(self.layer_directory(number).join("layer.json")).and_then(|meta| meta.modified());
        let elapsed = written.ok().and_then(|written| SystemTime::now().duration_since(written).ok());
        elapsed.is_some_and(|elapsed| elapsed > age)
    }
}

/// Whether the image goes with its last name, or an error when not even the name may go.
fn may_delete(
    image: &Image,
    name: Option<&str>,
    force: bool,
    in_use: &dyn Fn(&Image) -> Use,
) -> Result<bool, RemoveError> {
    let id = image.id.short().to_owned();
    match (in_use(image), name) {
        (Use::Free, _) => Ok(true),
        (Use::Stopped(_), _) | (Use::Running(_), Some(_)) if force => Ok(false),
        (Use::Stopped(container) | Use::Running(container), Some(name)) => {
            Err(RemoveError::Referenced { name: name.to_owned(), container, image: id })
        }
        (Use::Stopped(container), None) => Err(RemoveError::Stopped { image: id, container }),
        (Use::Running(container), None) => Err(RemoveError::Running { image: id, container }),
    }
}
