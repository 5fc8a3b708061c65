//! The indexes depmod makes, read as text: which file a module is, what it needs, which module serves an alias.

use std::collections::{HashMap, HashSet};

use super::glob;

/// Most modules in one request's closure; the deepest real one has about 20.
const CLOSURE_MAX: usize = 512;

/// `modules.dep`, `modules.alias` and `modules.softdep` of one kernel release.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// Name → path below the release's folder, and the names of what it needs, deepest last as in the file.
    modules: HashMap<String, (String, Vec<String>)>,
    /// Pattern and module, in the order of the file.
    aliases: Vec<(String, String)>,
    /// Module → soft dependencies to be loaded before it.
    before: HashMap<String, Vec<String>>,
    /// Module → soft dependencies to be loaded after it.
    after: HashMap<String, Vec<String>>,
}

/// The module of a file or of a spelling: no folder, no suffix, `-` as `_`.
pub(crate) fn module_name(text: &str) -> String {
    let file = text.rsplit('/').next().unwrap_or(text);
    let name = file.split(".ko").next().unwrap_or(file);
    name.replace('-', "_")
}

impl Index {
    /// Reads the three files' texts; lines that are not understood are skipped.
    pub(crate) fn parse(dep: &str, alias: &str, softdep: &str) -> Self {
        let mut index = Self::default();
        for line in dep.lines() {
            let Some((path, needs)) = line.split_once(':') else { continue };
            let needs = needs.split_whitespace().map(module_name).collect();
            index.modules.insert(module_name(path), (path.to_owned(), needs));
        }
        for line in alias.lines() {
            let mut words = line.split_whitespace();
            if let (Some("alias"), Some(pattern), Some(module)) = (words.next(), words.next(), words.next()) {
                index.aliases.push((pattern.to_owned(), module_name(module)));
            }
        }
        for line in softdep.lines() {
            index.parse_softdep(line);
        }
        index
    }

    fn parse_softdep(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        let (Some("softdep"), Some(module)) = (words.next(), words.next()) else { return };
        let module = module_name(module);
        let mut target = None;
        for word in words {
            match word {
                "pre:" => target = Some(true),
                "post:" => target = Some(false),
                name => {
                    let map = match target {
                        Some(true) => &mut self.before,
                        Some(false) => &mut self.after,
                        None => continue,
                    };
                    map.entry(module.clone()).or_default().push(name.to_owned());
                }
            }
        }
    }

    /// The files to load for `name` (a module or an alias), in order; empty when there is no such module.
    pub(crate) fn closure(&self, name: &str) -> Vec<&str> {
        let mut order = Vec::new();
        let mut seen = HashSet::new();
        self.visit(name, &mut seen, &mut order);
        order
    }

    /// The modules that serve a device's alias, or the module of that name.
    pub(crate) fn resolve(&self, name: &str) -> Vec<&str> {
        if let Some((key, _)) = self.modules.get_key_value(&module_name(name)) {
            return vec![key];
        }
        let matching = self.aliases.iter().filter(|(pattern, _)| glob::matches(pattern, name));
        matching.map(|(_, module)| module.as_str()).collect()
    }

    fn visit<'a>(&'a self, name: &str, seen: &mut HashSet<&'a str>, order: &mut Vec<&'a str>) {
        for module in self.resolve(name) {
            // Also what ends cycles: a module is entered once.
            if seen.len() >= CLOSURE_MAX || !seen.insert(module) {
                continue;
            }
            let Some((path, needs)) = self.modules.get(module) else { continue };
            for soft in self.before.get(module).into_iter().flatten() {
                self.visit(soft, seen, order);
            }
            for need in needs.iter().rev() {
                self.visit(need, seen, order);
            }
            order.push(path);
            for soft in self.after.get(module).into_iter().flatten() {
                self.visit(soft, seen, order);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/virtio.ko:\n\
        kernel/virtio_ring.ko: kernel/virtio.ko\n\
        kernel/virtio_blk.ko: kernel/virtio_ring.ko kernel/virtio.ko\n\
        kernel/virtio-rng.ko: kernel/virtio_ring.ko kernel/virtio.ko\n\
        kernel/lib/libcrc32c.ko:\n\
        kernel/crypto/crc32c-intel.ko:\n\
        kernel/x.ko.xz: kernel/y.ko\n\
        kernel/y.ko: kernel/x.ko\n\
        not a line\n";
    const ALIAS: &str = "# Aliases extracted from modules themselves.\n\
        alias virtio:d00000002v* virtio_blk\n\
        alias virtio:d00000004v* virtio_rng\n\
        alias crypto-crc32c crc32c_intel\n\
        alias cpu:type:x86,ven*fam*mod*:feature:*0094* crc32c_intel\n\
        alias gone no_such_file\n\
        alias\n";
    const SOFT: &str =
        "softdep libcrc32c pre: crypto-crc32c\nsoftdep virtio_rng post: x\nsoftdep\nsoftdep x y\n";

    fn check(name: &str, expected: &[&str]) {
        assert_eq!(Index::parse(DEP, ALIAS, SOFT).closure(name), expected, "{name}");
    }

    #[test]
    fn what_is_needed_comes_first() {
        check("virtio_blk", &["kernel/virtio.ko", "kernel/virtio_ring.ko", "kernel/virtio_blk.ko"]);
        check(
            "virtio:d00000002v00001AF4",
            &["kernel/virtio.ko", "kernel/virtio_ring.ko", "kernel/virtio_blk.ko"],
        );
    }

    #[test]
    fn soft_dependencies_are_followed_both_ways() {
        check("libcrc32c", &["kernel/crypto/crc32c-intel.ko", "kernel/lib/libcrc32c.ko"]);
        check(
            "virtio-rng",
            &[
                "kernel/virtio.ko",
                "kernel/virtio_ring.ko",
                "kernel/virtio-rng.ko",
                "kernel/y.ko",
                "kernel/x.ko.xz",
            ],
        );
    }

    #[test]
    fn cycles_and_unknown_names_end() {
        check("x", &["kernel/y.ko", "kernel/x.ko.xz"]);
        check("nothing", &[]);
        check("gone", &[]);
        check("", &[]);
    }

    #[test]
    fn spellings_name_one_module() {
        for text in ["kernel/a/virtio-rng.ko", "virtio_rng", "virtio-rng", "virtio-rng.ko.zst"] {
            assert_eq!(module_name(text), "virtio_rng", "{text}");
        }
    }

    #[test]
    fn a_cpu_alias_matches_in_the_middle() {
        let index = Index::parse(DEP, ALIAS, SOFT);
        let cpu = "cpu:type:x86,ven0000fam0006mod003F:feature:,0000,0094,0097";
        assert_eq!(index.resolve(cpu), ["crc32c_intel"]);
    }
}
