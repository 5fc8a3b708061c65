//! The state file system on `/var`: found by its label, made on a blank disk from the template, or kept in memory.
//!
//! There is no mkfs in the image. The template is made at build time, for instance by
//! `mke2fs -q -F -t ext4 -b 4096 -I 256 -L BERTH_STATE -O metadata_csum,64bit -E resize=268435456,lazy_itable_init=1
//! state.ext4 64M`; any feature set the kernel mounts will do, with or without `metadata_csum_seed` (see
//! [`superblock`]). The first boot copies it, gives it a UUID and a hash seed of its own, and lets the kernel grow it.

mod probe;
mod superblock;
mod template;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt};

use probe::{Choice, Device, LABEL, choose, devices, is_zero, read_superblock as superblock_of};
use rustix::fs::FallocateFlags;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use superblock::Superblock;

use crate::kmsg::{note, warn};
use crate::{loopdev, settings, timeline};

const TEMPLATE: &str = "/usr/share/berth/state.ext4";
/// Where the state lives.
const TARGET: &str = "/var";
/// A tmpfs that holds the disk in memory; nobody sees it once the disk is mounted.
const MEMORY: &str = "/run/berth/memory";
const MEMORY_FILE: &str = "/run/berth/memory/state.img";
/// Copying by this much; the template is mostly zeros, which are not written. Unit: bytes.
const CHUNK: usize = 256 * 1024;
/// The last group may be too small to be used: then there is nothing to gain. Unit: blocks.
const GROWTH_MIN: u64 = 2048;
/// A template larger than this is a mistake of the build. Unit: bytes.
const TEMPLATE_MAX: u64 = 1 << 30;

