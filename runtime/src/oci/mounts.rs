//! `mounts` of a bundle to mounts of a plan.

use std::os::fd::OwnedFd;
use std::path::Path;

use berth_sys::mount as attributes;
use rustix::fs::{Mode, OFlags};

use super::spec::MountSpec;
use super::{OciError, file, special};
use crate::plan::{Fd, Mount, MountSource, MountSpecial, Propagation};

/// Descriptors collected for a plan.
#[derive(Debug, Default)]
pub struct Fds(pub Vec<OwnedFd>);

impl Fds {
    /// Adds one; its place is what the plan says.
    pub fn add(&mut self, fd: OwnedFd) -> Result<Fd, OciError> {
        let place =
            u16::try_from(self.0.len()).map_err(|_| OciError::Spec("too many descriptors".to_owned()))?;
        self.0.push(fd);
        Ok(Fd(place))
    }

    /// Opens a place in the host's tree.
    pub fn open(&mut self, path: &Path) -> Result<Fd, OciError> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(file("open", path))?;
        self.add(fd)
    }
}

/// Makes a user namespace with these lines of `uid_map` and `gid_map`.
pub type MakeUsers<'a> = dyn FnMut(&str, &str) -> Result<OwnedFd, OciError> + 'a;

/// What an option of a mount is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// Nothing: it is how mounts are anyway, or it is read elsewhere.
    Nothing,
    /// Bits of the mount to set and to clear.
    Bits(u64, u64),
    /// The same for the mounts below too.
    BitsBelow(u64, u64),
    /// Propagation, and whether of the mounts below too.
    Propagation(Propagation, bool),
    /// For the file system.
    Data,
}

fn meaning(option: &str) -> Meaning {
    if let Some((kind, recursive)) = special::propagation(option) {
        return Meaning::Propagation(kind, recursive);
    }
    match option {
        "defaults" | "bind" | "rbind" | "idmap" | "ridmap" | "tmpcopyup" | "async" | "loud" | "nomand" => {
            Meaning::Nothing
        }
        _ => {
            let (bits, below) = match option.strip_prefix('r').and_then(bits) {
                Some(bits) => (Some(bits), true),
                None => (bits(option), false),
            };
            match bits {
                Some((set, clear)) if below => Meaning::BitsBelow(set, clear),
                Some((set, clear)) => Meaning::Bits(set, clear),
                None => Meaning::Data,
            }
        }
    }
}

/// Every option this runtime acts on itself, for `features`.
pub fn options() -> Vec<String> {
    const PLAIN: [&str; 6] = ["bind", "rbind", "defaults", "idmap", "ridmap", "tmpcopyup"];
    const SPREAD: [&str; 4] = ["private", "shared", "slave", "unbindable"];
    const BITS: [&str; 18] = [
        "ro",
        "rw",
        "nosuid",
        "suid",
        "nodev",
        "dev",
        "noexec",
        "exec",
        "noatime",
        "atime",
        "strictatime",
        "nostrictatime",
        "relatime",
        "norelatime",
        "nodiratime",
        "diratime",
        "nosymfollow",
        "symfollow",
    ];
    let both = SPREAD.iter().chain(&BITS).flat_map(|name| [(*name).to_owned(), format!("r{name}")]);
    let mut all: Vec<String> = PLAIN.iter().map(|name| (*name).to_owned()).chain(both).collect();
    all.sort();
    all
}

/// Bits to set and to clear. One way of keeping access times excludes the others.
fn bits(option: &str) -> Option<(u64, u64)> {
    Some(match option {
        "ro" => (attributes::RDONLY, 0),
        "rw" => (0, attributes::RDONLY),
        "nosuid" => (attributes::NOSUID, 0),
        "suid" => (0, attributes::NOSUID),
        "nodev" => (attributes::NODEV, 0),
        "dev" => (0, attributes::NODEV),
        "noexec" => (attributes::NOEXEC, 0),
        "exec" => (0, attributes::NOEXEC),
        "noatime" => (attributes::NOATIME, attributes::ATIME),
        "strictatime" => (attributes::STRICTATIME, attributes::ATIME),
        "relatime" | "atime" | "norelatime" | "nostrictatime" => (0, attributes::ATIME),
        "nodiratime" => (attributes::NODIRATIME, 0),
        "diratime" => (0, attributes::NODIRATIME),
        "nosymfollow" => (attributes::NOSYMFOLLOW, 0),
        "symfollow" => (0, attributes::NOSYMFOLLOW),
        _ => return None,
    })
}

