//! What is mounted into a container: Docker's three ways to ask, resolved to one list.

use std::collections::BTreeSet;

use berth_api::docker::containers::{ContainerConfig, HostConfig, Mount, VolumeOptions};
use berth_api::docker::volumes::VolumeCreate;

use crate::binds;
use crate::command::Refusal;
use crate::store::{MountKind, MountRecord};
use crate::volumes::Volumes;

/// Most mounts of one container: each is a descriptor sent to the launcher.
const MOUNTS_MAX: usize = 150;

/// Resolves `Binds`, `Mounts`, `Tmpfs` and the image's volumes, and makes the volumes that do not exist.
pub(crate) fn resolve(
    config: &ContainerConfig,
    host: &HostConfig,
    volumes: &Volumes,
) -> Result<Vec<MountRecord>, Refusal> {
    let mut all = Vec::new();
    for bind in host.binds.iter().flatten() {
        all.push(bind_record(bind)?);
    }
    for mount in host.mounts.iter().flatten() {
        all.push(mount_record(mount)?);
    }
    for (target, options) in host.tmpfs.iter().flatten() {
        all.push(tmpfs(absolute(target)?, options.split(',')));
    }
    let mut targets = BTreeSet::new();
    for mount in &all {
        if !targets.insert(mount.target.clone()) {
            return Err(Refusal::Invalid(format!("Duplicate mount point: {}", mount.target)));
        }
    }
    for target in config.volumes.iter().flatten().map(|(target, _)| target) {
        let target = absolute(target)?;
        if targets.insert(target.clone()) {
            let kind = MountKind::Volume {
                name: String::new(),
                anonymous: true,
                copy_up: true,
                subpath: String::new(),
            };
            all.push(MountRecord { target, kind, readonly: false, mode: String::new() });
        }
    }
    if all.len() > MOUNTS_MAX {
        return Err(Refusal::Invalid(format!("more than {MOUNTS_MAX} mounts")));
    }
    for mount in &mut all {
        if let MountKind::Volume { name, .. } = &mut mount.kind {
            let options = options_of(host, &mount.target);
            let driver = options.driver_config.unwrap_or_default();
            let wanted = VolumeCreate {
                name: std::mem::take(name),
                labels: options.labels,
                driver: driver.name,
                driver_opts: driver.options,
            };
            *name = volumes.create(wanted)?.name;
        }
    }
    // Outer before inner, whatever the order asked for.
    all.sort_by_key(|mount| mount.target.split('/').count());
    Ok(all)
}

fn options_of(host: &HostConfig, target: &str) -> VolumeOptions {
    let mount = host.mounts.iter().flatten().find(|mount| mount.target.trim_end_matches('/') == target);
    mount.and_then(|mount| mount.volume_options.clone()).unwrap_or_default()
}

/// A clean absolute path inside the container.
fn absolute(path: &str) -> Result<String, Refusal> {
    let invalid = || Refusal::Invalid(format!("invalid mount path: '{path}' mount path must be absolute"));
    let rest = path.strip_prefix('/').ok_or_else(invalid)?;
    let parts: Vec<&str> = rest.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") {
        return Err(Refusal::Invalid(format!("invalid mount path: '{path}' must not have ..")));
    }
    if parts.is_empty() {
        return Err(Refusal::Invalid("invalid specification: destination can't be '/'".to_owned()));
    }
    Ok(format!("/{}", parts.join("/")))
}

/// `source:target[:options]`.
fn bind_record(text: &str) -> Result<MountRecord, Refusal> {
    let invalid = || Refusal::Invalid(format!("invalid volume specification: '{text}'"));
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, mode) = match parts.as_slice() {
        [target] => ("", *target, ""),
        [source, target] => (*source, *target, ""),
        [source, target, mode] => (*source, *target, *mode),
        _ => return Err(invalid()),
    };
    let target = absolute(target)?;
    let (mut readonly, mut copy_up, mut slave) = (false, true, false);
    for option in mode.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => readonly = true,
            "nocopy" => copy_up = false,
            "slave" | "rslave" => slave = true,
            // Labels have no meaning without SELinux; consistency none on Linux; private is the default.
            "rw" | "z" | "Z" | "private" | "rprivate" | "cached" | "delegated" | "consistent" => {}
            "shared" | "rshared" => {
                return Err(Refusal::Unsupported("shared mount propagation is not offered".to_owned()));
            }
            _ => return Err(Refusal::Invalid(format!("invalid mode: {mode}"))),
        }
    }
    let kind = if source.starts_with('/') {
        MountKind::Bind { source: host_path(source)?, create: true, slave }
    } else {
        let (name, anonymous) = (source.to_owned(), source.is_empty());
        MountKind::Volume { name, anonymous, copy_up, subpath: String::new() }
    };
    Ok(MountRecord { target, kind, readonly, mode: mode.to_owned() })
}

