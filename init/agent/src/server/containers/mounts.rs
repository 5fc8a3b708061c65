//! Mounts as asked for: `Binds`, `Mounts`, `Tmpfs` and `Volumes` checked by the reference engine's rules.

use std::collections::BTreeSet;

use berth_api::docker::containers::{ContainerConfig, HostConfig, Mount};

use crate::server::errors::ApiError;

/// Modes of the third part of a bind.
const MODES: [&str; 19] = [
    "ro",
    "rw",
    "z",
    "Z",
    "nocopy",
    "copy",
    "shared",
    "slave",
    "private",
    "rshared",
    "rslave",
    "rprivate",
    "consistent",
    "cached",
    "delegated",
    "default",
    "unbindable",
    "runbindable",
    "U",
];

/// Checks all mounts of a request.
pub(crate) fn check(config: &ContainerConfig, host: &HostConfig) -> Result<(), ApiError> {
    let mut targets = BTreeSet::new();
    for mount in host.mounts.iter().flatten() {
        check_mount(mount).map_err(|why| ApiError::invalid(invalid(&mount.kind, &why)))?;
    }
    for bind in host.binds.iter().flatten() {
        let target = check_bind(bind)
            .map_err(|why| ApiError::failed(format!("invalid volume specification: '{bind}': {why}")))?;
        unique(&mut targets, &target)?;
    }
    for mount in host.mounts.iter().flatten() {
        unique(&mut targets, &clean(&mount.target))?;
    }
    for target in host.tmpfs.iter().flatten().map(|(target, _)| target) {
        if !target.starts_with('/') {
            let why = format!("invalid mount path: '{target}' mount path must be absolute");
            return Err(ApiError::invalid(invalid("tmpfs", &why)));
        }
        unique(&mut targets, &clean(target))?;
    }
    for target in config.volumes.iter().flatten().map(|(target, _)| target) {
        if !target.starts_with('/') {
            return Err(ApiError::invalid(invalid(
                "volume",
                &format!("invalid mount path: '{target}' mount path must be absolute"),
            )));
        }
    }
    Ok(())
}

fn invalid(kind: &str, why: &str) -> String {
    format!("invalid mount config for type {kind:?}: {why}")
}

fn unique(targets: &mut BTreeSet<String>, target: &str) -> Result<(), ApiError> {
    if targets.insert(target.to_owned()) {
        return Ok(());
    }
    Err(ApiError::invalid(format!("Duplicate mount point: {target}")))
}

/// The path without trailing and doubled slashes, so that `/a/` and `/a` are one place.
fn clean(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    format!("/{}", parts.join("/"))
}

fn check_mount(mount: &Mount) -> Result<(), String> {
    if !matches!(mount.kind.as_str(), "bind" | "volume" | "tmpfs" | "image") {
        return Err("mount type unknown".to_owned());
    }
    check_target(&mount.target)?;
    let foreign = [
        ("BindOptions", "bind", mount.bind_options.is_some()),
        ("VolumeOptions", "volume", mount.volume_options.is_some()),
        ("ImageOptions", "image", mount.image_options.is_some()),
        ("TmpfsOptions", "tmpfs", mount.tmpfs_options.is_some()),
    ];
    for (field, kind, given) in foreign {
        if given && mount.kind != kind {
            return Err(format!("field {field} must not be specified"));
        }
    }
    match mount.kind.as_str() {
        "bind" | "image" if mount.source.is_empty() => Err("field Source must not be empty".to_owned()),
        "bind" if !mount.source.starts_with('/') => {
            Err(format!("invalid mount path: '{}' mount path must be absolute", mount.source))
        }
        "volume" if mount.source.is_empty() && mount.read_only => {
            Err("must not set ReadOnly mode when using anonymous volumes".to_owned())
        }
        "volume" if !mount.source.is_empty() && !is_volume_name(&mount.source) => Err(format!(
            "{:?} includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are \
             allowed. If you intended to pass a host directory, use absolute path",
            mount.source
        )),
        "tmpfs" if !mount.source.is_empty() => Err("field Source must not be specified".to_owned()),
        _ => Ok(()),
    }
}

fn check_target(target: &str) -> Result<(), String> {
    if target.is_empty() {
        return Err("field Target must not be empty".to_owned());
    }
    if !target.starts_with('/') {
        return Err(format!("invalid mount path: '{target}' mount path must be absolute"));
    }
    if clean(target) == "/" {
        return Err("invalid specification: destination can't be '/'".to_owned());
    }
    Ok(())
}

/// Checks `source:target[:modes]` or `target`; answers with the target.
fn check_bind(bind: &str) -> Result<String, String> {
    let parts: Vec<&str> = bind.split(':').collect();
    let (source, target, modes) = match parts.as_slice() {
        [target] => ("", *target, ""),
        [source, target] => (*source, *target, ""),
        [source, target, modes] => (*source, *target, *modes),
        _ => return Err("too many colons".to_owned()),
    };
    let kind = if source.starts_with('/') { "bind" } else { "volume" };
    if parts.len() > 1 && source.is_empty() {
        return Err("empty section between colons".to_owned());
    }
    check_target(target).map_err(|why| invalid(kind, &why))?;
    if kind == "volume" && !source.is_empty() && !is_volume_name(source) {
        return Err(format!(
            "{source:?} includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are \
             allowed. If you intended to pass a host directory, use absolute path"
        ));
    }
    match modes.split(',').find(|mode| !mode.is_empty() && !MODES.contains(mode)) {
        Some(mode) => Err(format!("invalid mode: {mode}")),
        None => Ok(clean(target)),
    }
}

/// Whether a text may name a volume.
pub(crate) fn is_volume_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    name.len() > 1 && bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric()) && bytes.all(legal)
}
