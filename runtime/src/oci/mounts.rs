//! `mounts` of a bundle to mounts of a plan.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::spec::MountSpec;
use super::{OciError, file};
use crate::plan::{Fd, Mount, MountSource};

/// Options that say nothing to a kernel that always mounts this way, or that Linux ignores for the kinds there are.
const IGNORED: [&str; 10] =
    ["defaults", "rw", "suid", "dev", "exec", "relatime", "norelatime", "strictatime", "async", "private"];

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

/// Translates one mount; sources are relative to the bundle.
pub fn mount(spec: &MountSpec, bundle: &Path, fds: &mut Fds) -> Result<Mount, OciError> {
    let has = |name: &str| spec.options.iter().any(|option| option == name);
    let recursive = has("rbind");
    let source = if recursive || has("bind") || spec.kind == "bind" {
        let fd = fds.open(&bundle.join(&spec.source))?;
        MountSource::Bind {
            fd,
            idmap: has("idmap") || has("ridmap"),
            recursive,
            copy_up: false,
            slave: has("slave") || has("rslave"),
        }
    } else {
        let kind = if spec.kind == "cgroup2" { "cgroup" } else { &spec.kind };
        let data = |option: &&String| !is_flag(option);
        MountSource::Fs {
            kind: kind.to_owned(),
            options: spec.options.iter().filter(data).cloned().collect(),
        }
    };
    Ok(Mount {
        target: spec.destination.clone(),
        source,
        readonly: has("ro") || has("rro"),
        nosuid: has("nosuid") || has("rnosuid"),
        nodev: has("nodev") || has("rnodev"),
        noexec: has("noexec") || has("rnoexec"),
    })
}

/// Whether an option is about the mount and not for the file system.
fn is_flag(option: &str) -> bool {
    const FLAGS: [&str; 16] = [
        "ro",
        "nosuid",
        "nodev",
        "noexec",
        "rprivate",
        "slave",
        "rslave",
        "rro",
        "rnosuid",
        "rnodev",
        "rnoexec",
        "idmap",
        "ridmap",
        "noatime",
        "nodiratime",
        "sync",
    ];
    FLAGS.contains(&option) || IGNORED.contains(&option)
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
        }
    }

    #[test]
    fn flags_and_data_are_told_apart() {
        let mut fds = Fds::default();
        let spec = spec("tmpfs", &["nosuid", "strictatime", "mode=755", "size=64k", "noswap"]);
        let mount = mount(&spec, Path::new("/"), &mut fds).unwrap();
        assert!(mount.nosuid && !mount.nodev && !mount.readonly);
        let MountSource::Fs { kind, options } = mount.source else { panic!("a file system") };
        assert_eq!(kind, "tmpfs");
        assert_eq!(options, ["mode=755", "size=64k", "noswap"]);
    }

    #[test]
    fn binds_open_their_source() {
        let mut fds = Fds::default();
        let mount = mount(&spec("none", &["rbind", "ro", "rslave"]), Path::new("/"), &mut fds).unwrap();
        assert!(mount.readonly);
        assert!(matches!(mount.source, MountSource::Bind { recursive: true, slave: true, idmap: false, .. }));
        assert_eq!(fds.0.len(), 1);
        let missing = MountSpec { source: "no/such".to_owned(), ..spec("bind", &[]) };
        assert!(super::mount(&missing, Path::new("/nowhere"), &mut fds).is_err());
    }
}
