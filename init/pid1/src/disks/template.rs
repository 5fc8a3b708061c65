//! Which blocks of the template carry anything, so that the first boot need not read the zeros between them.
//!
//! Taken from the block bitmaps (Documentation/filesystems/ext4/{group_descr,bitmaps,ifork}.rst); of the journal
//! only its first block, because the rest of an empty journal is never read. Whatever looks unusual makes the whole
//! template count as used: slower, never wrong.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::superblock::Superblock;

/// Most groups of a template; 128 MiB each. Unit: groups.
const GROUPS_MAX: u64 = 16;
/// `EXT4_BG_BLOCK_UNINIT`: the bitmap was never written.
const BLOCK_UNINIT: u16 = 2;
/// `EXT4_EXT_MAGIC`
const EXTENT_MAGIC: u16 = 0xF30A;
/// The only size of blocks a template has. Unit: bytes.
const BLOCK: usize = 4096;

/// Byte ranges to copy, in order. `None`: all of it.
pub(crate) fn used(file: &File, superblock: &Superblock) -> Option<Vec<Range<u64>>> {
    let layout = superblock.layout()?;
    let blocks = superblock.blocks();
    let groups = blocks.div_ceil(layout.blocks_per_group);
    if superblock.block_size()? != BLOCK as u64 || groups > GROUPS_MAX {
        return None;
    }
    // The descriptors follow the superblock's block; 16 groups of 64 bytes fit in one.
    let descriptors = block(file, 1).ok()?;
    let skipped = journal_tail(file, &descriptors, layout.descriptor_size == 64, layout.inode_size)?;
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for (group, descriptor) in (0..groups).zip(descriptors.chunks_exact(layout.descriptor_size)) {
        if u16_at(descriptor, 0x12)? & BLOCK_UNINIT != 0 {
            return None;
        }
        let bitmap = block(file, wide(descriptor, 0x00, 0x20, layout.descriptor_size == 64)?).ok()?;
        let first = group.checked_mul(layout.blocks_per_group)?;
        let bits = bitmap.iter().flat_map(|byte| (0..8).map(move |bit| (byte >> bit) & 1 == 1));
        for (number, used) in (first..first.checked_add(layout.blocks_per_group)?.min(blocks)).zip(bits) {
            if used && !skipped.iter().any(|range| range.contains(&number)) {
                extend(&mut ranges, number.checked_mul(BLOCK as u64)?);
            }
        }
    }
    Some(ranges)
}

fn extend(ranges: &mut Vec<Range<u64>>, start: u64) {
    let end = start.saturating_add(BLOCK as u64);
    match ranges.last_mut() {
        Some(last) if last.end == start => last.end = end,
        _ => ranges.push(start..end),
    }
}

/// The blocks of inode 8 but its first.
fn journal_tail(file: &File, descriptors: &[u8], is_wide: bool, inode_size: u64) -> Option<Vec<Range<u64>>> {
    let table = wide(descriptors, 0x08, 0x28, is_wide)?;
    let mut inode = [0; 160];
    let offset = table.checked_mul(BLOCK as u64)?.checked_add(inode_size.checked_mul(7)?)?;
    file.read_exact_at(&mut inode, offset).ok()?;
    let tree = inode.get(0x28..0x64)?;
    let depth = u16_at(tree, 6)?;
    if u16_at(tree, 0)? != EXTENT_MAGIC || depth != 0 {
        return Some(vec![]);
    }
    let entries = usize::from(u16_at(tree, 2)?);
    let mut tail = Vec::new();
    for extent in tree.get(12..)?.chunks_exact(12).take(entries) {
        let start = (u64::from(u16_at(extent, 6)?) << 32) | u64::from(u32_at(extent, 8)?);
        let end = start.checked_add(u64::from(u16_at(extent, 4)?))?;
        let kept = u64::from(u32_at(extent, 0)? == 0);
        tail.push(start.checked_add(kept)?..end);
    }
    Some(tail)
}

fn block(file: &File, number: u64) -> io::Result<[u8; BLOCK]> {
    let mut bytes = [0; BLOCK];
    file.read_exact_at(&mut bytes, number.saturating_mul(BLOCK as u64))?;
    Ok(bytes)
}

fn wide(bytes: &[u8], low: usize, high: usize, is_wide: bool) -> Option<u64> {
    let high = if is_wide { u32_at(bytes, high)? } else { 0 };
    Some((u64::from(high) << 32) | u64::from(u32_at(bytes, low)?))
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn succeeds(program: &str, arguments: &[&str]) -> Option<()> {
        let output = Command::new(program).args(arguments).output().ok()?;
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stdout));
        Some(())
    }

    #[test]
    fn the_used_blocks_alone_are_a_whole_file_system() {
        for (features, size) in
            [("metadata_csum,64bit", 64 << 20), ("^64bit,^metadata_csum", 64 << 20), ("64bit", 300 << 20)]
        {
            let template = tempfile::NamedTempFile::new().unwrap();
            template.as_file().set_len(size).unwrap();
            let path = template.path().to_str().unwrap();
            let arguments = ["-q", "-F", "-t", "ext4", "-b", "4096", "-J", "size=16", "-O", features, path];
            if succeeds("mke2fs", &arguments).is_none() {
                return; // no e2fsprogs here
            }
            let superblock = super::super::superblock_of(template.as_file()).unwrap().unwrap();
            // Groups whose bitmap mke2fs left out make everything count.
            let Some(ranges) = used(template.as_file(), &superblock) else {
                assert!(size > 128 << 20);
                continue;
            };
            let bytes: u64 = ranges.iter().map(|range| range.end - range.start).sum();
            assert!(bytes < size / 4, "{bytes} of {size}");
            let copy = tempfile::NamedTempFile::new().unwrap();
            copy.as_file().set_len(size).unwrap();
            for range in ranges {
                let mut piece = vec![0; usize::try_from(range.end - range.start).unwrap()];
                template.as_file().read_exact_at(&mut piece, range.start).unwrap();
                copy.as_file().write_all_at(&piece, range.start).unwrap();
            }
            succeeds("e2fsck", &["-fn", copy.path().to_str().unwrap()]).unwrap();
        }
    }
}