/// Translates one mount; sources are relative to the bundle. `make_users` makes a user namespace where the mount's
/// owners are shifted in another way than the container's.
pub fn mount(
    spec: &MountSpec,
    bundle: &Path,
    fds: &mut Fds,
    make_users: &mut MakeUsers<'_>,
) -> Result<Mount, OciError> {
    let has = |name: &str| spec.options.iter().any(|option| option == name);
    let mut special = MountSpecial::default();
    let mut data = Vec::new();
    for option in &spec.options {
        match meaning(option) {
            Meaning::Nothing => {}
            Meaning::Bits(set, clear) => {
                special.set = special.set & !clear | set;
                special.clear = special.clear & !set | clear;
            }
            Meaning::BitsBelow(set, clear) => {
                special.recursive_set = special.recursive_set & !clear | set;
                special.recursive_clear = special.recursive_clear & !set | clear;
            }
            Meaning::Propagation(kind, recursive) => special.propagation = Some((kind, recursive)),
            Meaning::Data => data.push(option.clone()),
        }
    }
    let recursive = has("rbind");
    let is_bind = recursive || has("bind") || spec.kind == "bind";
    let source = if is_bind {
        if !spec.uid_mappings.is_empty() || !spec.gid_mappings.is_empty() {
            let made = make_users(
                &special::id_map(&spec.uid_mappings, "mounts.uidMappings")?,
                &special::id_map(&spec.gid_mappings, "mounts.gidMappings")?,
            )?;
            special.idmap = Some(fds.add(made)?);
        }
        // Data of a bind says nothing: its file system is mounted already.
        let fd = fds.open(&bundle.join(&spec.source))?;
        let idmap = has("idmap") || has("ridmap") || special.idmap.is_some();
        MountSource::Bind { fd, idmap, recursive, copy_up: false, slave: false }
    } else {
        // A new mount has none of the bits, and only those that are set are given to it.
        special.set |= special.recursive_set;
        (special.recursive_set, special.recursive_clear, special.clear) = (0, 0, 0);
        special.source.clone_from(&spec.source);
        special.copy_up = has("tmpcopyup");
        let kind = if spec.kind == "cgroup2" { "cgroup" } else { &spec.kind };
        MountSource::Fs { kind: kind.to_owned(), options: data }
    };
    Ok(Mount {
        target: spec.destination.clone(),
        source,
        readonly: special.set & attributes::RDONLY != 0,
        nosuid: special.set & attributes::NOSUID != 0,
        nodev: special.set & attributes::NODEV != 0,
        noexec: special.set & attributes::NOEXEC != 0,
        special,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(kind: &str, options: &[&str]) -> MountSpec {
        MountSpec {
            destination: "/x".to_owned(),
            kind: kind.to_owned(),
            source: "/".to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            ..MountSpec::default()
        }
    }

    fn read(spec: &MountSpec, fds: &mut Fds) -> Result<Mount, OciError> {
        let none = &mut |_: &str, _: &str| Err(OciError::Spec("none".to_owned()));
        mount(spec, Path::new("/"), fds, none)
    }

    #[test]
    fn flags_and_data_are_told_apart() {
        let mut fds = Fds::default();
        let spec =
            spec("tmpfs", &["nosuid", "strictatime", "mode=755", "size=64k", "noswap", "rw", "shared"]);
        let mount = read(&spec, &mut fds).unwrap();
        assert!(mount.nosuid && !mount.nodev && !mount.readonly);
        assert_eq!(mount.special.propagation, Some((Propagation::Shared, false)));
        assert_eq!(mount.special.set, attributes::NOSUID | attributes::STRICTATIME);
        let MountSource::Fs { kind, options } = mount.source else { panic!("a file system") };
        assert_eq!(kind, "tmpfs");
        assert_eq!(options, ["mode=755", "size=64k", "noswap"]);
    }

    #[test]
    fn binds_open_their_source() {
        let mut fds = Fds::default();
        let mount = read(&spec("none", &["rbind", "ro", "rslave", "rnosuid", "dev"]), &mut fds).unwrap();
        assert!(mount.readonly);
        assert!(matches!(mount.source, MountSource::Bind { recursive: true, idmap: false, .. }));
        let special = mount.special;
        assert_eq!(special.propagation, Some((Propagation::Slave, true)));
        assert_eq!((special.recursive_set, special.clear), (attributes::NOSUID, attributes::NODEV));
        assert_eq!(fds.0.len(), 1);
        let missing = MountSpec { source: "/no/such".to_owned(), ..spec("bind", &[]) };
        assert!(read(&missing, &mut fds).is_err());
        let shifted = r#"{"destination":"/x","source":"/","options":["bind"],
            "uidMappings":[{"containerID":0,"hostID":1,"size":1}]}"#;
        let error = read(&serde_json::from_str(shifted).unwrap(), &mut fds).unwrap_err();
        assert!(error.to_string().contains("mounts.gidMappings"), "{error}");
    }

    #[test]
    fn every_option_that_is_announced_is_understood() {
        for option in options() {
            assert_ne!(meaning(&option), Meaning::Data, "{option}");
        }
        assert_eq!(meaning("mode=755"), Meaning::Data);
    }

    #[test]
    fn the_last_of_two_options_wins() {
        let mount =
            read(&spec("bind", &["ro", "noatime", "rw", "strictatime"]), &mut Fds::default()).unwrap();
        assert!(!mount.readonly);
        assert_eq!(mount.special.set, attributes::STRICTATIME);
        assert_eq!(mount.special.clear & attributes::RDONLY, attributes::RDONLY);
    }
}
