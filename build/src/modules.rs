//! Which kernel modules go where, and what each needs: closures over `modules.dep`.
//!
//! Three sets: the initramfs holds what may be needed before the root image is mounted; the root image's lists name
//! what init loads at run time; the rest are files that hardware aliases find. `br_netfilter` is in none: loading
//! it sends bridged traffic through the firewall's forward chain and breaks containers on one network.

use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Needed before the root: every virtio transport and disk, the console, and what reads the root image.
pub(crate) const BEFORE_ROOT: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_scsi",
    "sd_mod",
    "virtio_console",
    "virtio_rng",
    "crc32c_intel",
    "erofs",
    "overlay",
    "loop",
    "dm_verity",
];

/// Loaded by init before it starts the agent: what the agent's first steps use. Devices come by their aliases.
pub(crate) const EARLY: &[&str] = &["overlay", "loop", "qemu_fw_cfg", "virtio_net"];

/// Loaded by init while the agent starts, in this order: what the first container's network needs comes first.
pub(crate) const LATE: &[&str] = &[
    "bridge",
    "veth",
    "nf_tables",
    "nft_ct",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
    "nft_redir",
    "nft_reject_inet",
    "nft_fib_inet",
    "nft_limit",
    "nft_log",
    "nf_log_syslog",
    "nft_numgen",
    "nft_connlimit",
    "nf_conntrack_netlink",
    "nft_meta_bridge",
    "nft_reject_bridge",
    "nf_conntrack_bridge",
    "macvlan",
    "ipvlan",
    "tun",
    "fuse",
    "tcp_bbr",
    "button",
    "evdev",
    "softdog",
];

/// Files only: loaded when a device or an administrator asks.
pub(crate) const ON_DEMAND: &[&str] = &[
    // Guest devices of QEMU and others.
    "virtio_balloon",
    "vmw_vsock_virtio_transport",
    "virtio_mmio",
    "virtiofs",
    "ptp_kvm",
    "efivarfs",
    // File systems and block devices.
    "vfat",
    "nls_cp437",
    "nls_ascii",
    "nls_iso8859_1",
    "isofs",
    "squashfs",
    "xfs",
    "btrfs",
    "dm_crypt",
    "zram",
    // Networks.
    "vxlan",
    "wireguard",
    "8021q",
    "bonding",
    "nft_flow_offload",
    "nf_flow_table_inet",
    "nfnetlink_log",
    "sch_fq",
    "sch_htb",
    "sch_tbf",
    "sch_ingress",
    "cls_matchall",
    "cls_bpf",
    "act_police",
    "act_mirred",
    "act_bpf",
    "ifb",
    "inet_diag",
    "tcp_diag",
    "unix_diag",
    "netlink_diag",
    "binfmt_misc",
    // Clouds and other hypervisors.
    "hv_vmbus",
    "hv_netvsc",
    "hv_storvsc",
    "hv_utils",
    "hv_balloon",
    "vmxnet3",
    "vmw_pvscsi",
    "xen_netfront",
    "xen_blkfront",
    "ena",
    "gve",
    "mana",
    "ixgbevf",
    "mlx4_en",
    "mlx5_core",
    "ata_piix",
    "ata_generic",
];

/// Never in an image, whoever depends on it.
pub(crate) const BANNED: &[&str] = &["br_netfilter"];

/// One kernel's modules and what each depends on.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// Name → path below `lib/modules/<release>` and the paths it needs, nearest first.
    modules: BTreeMap<String, (String, Vec<String>)>,
    built_in: BTreeSet<String>,
}

impl Index {
    /// Reads `modules.dep` and `modules.builtin` of a kernel.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let text = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
        };
        Ok(Self::parse(&text("modules.dep")?, &text("modules.builtin")?))
    }

    fn parse(dependencies: &str, built_in: &str) -> Self {
        let mut index = Self { built_in: built_in.lines().map(module_name).collect(), ..Self::default() };
        for (path, needs) in dependencies.lines().filter_map(|line| line.split_once(':')) {
            let needs = needs.split_whitespace().map(str::to_owned).collect();
            index.modules.insert(module_name(path), (path.to_owned(), needs));
        }
        index
    }

    /// The files of a module, in the order in which they can be loaded.
    pub(crate) fn in_order(&self, name: &str) -> Result<Vec<String>> {
        let Some((path, needs)) = self.modules.get(&module_name(name)) else {
            if self.built_in.contains(&module_name(name)) {
                return Ok(Vec::new());
            }
            bail!("this kernel has no module {name}");
        };
        Ok(needs.iter().rev().chain([path]).cloned().collect())
    }

    /// The files of the named modules and of everything they need. A module built into the kernel needs none.
    pub(crate) fn closure(&self, names: &[&str]) -> Result<BTreeSet<String>> {
        let mut files = BTreeSet::new();
        for name in names {
            let Some((path, needs)) = self.modules.get(&module_name(name)) else {
                if self.built_in.contains(&module_name(name)) {
                    continue;
                }
                bail!("this kernel has no module {name}");
            };
            // Depmod lists the whole closure of each module, so one level is enough.
            files.insert(path.clone());
            files.extend(needs.iter().cloned());
        }
        if let Some(banned) = files.iter().find(|path| BANNED.contains(&module_name(path).as_str())) {
            bail!("{banned} may not be in an image");
        }
        Ok(files)
    }
}

/// `kernel/net/x/foo-bar.ko` and `foo-bar` are both module `foo_bar`.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::{BANNED, BEFORE_ROOT, EARLY, Index, LATE, ON_DEMAND};
    use std::collections::BTreeSet;

    const DEP: &str = "kernel/a/one-x.ko:\nkernel/b/two.ko: kernel/c/three.ko kernel/a/one-x.ko\nkernel/c/three.ko:\n\
                       kernel/net/br_netfilter.ko:\nkernel/net/user.ko: kernel/net/br_netfilter.ko\n";

    fn closure(names: &[&str]) -> Result<Vec<String>, String> {
        let index = Index::parse(DEP, "kernel/fs/ext4.ko\n");
        index.closure(names).map(|set| set.into_iter().collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn closures_hold_what_a_module_needs() {
        let all = ["kernel/a/one-x.ko", "kernel/b/two.ko", "kernel/c/three.ko"].map(str::to_owned).to_vec();
        assert_eq!(closure(&["two"]), Ok(all));
        assert_eq!(closure(&["one_x", "ext4"]), Ok(vec!["kernel/a/one-x.ko".to_owned()]));
    }

    #[test]
    fn unknown_and_banned_modules_are_errors() {
        assert_eq!(closure(&["four"]), Err("this kernel has no module four".to_owned()));
        assert_eq!(closure(&["user"]), Err("kernel/net/br_netfilter.ko may not be in an image".to_owned()));
    }

    #[test]
    fn no_list_names_a_banned_module_or_one_twice() {
        for list in [BEFORE_ROOT, EARLY, LATE, ON_DEMAND] {
            let unique: BTreeSet<_> = list.iter().collect();
            assert_eq!(unique.len(), list.len());
            assert!(BANNED.iter().all(|banned| !list.contains(banned)));
        }
    }
}
