//! The template of the state file system: a small empty ext4 that the first boot copies to a blank disk and grows.
//!
//! Made here because the image carries no mkfs. Every identifier is fixed, so two builds give the same bytes; init
//! gives each machine's copy its own UUID.

use crate::process;
use crate::progress::Step;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::path::Path;

/// How init finds the file system again.
const LABEL: &str = "BERTH_STATE";
/// Size before it grows to the disk; unit: bytes.
const TEMPLATE_BYTES: u64 = 64 << 20;
/// Fixed identifiers, replaced on the machine.
const UUID: &str = "b3e7f5d0-6f3a-4d0e-9c57-be67000057a7";
/// One inode per this many bytes of template: twice ext4's usual, since images are many small files.
const BYTES_PER_INODE: &str = "8192";
/// Room in the group descriptor table for online growth to 1 TiB; unit: 4 KiB blocks. Beyond it the kernel changes
/// the layout to meta_bg by itself.
const GROWTH_BLOCKS: &str = "268435456";
/// The journal cannot grow later; unit: MiB.
const JOURNAL_MIB: &str = "16";

/// Writes the template, sparse.
pub(crate) fn make_template(path: &Path, step: &Step) -> Result<()> {
    if path.exists() {
        fs::remove_file(path).with_context(|| format!("removing {}", path.display()))?;
    }
    let file = File::create(path).with_context(|| format!("making {}", path.display()))?;
    file.set_len(TEMPLATE_BYTES)?;
    let extended =
        format!("hash_seed={UUID},resize={GROWTH_BLOCKS},lazy_itable_init=1,nodiscard,root_owner=0:0");
    let mut mke2fs = process::command("mke2fs");
    // The clock of e2fsprogs follows this variable; without it two builds differ in their time stamps.
    mke2fs.env("E2FSPROGS_FAKE_TIME", "1").env("SOURCE_DATE_EPOCH", "1").env("MKE2FS_CONFIG", "/dev/null");
    mke2fs.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "1", "-i", BYTES_PER_INODE]);
    mke2fs.args(["-L", LABEL, "-U", UUID, "-E", &extended, "-J"]).arg(format!("size={JOURNAL_MIB}"));
    mke2fs.args(["-O", FEATURES]).arg(path);
    process::run(&mut mke2fs, step).map(drop)
}

/// Stated whole, so that the host's mke2fs.conf has no say.
const FEATURES: &str = "has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,\
                        large_file,huge_file,dir_nlink,extra_isize,metadata_csum";

#[cfg(test)]
mod tests {
    use super::{LABEL, make_template};
    use crate::{process, progress::Step};

    #[test]
    fn the_template_is_reproducible_and_clean() {
        if process::find("mke2fs").is_none() {
            return;
        }
        let folder = tempfile::tempdir().expect("temporary folder");
        let step = Step::start("template");
        let paths = ["a", "b"].map(|name| folder.path().join(name));
        for path in &paths {
            make_template(path, &step).expect("mke2fs");
        }
        let [first, second] = paths.each_ref().map(|path| std::fs::read(path).expect("template"));
        assert!(first == second, "two templates differ");
        assert_eq!(&first[0x478..0x478 + LABEL.len()], LABEL.as_bytes(), "label in the superblock");
        let mut check = process::command("e2fsck");
        process::run(check.arg("-fn").arg(&paths[0]), &step).expect("e2fsck finds nothing to repair");
    }
}