/// Why a device does not become the state.
#[derive(Debug, thiserror::Error)]
enum StateError {
    #[error("{0} does not open")]
    Open(String, #[source] io::Error),
    #[error("the template is not copied to {0}")]
    Copy(String, #[source] io::Error),
    #[error("the template is not a sound ext4")]
    Template,
    #[error("{0} does not mount")]
    Mount(String, #[source] io::Error),
    #[error("no memory for a disk")]
    Memory(#[source] io::Error),
}

impl StateError {
    fn chain(&self) -> String {
        match std::error::Error::source(self) {
            Some(source) => format!("{self}: {source}"),
            None => self.to_string(),
        }
    }
}

/// Mounts the state on `/var`, whatever it takes. Without any, `/var` stays a plain tmpfs.
pub(crate) fn mount_state() {
    let devices = devices();
    let outcome = match choose(&devices) {
        Choice::Mount(device) => existing(device),
        Choice::Make(device) => first_boot(device),
        Choice::Nothing => {
            note!("no state disk: nothing will be kept over a reboot");
            Err(None)
        }
        Choice::Unclear(count) => {
            warn!(
                "{count} blank disks and none has the serial {}: none is used, nothing will be kept, continuing",
                probe::SERIAL
            );
            Err(None)
        }
    };
    if let Err(reason) = outcome {
        if let Some(error) = reason {
            warn!("state disk: {}; nothing will be kept, continuing", error.chain());
        }
        in_memory();
    }
    timeline::mark("state-mounted");
}

/// A state file system of an earlier boot.
fn existing(device: &Device) -> Result<(), Option<StateError>> {
    let path = format!("/dev/{}", device.name);
    let file = File::open(&path).map_err(|error| StateError::Open(path.clone(), error))?;
    let clean = superblock_of(&file).ok().flatten().is_some_and(|block| block.is_clean());
    mount_at(&path)?;
    let how = if clean { "clean" } else { "after its journal was replayed" };
    note!("state disk {} mounted, {how}", device.name);
    grow(&file, &device.name);
    Ok(())
}

/// A blank disk: the copy counts only when complete, because the superblock is written last.
fn first_boot(device: &Device) -> Result<(), Option<StateError>> {
    let path = format!("/dev/{}", device.name);
    let file = File::options()
        .read(true)
        .write(true)
        .open(&path)
        .map_err(|error| StateError::Open(path.clone(), error))?;
    write_template(&file, &path)?;
    note!("state disk {} was blank: file system made", device.name);
    timeline::mark("state-made");
    mount_at(&path)?;
    note!("state disk {} mounted", device.name);
    grow(&file, &device.name);
    Ok(())
}

/// The same file system on a disk in memory, so that everything behaves alike.
fn in_memory() {
    match try_in_memory() {
        Ok(()) => note!("state disk in memory mounted"),
        Err(error) => {
            warn!("state disk in memory: {}; a plain tmpfs is used, continuing", error.chain());
            let options = c"mode=0755,size=50%";
            if let Err(error) = mount("tmpfs", TARGET, "tmpfs", MountFlags::NODEV, options) {
                warn!("no tmpfs on {TARGET}: {error}, continuing");
            }
        }
    }
}

fn try_in_memory() -> Result<(), StateError> {
    crate::mounts::make_folder(MEMORY, 0o700).map_err(StateError::Memory)?;
    mount("tmpfs", MEMORY, "tmpfs", MountFlags::NODEV | MountFlags::NOSUID, c"mode=0700,size=50%")
        .map_err(|error| StateError::Memory(error.into()))?;
    let made = memory_disk();
    // The loop device holds the file; the folder would only invite.
    if let Err(error) = unmount(MEMORY, UnmountFlags::DETACH) {
        warn!("{MEMORY} stays mounted: {error}, continuing");
    }
    made
}

fn memory_disk() -> Result<(), StateError> {
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(MEMORY_FILE)
        .map_err(StateError::Memory)?;
    let statvfs = rustix::fs::fstatvfs(&file).map_err(|error| StateError::Memory(error.into()))?;
    // Whole MiB, so that every block size fits.
    let size = statvfs.f_blocks.saturating_mul(statvfs.f_frsize) >> 20 << 20;
    file.set_len(size).map_err(StateError::Memory)?;
    write_template(&file, "memory")?;
    timeline::mark("state-made");
    let device = loopdev::attach(&file, false).map_err(StateError::Memory)?;
    mount_at(&device.path)?;
    grow(&device.file, "in memory");
    Ok(())
}

fn mount_at(path: &str) -> Result<(), StateError> {
    let flags = MountFlags::NOATIME;
    match mount(path, TARGET, "ext4", flags, c"errors=remount-ro") {
        Ok(()) => Ok(()),
        Err(error) => Err(StateError::Mount(path.to_owned(), error.into())),
    }
}

/// Copies the template, leaving zeros out, with a new identity. The superblock goes last and is synced apart.
fn write_template(target: &File, name: &str) -> Result<(), StateError> {
    let failed = |error| StateError::Copy(name.to_owned(), error);
    let template = File::open(TEMPLATE).map_err(failed)?;
    let mut block = superblock_of(&template).map_err(failed)?.ok_or(StateError::Template)?;
    if block.label() != LABEL || !block.is_clean() {
        return Err(StateError::Template);
    }
    let (mut uuid, seed) = (settings::random::<16>().map_err(failed)?, settings::random().map_err(failed)?);
    // RFC 9562: version 4, variant 1.
    for (byte, keep, set) in [(6, 0x0F, 0x40), (8, 0x3F, 0x80)] {
        if let Some(byte) = uuid.get_mut(byte) {
            *byte = *byte & keep | set;
        }
    }
    block.set_identity(uuid, seed);
    timeline::mark("state-blank");
    clear(target, &template).map_err(failed)?;
    copy_used(&template, &block, target).map_err(failed)?;
    target.sync_all().map_err(failed)?;
    target.write_all_at(block.as_bytes(), superblock::OFFSET).map_err(failed)?;
    target.sync_all().map_err(failed)
}

/// Zeros where the template will be: only its ends were looked at, and zeros are not copied.
fn clear(target: &File, template: &File) -> io::Result<()> {
    let length = template.metadata()?.len();
    // A file in memory is new and has no other bytes; a device clears itself or the kernel writes zeros.
    if target.metadata()?.file_type().is_block_device() {
        rustix::fs::fallocate(target, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, 0, length)?;
    }
    Ok(())
}

/// Copies what the template uses, page by page, without zeros. The superblock stays zero: a copy cut short must not
/// look like a file system.
fn copy_used(template: &File, block: &Superblock, target: &File) -> io::Result<()> {
    let length = template.metadata()?.len();
    if length > TEMPLATE_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let whole = 0..length;
    let ranges = template::used(template, block).unwrap_or_else(|| vec![whole]);
    let mut chunk = vec![0; CHUNK];
    for range in ranges {
        let mut offset = range.start;
        while offset < range.end {
            let left = usize::try_from(range.end.saturating_sub(offset)).unwrap_or(CHUNK);
            let bytes = chunk.get_mut(..left.min(CHUNK)).unwrap_or_default();
            template.read_exact_at(bytes, offset)?;
            if offset == 0 {
                let start = usize::try_from(superblock::OFFSET).unwrap_or(usize::MAX);
                bytes.iter_mut().skip(start).take(superblock::SIZE).for_each(|byte| *byte = 0);
            }
            for page in bytes.chunks(4096) {
                if !is_zero(page) {
                    target.write_all_at(page, offset)?;
                }
                offset = offset.saturating_add(page.len() as u64);
            }
        }
    }
    Ok(())
}

/// Lets the kernel grow the mounted file system to its device.
fn grow(device: &File, name: &str) {
    match try_grow(device) {
        Ok(None) => {}
        Ok(Some(mib)) => note!("state disk {name} has {mib} MiB now"),
        Err(error) => warn!("state disk {name} does not grow: {error}, continuing"),
    }
}

fn try_grow(device: &File) -> io::Result<Option<u64>> {
    let block = superblock_of(device)?.ok_or(io::ErrorKind::InvalidData)?;
    let block_size = block.block_size().ok_or(io::ErrorKind::InvalidData)?;
    let size = berth_sys::devices::block_device_size(device.as_fd())?;
    let blocks = size.checked_div(block_size).unwrap_or(0);
    if blocks <= block.blocks().saturating_add(GROWTH_MIN) {
        return Ok(None);
    }
    let root = File::open(TARGET)?;
    berth_sys::devices::ext4_resize(root.as_fd(), blocks)?;
    Ok(Some(size >> 20))
}