/// Paths of the host that may be shown to a container: the rest is the machine itself, which is not the user's.
fn host_path(source: &str) -> Result<String, Refusal> {
    if source.split('/').any(|part| part == "..") {
        return Err(Refusal::Invalid(format!("invalid mount path: '{source}' must not have ..")));
    }
    Ok(source.to_owned())
}

fn mount_record(mount: &Mount) -> Result<MountRecord, Refusal> {
    let refuse = |reason: &str| {
        Refusal::Invalid(format!("invalid mount config for type \"{}\": {reason}", mount.kind))
    };
    if mount.target.is_empty() {
        return Err(refuse("field Target must not be empty"));
    }
    let target = absolute(&mount.target)?;
    match mount.kind.as_str() {
        "volume" => {
            let options: VolumeOptions = mount.volume_options.clone().unwrap_or_default();
            let subpath = options.subpath;
            if subpath.starts_with('/') || subpath.split('/').any(|part| part == "..") {
                return Err(refuse("volume subpath must be a relative path within the volume"));
            }
            let kind = MountKind::Volume {
                name: mount.source.clone(),
                anonymous: mount.source.is_empty(),
                // What is only a part of a volume is not filled from the image.
                copy_up: !options.no_copy && subpath.is_empty(),
                subpath,
            };
            Ok(MountRecord { target, kind, readonly: mount.read_only, mode: "z".to_owned() })
        }
        "bind" => {
            let options = mount.bind_options.clone().unwrap_or_default();
            if !mount.source.starts_with('/') {
                return Err(refuse("field Source must be an absolute path"));
            }
            let source = host_path(&mount.source)?;
            if !options.create_mountpoint && !binds::place(&source).exists() {
                return Err(refuse(&format!("bind source path does not exist: {source}")));
            }
            let slave = matches!(options.propagation.as_str(), "slave" | "rslave");
            let kind = MountKind::Bind { source, create: options.create_mountpoint, slave };
            Ok(MountRecord { target, kind, readonly: mount.read_only, mode: String::new() })
        }
        "tmpfs" => {
            let options = mount.tmpfs_options.clone().unwrap_or_default();
            let mut list = Vec::new();
            if options.size_bytes > 0 {
                list.push(format!("size={}", options.size_bytes));
            }
            if options.mode != 0 {
                list.push(format!("mode={:o}", options.mode));
            }
            let mut record = tmpfs(target, list.iter().map(String::as_str));
            record.readonly = mount.read_only;
            Ok(record)
        }
        "image" | "cluster" | "npipe" => {
            Err(Refusal::Unsupported(format!("mounts of type {} are not offered", mount.kind)))
        }
        other => {
            Err(Refusal::Invalid(format!("invalid mount config for type \"{other}\": mount type unknown")))
        }
    }
}

fn tmpfs<'a>(target: String, options: impl Iterator<Item = &'a str>) -> MountRecord {
    let options: Vec<String> = options.filter(|option| !option.is_empty()).map(str::to_owned).collect();
    let readonly = options.iter().any(|option| option == "ro");
    MountRecord { target, kind: MountKind::Tmpfs { options }, readonly, mode: String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(text: &str) -> Option<(String, bool, MountKind)> {
        bind_record(text).ok().map(|mount| (mount.target, mount.readonly, mount.kind))
    }

    #[test]
    fn binds_are_read_in_every_form() {
        let volume = |name: &str, copy_up| MountKind::Volume {
            name: name.to_owned(),
            anonymous: name.is_empty(),
            copy_up,
            subpath: String::new(),
        };
        assert_eq!(kind("data:/data"), Some(("/data".to_owned(), false, volume("data", true))));
        assert_eq!(kind("data:/data/:ro,nocopy"), Some(("/data".to_owned(), true, volume("data", false))));
        assert_eq!(kind("/anonymous"), Some(("/anonymous".to_owned(), false, volume("", true))));
        let bind = MountKind::Bind { source: "/srv".to_owned(), create: true, slave: true };
        assert_eq!(kind("/srv:/x:rslave"), Some(("/x".to_owned(), false, bind)));
        for bad in ["a:b", "a:/", "a:/x:what", "a:/b:c:d", "a:/../x", "/../etc:/x", "a:/x:rshared"] {
            assert_eq!(kind(bad), None, "{bad}");
        }
    }

    #[test]
    fn outer_mounts_come_first_and_twice_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let volumes = Volumes::open(dir.path()).expect("volumes");
        let host = |binds: &[&str]| HostConfig {
            binds: Some(binds.iter().map(|bind| (*bind).to_owned()).collect()),
            ..HostConfig::default()
        };
        let config = ContainerConfig::default();
        let all = resolve(&config, &host(&["aa:/a/b", "bb:/a"]), &volumes).expect("mounts");
        let targets: Vec<&str> = all.iter().map(|mount| mount.target.as_str()).collect();
        assert_eq!(targets, ["/a", "/a/b"]);
        let twice = resolve(&config, &host(&["aa:/a", "bb:/a/"]), &volumes);
        assert!(matches!(twice, Err(Refusal::Invalid(text)) if text.contains("Duplicate mount point: /a")));
    }
}
