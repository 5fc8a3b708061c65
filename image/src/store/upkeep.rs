//! Background work of the store: making layers durable, and deleting what was removed.
//!
//! One thread, so that syncs coalesce and deleting never competes with itself. It knows only the store's directory,
//! not the store: when the last handle is gone the channel closes and the thread ends.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use super::layers;

/// Stack of the thread in bytes. It deletes trees recursively, which the unpacker keeps below 260 levels.
const STACK: usize = 1 << 20;

enum Job {
    Durable,
    EmptyTrash,
    Settle(Sender<()>),
}

/// The sending end.
#[derive(Debug)]
pub(super) struct Upkeep {
    jobs: Sender<Job>,
}

impl Upkeep {
    pub(super) fn start(root: &Path) -> io::Result<Self> {
        let (jobs, inbox) = channel();
        let root = root.to_owned();
        thread::Builder::new()
            .name("image-upkeep".into())
            .stack_size(STACK)
            .spawn(move || run(&root, &inbox))?;
        Ok(Self { jobs })
    }

    /// Syncs the file system and then marks every layer committed before this call.
    pub(super) fn make_durable(&self) {
        // The thread lives as long as this sender.
        let _ = self.jobs.send(Job::Durable);
    }

    pub(super) fn empty_trash(&self) {
        let _ = self.jobs.send(Job::EmptyTrash);
    }

    pub(super) fn settle(&self) {
        let (done, wait) = channel();
        let _ = self.jobs.send(Job::Settle(done));
        let _ = wait.recv();
    }
}

fn run(root: &Path, inbox: &Receiver<Job>) {
    let mut marked = BTreeSet::new();
    while let Ok(first) = inbox.recv() {
        // Requests that came together need one sync only.
        let mut jobs = vec![first];
        jobs.extend(inbox.try_iter());
        if jobs.iter().any(|job| matches!(job, Job::Durable)) {
            // Without a successful sync no layer is marked; the next request tries again.
            let _ = make_durable(root, &mut marked);
        }
        if jobs.iter().any(|job| matches!(job, Job::EmptyTrash)) {
            empty(&root.join("trash"));
        }
        for job in jobs {
            if let Job::Settle(done) = job {
                let _ = done.send(());
            }
        }
    }
}

fn make_durable(root: &Path, marked: &mut BTreeSet<OsString>) -> io::Result<()> {
    let layers = root.join("layers");
    let unmarked: Vec<PathBuf> = fs::read_dir(&layers)?
        .filter_map(Result::ok)
        .filter(|entry| !marked.contains(&entry.file_name()))
        .map(|entry| entry.path())
        .filter(|path| path.join("layer.json").exists() && !path.join("complete").exists())
        .collect();
    // Without new layers too: records and names wait for it.
    rustix::fs::syncfs(fs::File::open(&layers)?)?;
    for directory in unmarked {
        match layers::mark_complete(&directory) {
            Ok(()) => marked.extend(directory.file_name().map(OsString::from)),
            // Removed in the meantime.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Deletes all that is in `directory`. What cannot be deleted stays for the next time.
pub(super) fn empty(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.filter_map(Result::ok) {
        let path = entry.path();
        let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
    }
}
