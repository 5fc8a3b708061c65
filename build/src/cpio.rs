//! Writes the initramfs: the kernel's "newc" cpio format (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! The archive depends on nothing but its entries: sorted, owned by root, time 0, inode numbers counted from 1.

use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;

/// The bits of a mode that say what kind of file it is.
const KIND: u32 = 0o170_000;
const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const SYMLINK: u32 = 0o120_000;

/// Headers and contents each end on a multiple of this; unit: bytes.
const ALIGNMENT: usize = 4;

struct Entry {
    mode: u32,
    device: (u32, u32),
    content: Vec<u8>,
}

/// An archive being put together in memory.
#[derive(Default)]
pub(crate) struct Archive {
    entries: BTreeMap<String, Entry>,
}

impl Archive {
    /// Adds a folder and the folders above it, mode 0755.
    pub(crate) fn folder(&mut self, path: &str) {
        let mut at = String::new();
        for name in path.split('/').filter(|name| !name.is_empty()) {
            if !at.is_empty() {
                at.push('/');
            }
            at.push_str(name);
            let entry = Entry { mode: FOLDER | 0o755, device: (0, 0), content: Vec::new() };
            self.entries.entry(at.clone()).or_insert(entry);
        }
    }

    /// Adds a file and its folders.
    pub(crate) fn file(&mut self, path: &str, permissions: u32, content: Vec<u8>) {
        self.add(path, Entry { mode: FILE | permissions, device: (0, 0), content });
    }

    /// Adds a character device node.
    pub(crate) fn device(&mut self, path: &str, permissions: u32, major: u32, minor: u32) {
        self.add(
            path,
            Entry { mode: CHARACTER_DEVICE | permissions, device: (major, minor), content: Vec::new() },
        );
    }

    /// Adds a symbolic link.
    #[cfg_attr(not(test), expect(dead_code, reason = "the initramfs has no links yet; the format has them"))]
    pub(crate) fn symlink(&mut self, path: &str, target: &str) {
        self.add(path, Entry { mode: SYMLINK | 0o777, device: (0, 0), content: target.as_bytes().to_vec() });
    }

    fn add(&mut self, path: &str, entry: Entry) {
        let path = path.trim_start_matches('/');
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.folder(parent);
        }
        self.entries.insert(path.to_owned(), entry);
    }

    /// Writes the archive with its trailer.
    pub(crate) fn write(&self, out: &mut impl Write) -> Result<()> {
        for (number, (path, entry)) in (1_u32..).zip(&self.entries) {
            let links = if entry.mode & KIND == FOLDER { 2 } else { 1 };
            record(out, path, number, links, entry).with_context(|| format!("writing {path}"))?;
        }
        let trailer = Entry { mode: 0, device: (0, 0), content: Vec::new() };
        record(out, "TRAILER!!!", 0, 1, &trailer)
    }
}

fn record(out: &mut impl Write, path: &str, inode: u32, links: u32, entry: &Entry) -> Result<()> {
    let size = u32::try_from(entry.content.len()).context("a cpio file may not pass 4 GiB")?;
    let name_size = u32::try_from(path.len() + 1)?;
    let (major, minor) = entry.device;
    // Order: ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check.
    let fields = [inode, entry.mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0];
    let mut header = String::from("070701");
    for field in fields {
        write!(header, "{field:08x}")?;
    }
    header.push_str(path);
    header.push('\0');
    padded(out, header.as_bytes())?;
    padded(out, &entry.content)
}

fn padded(out: &mut impl Write, bytes: &[u8]) -> Result<()> {
    out.write_all(bytes)?;
    let over = bytes.len() % ALIGNMENT;
    if over != 0 {
        out.write_all(&[0; ALIGNMENT][over..])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Archive;

    fn bytes(fill: impl Fn(&mut Archive)) -> Vec<u8> {
        let mut archive = Archive::default();
        fill(&mut archive);
        let mut out = Vec::new();
        archive.write(&mut out).expect("writing to memory");
        out
    }

    #[test]
    fn order_of_adding_does_not_matter() {
        let forward = bytes(|archive| {
            archive.file("init", 0o755, b"x".to_vec());
            archive.device("dev/null", 0o666, 1, 3);
            archive.symlink("sbin", "bin");
        });
        let backward = bytes(|archive| {
            archive.symlink("sbin", "bin");
            archive.device("/dev/null", 0o666, 1, 3);
            archive.file("/init", 0o755, b"x".to_vec());
        });
        assert_eq!(forward, backward);
    }

    #[test]
    fn a_record_is_what_the_kernel_documents() {
        let out = bytes(|archive| archive.file("ab", 0o644, b"hello".to_vec()));
        let text = String::from_utf8_lossy(&out);
        let header = "07070100000001000081a400000000000000000000000100000000000000050000000000000000\
                      00000000000000000000000300000000ab\0";
        assert!(text.starts_with(header), "{text}");
        assert_eq!(header.len() % 4, 1, "the header of this example is padded by three bytes");
        assert_eq!(&out[116..124], b"hello\0\0\0");
        assert!(out[124..].starts_with(b"070701"));
        assert!(text.trim_end_matches('\0').ends_with("TRAILER!!!"));
    }

    #[test]
    fn parents_come_before_children() {
        let out = bytes(|archive| archive.file("a/b/c", 0o644, Vec::new()));
        let text = String::from_utf8_lossy(&out);
        let at = |name: &str| text.find(&format!("{name}\0")).expect("entry is there");
        assert!(at("a") < at("a/b") && at("a/b") < at("a/b/c"));
    }
}
