//! ioctls on devices and file systems that PID 1 needs: loop devices, ext4 growth, entropy, watchdog, input.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

// Request numbers from linux/loop.h, linux/random.h, linux/watchdog.h and fs/ext4/ext4.h.
const LOOP_CTL_GET_FREE: u64 = 0x4C82;
const LOOP_CONFIGURE: u64 = 0x4C0A;
const LOOP_CLR_FD: u64 = 0x4C01;
const EXT4_IOC_RESIZE_FS: u64 = 0x4008_6610;
const RNDADDENTROPY: u64 = 0x4008_5203;
const WDIOC_KEEPALIVE: u64 = 0x8004_5705;
const WDIOC_SETTIMEOUT: u64 = 0xC004_5706;
const BLKGETSIZE64: u64 = 0x8008_1272;

const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// `LO_NAME_SIZE`
const LOOP_NAME_SIZE: usize = 64;
/// Most seed bytes handed over at once.
pub const SEED_MAX: usize = 512;

/// `struct loop_info64`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; LOOP_NAME_SIZE],
    crypt_name: [u8; LOOP_NAME_SIZE],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// `struct rand_pool_info` with room for [`SEED_MAX`] bytes.
#[repr(C)]
struct Seed {
    entropy_bits: i32,
    size: i32,
    bytes: [u8; SEED_MAX],
}

/// The number of a free loop device, made when there is none. `control` is `/dev/loop-control`.
///
/// # Errors
/// What the ioctl says.
pub fn loop_free(control: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: the request takes no argument.
    let result = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    let number = crate::checked(result.into())?;
    u32::try_from(number).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Puts `file` behind the loop device `device`, which frees itself after its last user.
///
/// # Errors
/// `EBUSY` when somebody else was faster, else what the ioctl says.
pub fn loop_attach(device: BorrowedFd<'_>, file: BorrowedFd<'_>, read_only: bool) -> io::Result<()> {
    // SAFETY: the struct consists of integers, for which all zeros is a value.
    let mut config: LoopConfig = unsafe { std::mem::zeroed() };
    config.fd = file.as_raw_fd().unsigned_abs();
    config.info.flags = LO_FLAGS_AUTOCLEAR | if read_only { LO_FLAGS_READ_ONLY } else { 0 };
    // SAFETY: `config` has the layout of struct loop_config and outlives the call; the kernel takes a reference
    // of its own to the file.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    crate::checked(result.into()).map(drop)
}

/// Frees a loop device, or marks it to free itself after its last user.
///
/// # Errors
/// `ENXIO` when nothing is behind it.
pub fn loop_detach(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request takes no argument.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD, 0) };
    crate::checked(result.into()).map(drop)
}

/// The size of a block device in bytes.
///
/// # Errors
/// What the ioctl says.
pub fn block_device_size(device: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes = 0_u64;
    // SAFETY: the kernel writes one u64, which outlives the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), BLKGETSIZE64, &raw mut bytes) };
    crate::checked(result.into())?;
    Ok(bytes)
}

/// Grows the mounted ext4 file system of which `root` is a directory to `blocks` of its blocks.
///
/// # Errors
/// What the kernel says; the file system is whole either way.
pub fn ext4_resize(root: BorrowedFd<'_>, blocks: u64) -> io::Result<()> {
    // SAFETY: the kernel reads one u64, which outlives the call.
    let result = unsafe { libc::ioctl(root.as_raw_fd(), EXT4_IOC_RESIZE_FS, &raw const blocks) };
    crate::checked(result.into()).map(drop)
}

/// Mixes `seed` into the kernel's random pool and credits its full length. Longer than [`SEED_MAX`] is cut.
///
/// # Errors
/// What the ioctl says. `random` is `/dev/urandom`.
pub fn add_entropy(random: BorrowedFd<'_>, seed: &[u8]) -> io::Result<()> {
    let mut info = Seed { entropy_bits: 0, size: 0, bytes: [0; SEED_MAX] };
    for (to, from) in info.bytes.iter_mut().zip(seed) {
        *to = *from;
        info.size = info.size.saturating_add(1);
    }
    info.entropy_bits = info.size.saturating_mul(8);
    // SAFETY: `info` has the layout of struct rand_pool_info with its bytes, and outlives the call.
    let result = unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, &raw const info) };
    crate::checked(result.into()).map(drop)
}

/// Feeds a watchdog device.
///
/// # Errors
/// What the ioctl says.
pub fn watchdog_feed(device: BorrowedFd<'_>) -> io::Result<()> {
    let unused = 0_i32;
    // SAFETY: the kernel ignores the argument; it is valid anyway.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), WDIOC_KEEPALIVE, &raw const unused) };
    crate::checked(result.into()).map(drop)
}

/// Sets a watchdog's timeout in seconds; gives what the device chose.
///
/// # Errors
/// What the ioctl says.
pub fn watchdog_timeout(device: BorrowedFd<'_>, seconds: u32) -> io::Result<u32> {
    let mut timeout = i32::try_from(seconds).unwrap_or(i32::MAX);
    // SAFETY: the kernel reads and writes one int, which outlives the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), WDIOC_SETTIMEOUT, &raw mut timeout) };
    crate::checked(result.into())?;
    u32::try_from(timeout).map_err(|_| io::ErrorKind::InvalidData.into())
}
