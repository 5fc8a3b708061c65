//! The ext4 superblock, as far as init reads and edits it (Documentation/filesystems/ext4/super.rst).
//!
//! The template's identity is replaced on first boot. All metadata checksums are seeded by the UUID, so a file
//! system with `metadata_csum` gets the seed of its old UUID written down (`metadata_csum_seed`, what `tune2fs -U`
//! does too); then only the superblock's own checksum changes.

/// Where the superblock starts on the device. Unit: bytes.
pub(crate) const OFFSET: u64 = 1024;
/// Its size. Unit: bytes.
pub(crate) const SIZE: usize = 1024;

const MAGIC: u16 = 0xEF53;
const RO_COMPAT_METADATA_CSUM: u32 = 0x400;
const INCOMPAT_64BIT: u32 = 0x80;
const INCOMPAT_CSUM_SEED: u32 = 0x2000;
/// `EXT4_VALID_FS`: unmounted in order.
const STATE_CLEAN: u16 = 1;
/// `EXT4_ERROR_FS`
const STATE_ERRORS: u16 = 2;

mod at {
    pub(super) const BLOCKS_LOW: usize = 0x04;
    pub(super) const LOG_BLOCK_SIZE: usize = 0x18;
    pub(super) const BLOCKS_PER_GROUP: usize = 0x20;
    pub(super) const MAGIC: usize = 0x38;
    pub(super) const STATE: usize = 0x3A;
    pub(super) const INODE_SIZE: usize = 0x58;
    pub(super) const INCOMPAT: usize = 0x60;
    pub(super) const RO_COMPAT: usize = 0x64;
    pub(super) const UUID: usize = 0x68;
    pub(super) const LABEL: usize = 0x78;
    pub(super) const HASH_SEED: usize = 0xEC;
    pub(super) const DESCRIPTOR_SIZE: usize = 0xFE;
    pub(super) const BLOCKS_HIGH: usize = 0x150;
    pub(super) const CHECKSUM_SEED: usize = 0x270;
    pub(super) const CHECKSUM: usize = 0x3FC;
}

/// What is needed to find metadata.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// Unit: bytes.
    pub(crate) descriptor_size: usize,
    pub(crate) blocks_per_group: u64,
    /// Unit: bytes.
    pub(crate) inode_size: u64,
}

/// A superblock with the right magic and, where it has one, the right checksum.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Superblock([u8; SIZE]);

impl std::fmt::Debug for Superblock {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "ext4 {:?}", self.label())
    }
}

impl Superblock {
    /// `None` when this is no ext4 superblock or a damaged one.
    pub(crate) fn parse(bytes: &[u8; SIZE]) -> Option<Self> {
        let block = Self(*bytes);
        if block.u16(at::MAGIC) != MAGIC {
            return None;
        }
        let right = !block.has_checksum() || block.u32(at::CHECKSUM) == block.checksum();
        right.then_some(block)
    }

    /// The bytes.
    pub(crate) fn as_bytes(&self) -> &[u8; SIZE] {
        &self.0
    }

