//! What is on the block devices: which one carries the state, which one is blank.
//!
//! A disk is blank only when its first and last MiB are all zeros; anything else may be somebody's data and is
//! never written to. The choice among what was found is a pure function.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::superblock::{self, Superblock};

/// The label of the state file system.
pub(crate) const LABEL: &str = "BERTH_STATE";
/// The serial by which a blank disk is offered among several (`-device virtio-blk,serial=berth-state`).
pub(crate) const SERIAL: &str = "berth-state";
/// What is looked at on both ends of a disk. Unit: bytes.
const EDGE: usize = 1 << 20;
/// Smaller disks are configuration media, not state. Unit: bytes.
const SIZE_MIN: u64 = 64 << 20;
/// Devices looked at; a machine with more has its state on one of the first. Unit: devices.
const DEVICES_MAX: usize = 512;

/// What a device holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// A state file system.
    State,
    /// Nothing at all.
    Blank,
    /// Something else.
    Other,
}

/// A block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    /// `vda`, `vda1`.
    pub(crate) name: String,
    pub(crate) serial: String,
    pub(crate) content: Content,
}

/// What to do about the state.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Choice<'a> {
    /// Mount this.
    Mount(&'a Device),
    /// Make a file system on this first.
    Make(&'a Device),
    /// No disk is offered.
    Nothing,
    /// Several blank disks and none has the serial.
    Unclear(usize),
}

/// Chooses: what carries state before what is blank, the serial before others.
pub(crate) fn choose(devices: &[Device]) -> Choice<'_> {
    let with = |content| devices.iter().filter(move |device| device.content == content);
    let named = |device: &&Device| device.serial == SERIAL;
    if let Some(device) = with(Content::State).find(named).or_else(|| with(Content::State).next()) {
        return Choice::Mount(device);
    }
    if let Some(device) = with(Content::Blank).find(named) {
        return Choice::Make(device);
    }
    match (with(Content::Blank).next(), with(Content::Blank).count()) {
        (Some(device), 1) => Choice::Make(device),
        (_, 0) => Choice::Nothing,
        (_, count) => Choice::Unclear(count),
    }
}

/// Looks at every disk and partition.
pub(crate) fn devices() -> Vec<Device> {
    let Ok(entries) = fs::read_dir("/sys/class/block") else { return vec![] };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !["loop", "ram", "zram", "sr", "fd"].iter().any(|kind| name.starts_with(kind)))
        .take(DEVICES_MAX)
        .collect();
    names.sort();
    names.into_iter().map(device).collect()
}

fn device(name: String) -> Device {
    let folder = Path::new("/sys/class/block").join(&name);
    let text = |file: &str| {
        fs::read_to_string(folder.join(file)).map(|text| text.trim().to_owned()).unwrap_or_default()
    };
    // Holders: it is part of something (dm, md). Read-only: nothing can be kept on it.
    let held = fs::read_dir(folder.join("holders")).is_ok_and(|mut holders| holders.next().is_some());
    let usable = !held && text("ro") == "0";
    let whole = !folder.join("partition").exists() && !has_partitions(&folder, &name);
    let content = if usable {
        content(&format!("/dev/{name}"), whole).unwrap_or(Content::Other)
    } else {
        Content::Other
    };
    Device { serial: text("serial"), name, content }
}

fn has_partitions(folder: &Path, name: &str) -> bool {
    fs::read_dir(folder).is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with(name))
    })
}

fn content(path: &str, whole: bool) -> io::Result<Content> {
    let file = File::open(path)?;
    if super::superblock_of(&file)?.is_some_and(|block| block.label() == LABEL) {
        return Ok(Content::State);
    }
    let size = berth_sys::devices::block_device_size(file.as_fd())?;
    if whole && size >= SIZE_MIN && is_blank(&file, size)? {
        return Ok(Content::Blank);
    }
    Ok(Content::Other)
}

/// Whether the first and the last MiB are all zeros.
pub(crate) fn is_blank(file: &File, size: u64) -> io::Result<bool> {
    let mut edge = vec![0; EDGE];
    for offset in [0, size.saturating_sub(EDGE as u64)] {
        file.read_exact_at(&mut edge, offset)?;
        if !is_zero(&edge) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

/// The ext4 superblock of a device, if it has a sound one.
pub(crate) fn read_superblock(file: &File) -> io::Result<Option<Superblock>> {
    let mut bytes = [0; superblock::SIZE];
    match file.read_exact_at(&mut bytes, superblock::OFFSET) {
        Ok(()) => Ok(Superblock::parse(&bytes)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(name: &str, serial: &str, content: Content) -> Device {
        Device { name: name.into(), serial: serial.into(), content }
    }

    #[test]
    fn the_choice_never_falls_on_somebodys_data() {
        use Content::{Blank, Other, State};
        let check = |list: &[(&str, Content)], expected: &str| {
            let devices: Vec<Device> = list
                .iter()
                .zip("abcdef".chars())
                .map(|((serial, content), name)| disk(&name.to_string(), serial, *content))
                .collect();
            let found = match choose(&devices) {
                Choice::Mount(device) => format!("mount {}", device.name),
                Choice::Make(device) => format!("make {}", device.name),
                Choice::Nothing => "nothing".into(),
                Choice::Unclear(count) => format!("unclear {count}"),
            };
            assert_eq!(found, expected, "{list:?}");
        };
        check(&[], "nothing");
        check(&[("", Other)], "nothing");
        check(&[(SERIAL, Other)], "nothing");
        check(&[("", Blank)], "make a");
        check(&[("", Other), ("", Blank)], "make b");
        check(&[("", Blank), ("", Blank)], "unclear 2");
        check(&[("", Blank), (SERIAL, Blank)], "make b");
        check(&[("", Blank), ("", State)], "mount b");
        check(&[(SERIAL, Blank), ("", State)], "mount b");
        check(&[("", State), (SERIAL, State)], "mount b");
        check(&[("", State), ("", State)], "mount a");
    }

    #[test]
    fn one_byte_at_either_end_is_data() {
        let size = 4 * EDGE as u64;
        for (offset, blank) in [
            (0, false),
            (EDGE as u64 - 1, false),
            (EDGE as u64, true),
            (size - EDGE as u64 - 1, true),
            (size - EDGE as u64, false),
            (size - 1, false),
        ] {
            let file = tempfile::tempfile().unwrap();
            file.set_len(size).unwrap();
            assert!(is_blank(&file, size).unwrap());
            file.write_all_at(&[1], offset).unwrap();
            assert_eq!(is_blank(&file, size).unwrap(), blank, "{offset}");
        }
    }
}
