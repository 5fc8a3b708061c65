//! Asks a kernel file for its release, so that a kernel from anywhere can be checked against what runs later.

use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::Path;

/// No kernel we take is bigger, compressed or not; unit: bytes.
const FILE_MAX_BYTES: u64 = 512 << 20;

/// Longest release a kernel may have (`__NEW_UTS_LEN`); unit: bytes.
const RELEASE_MAX_BYTES: usize = 64;

/// Boot sector offsets of the x86 boot protocol: its magic, and where the version string is, less 0x200.
const MAGIC_AT: usize = 0x202;
const MAGIC: &[u8] = b"HdrS";
const VERSION_AT: usize = 0x20e;
const VERSION_BASE: usize = 0x200;

/// How every Linux kernel begins its banner.
const BANNER: &[u8] = b"Linux version ";

/// What `uname -r` will say when the bzImage or ELF file at `path` runs.
pub(crate) fn release(path: &Path) -> Result<String> {
    let bytes =
        fs::metadata(path).with_context(|| format!("looking at the kernel {}", path.display()))?.len();
    ensure!(bytes <= FILE_MAX_BYTES, "{} is too big for a kernel", path.display());
    let content = fs::read(path).with_context(|| format!("reading the kernel {}", path.display()))?;
    match release_in(&content) {
        Some(release) => Ok(release),
        None => bail!("{} is neither a bzImage nor an uncompressed kernel", path.display()),
    }
}

fn release_in(content: &[u8]) -> Option<String> {
    let text = if content.get(MAGIC_AT..)?.starts_with(MAGIC) {
        let offset = content.get(VERSION_AT..VERSION_AT + 2)?;
        let offset = offset.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte));
        content.get(VERSION_BASE + offset..)?
    } else {
        let banner = content.windows(BANNER.len()).position(|window| window == BANNER)?;
        content.get(banner + BANNER.len()..)?
    };
    let word =
        text.iter().take(RELEASE_MAX_BYTES).take_while(|byte| byte.is_ascii_graphic()).copied().collect();
    String::from_utf8(word).ok().filter(|release| !release.is_empty())
}

#[cfg(test)]
mod tests {
    use super::{MAGIC, MAGIC_AT, VERSION_AT, VERSION_BASE, release_in};

    #[test]
    fn a_bzimage_names_its_release_through_the_header() {
        let mut image = vec![0; 0x1000];
        image[MAGIC_AT..MAGIC_AT + 4].copy_from_slice(MAGIC);
        image[VERSION_AT..VERSION_AT + 2].copy_from_slice(&0x345_u16.to_le_bytes());
        let text = b"6.1.192-berth (berth@berth) #1\0";
        image[VERSION_BASE + 0x345..][..text.len()].copy_from_slice(text);
        assert_eq!(release_in(&image).as_deref(), Some("6.1.192-berth"));
    }

    #[test]
    fn an_elf_file_names_its_release_in_the_banner() {
        let mut file = vec![0; 0x400];
        file.extend_from_slice(b"Linux version 6.1.192-berth (gcc)\n\0");
        assert_eq!(release_in(&file).as_deref(), Some("6.1.192-berth"));
    }

    #[test]
    fn other_files_are_no_kernels() {
        let mut cut = vec![0; VERSION_AT + 1];
        cut[MAGIC_AT..MAGIC_AT + 4].copy_from_slice(MAGIC);
        for content in [&b""[..], &[0; 0x300], &cut] {
            assert_eq!(release_in(content), None);
        }
    }
}