    /// The volume's label.
    pub(crate) fn label(&self) -> String {
        let bytes: Vec<u8> = self.field::<16>(at::LABEL).into_iter().take_while(|byte| *byte != 0).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The UUID's bytes.
    pub(crate) fn uuid(&self) -> [u8; 16] {
        self.field(at::UUID)
    }

    /// The block size; unit: bytes. `None` for a size ext4 does not have.
    pub(crate) fn block_size(&self) -> Option<u64> {
        match self.u32(at::LOG_BLOCK_SIZE) {
            log @ 0..=6 => 1024_u64.checked_shl(log),
            _ => None,
        }
    }

    /// Where its metadata lie; `None` for sizes ext4 does not have.
    pub(crate) fn layout(&self) -> Option<Layout> {
        let is_wide = self.u32(at::INCOMPAT) & INCOMPAT_64BIT != 0;
        let descriptor_size = if is_wide { usize::from(self.u16(at::DESCRIPTOR_SIZE)) } else { 32 };
        let blocks_per_group = u64::from(self.u32(at::BLOCKS_PER_GROUP));
        let inode_size = u64::from(self.u16(at::INODE_SIZE));
        let sound = matches!(descriptor_size, 32 | 64) && blocks_per_group > 0 && inode_size >= 128;
        sound.then_some(Layout { descriptor_size, blocks_per_group, inode_size })
    }

    /// How many blocks the file system has.
    pub(crate) fn blocks(&self) -> u64 {
        let high = if self.u32(at::INCOMPAT) & INCOMPAT_64BIT != 0 { self.u32(at::BLOCKS_HIGH) } else { 0 };
        (u64::from(high) << 32) | u64::from(self.u32(at::BLOCKS_LOW))
    }

    /// Whether it was unmounted in order and has no recorded error.
    pub(crate) fn is_clean(&self) -> bool {
        let state = self.u16(at::STATE);
        state & STATE_CLEAN != 0 && state & STATE_ERRORS == 0
    }

    /// Gives the file system a new identity. Only for one that is not mounted and whose directories are small: a
    /// hashed directory made with the old seed would be searched with the new one.
    pub(crate) fn set_identity(&mut self, uuid: [u8; 16], hash_seed: [u8; 16]) {
        if self.has_checksum() && self.u32(at::INCOMPAT) & INCOMPAT_CSUM_SEED == 0 {
            let seed = crc32c(!0, &self.uuid());
            self.put(at::CHECKSUM_SEED, seed.to_le_bytes());
            self.put(at::INCOMPAT, (self.u32(at::INCOMPAT) | INCOMPAT_CSUM_SEED).to_le_bytes());
        }
        self.put(at::UUID, uuid);
        self.put(at::HASH_SEED, hash_seed);
        if self.has_checksum() {
            self.put(at::CHECKSUM, self.checksum().to_le_bytes());
        }
    }

    fn has_checksum(&self) -> bool {
        self.u32(at::RO_COMPAT) & RO_COMPAT_METADATA_CSUM != 0
    }

    fn checksum(&self) -> u32 {
        crc32c(!0, self.0.get(..at::CHECKSUM).unwrap_or_default())
    }

    fn field<const N: usize>(&self, offset: usize) -> [u8; N] {
        let bytes = self.0.get(offset..).and_then(|rest| rest.first_chunk::<N>());
        bytes.copied().unwrap_or([0; N])
    }

    fn put<const N: usize>(&mut self, offset: usize, value: [u8; N]) {
        if let Some(bytes) = self.0.get_mut(offset..).and_then(|rest| rest.first_chunk_mut::<N>()) {
            *bytes = value;
        }
    }

    fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.field(offset))
    }

    fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.field(offset))
    }
}

/// CRC-32C (Castagnoli), reflected, without the final inversion: as ext4 uses it.
pub(crate) fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82F6_3B78;
    let mut crc = seed;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
        }
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;
    use std::process::Command;

    #[test]
    fn the_check_value_of_crc32c_is_right() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xE306_9283);
    }

    #[test]
    fn what_is_no_superblock_is_refused() {
        assert!(Superblock::parse(&[0; SIZE]).is_none());
        assert!(Superblock::parse(&[0xFF; SIZE]).is_none());
    }

    fn run(program: &str, args: &[&str]) -> Option<String> {
        let output = Command::new(program).args(args).output().ok()?;
        assert!(
            output.status.success(),
            "{program} {args:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    #[test]
    fn a_new_identity_leaves_a_file_system_e2fsck_finds_clean() {
        for features in ["metadata_csum,64bit", "metadata_csum,metadata_csum_seed", "^metadata_csum,^64bit"] {
            let file = tempfile::NamedTempFile::new().unwrap();
            file.as_file().set_len(64 << 20).unwrap();
            let path = file.path().to_str().unwrap();
            let made = run(
                "mke2fs",
                &["-q", "-F", "-t", "ext4", "-b", "4096", "-O", features, "-L", "BERTH_STATE", path],
            );
            if made.is_none() {
                return; // no e2fsprogs here
            }
            let mut bytes = [0; SIZE];
            file.as_file().read_exact_at(&mut bytes, OFFSET).unwrap();
            let mut block = Superblock::parse(&bytes).unwrap();
            assert_eq!(block.label(), "BERTH_STATE");
            assert_eq!(block.block_size(), Some(4096));
            assert_eq!(block.blocks(), 16384);
            assert!(block.is_clean());
            block.set_identity(*b"0123456789abcdef", *b"fedcba9876543210");
            file.as_file().write_all_at(block.as_bytes(), OFFSET).unwrap();
            run("e2fsck", &["-fn", path]);
            let listing = run("dumpe2fs", &["-h", path]).unwrap();
            assert!(listing.contains("30313233-3435-3637-3839-616263646566"), "{features}: {listing}");
            assert!(listing.contains("66656463-6261-3938-3736-353433323130"), "{features}: {listing}");
            bytes = *block.as_bytes();
            bytes[0x80] ^= 1;
            assert_eq!(Superblock::parse(&bytes).is_none(), features.starts_with("metadata"), "{features}");
        }
    }
}
