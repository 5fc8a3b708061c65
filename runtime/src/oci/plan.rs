//! A bundle's specification to a plan with its descriptors.

use std::path::{Path, PathBuf};

use super::filter::filter;
use super::mounts::{Fds, MakeUsers, mount};
use super::spec::{Linux, Mapping, NamespaceSpec, ProcessSpec, Spec};
use super::special::{self, id_map};
use super::{OciError, file};
use crate::capability;
use crate::plan::{Fd, Namespace, Namespaces, Plan, Process, Rlimit, Root, Seccomp, Stdio, UserNamespace};

/// `RLIMIT_*` names in the order of their numbers on Linux.
const RLIMITS: [&str; 16] = [
    "CPU",
    "FSIZE",
    "DATA",
    "STACK",
    "CORE",
    "RSS",
    "NPROC",
    "NOFILE",
    "MEMLOCK",
    "AS",
    "LOCKS",
    "SIGPENDING",
    "MSGQUEUE",
    "NICE",
    "RTPRIO",
    "RTTIME",
];

/// What the bundle wants of a user namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Users {
    /// The host's.
    Host,
    /// A new one with these lines of `uid_map` and `gid_map`.
    New {
        /// For users.
        uid_map: String,
        /// For groups.
        gid_map: String,
    },
    /// The one at this path.
    Join(PathBuf),
}

/// The user namespace of a bundle. The container's root must be somebody, for its set-up is done by that.
pub fn users(linux: &Linux) -> Result<Users, OciError> {
    let Some(namespace) = linux.namespaces.iter().find(|one| one.kind == "user") else {
        return Ok(Users::Host);
    };
    if let Some(path) = &namespace.path {
        return Ok(Users::Join(path.clone()));
    }
    let map = |maps: &[Mapping], field: &str| {
        if !maps.iter().any(|one| one.container_id == 0 && one.size > 0) {
            return Err(OciError::Spec(format!("{field}: id 0 of the container is not among them")));
        }
        id_map(maps, field)
    };
    Ok(Users::New {
        uid_map: map(&linux.uid_mappings, "linux.uidMappings")?,
        gid_map: map(&linux.gid_mappings, "linux.gidMappings")?,
    })
}

/// Builds the plan, without a name. `user` is the user namespace made for [`Users::New`]; the control group is `cgroup`.
pub fn build(
    spec: &Spec,
    bundle: &Path,
    user: UserNamespace,
    cgroup: Fd,
    fds: &mut Fds,
    make_users: &mut MakeUsers<'_>,
) -> Result<Plan, OciError> {
    let linux = spec.linux.as_ref().ok_or_else(|| OciError::Spec("no linux".to_owned()))?;
    let root = spec.root.as_ref().ok_or_else(|| OciError::Spec("no root".to_owned()))?;
    let process = spec.process.clone().unwrap_or_else(none);
    let layer = fds.open(&bundle.join(&root.path))?;
    let mounts =
        spec.mounts.iter().map(|one| mount(one, bundle, fds, make_users)).collect::<Result<Vec<_>, _>>()?;
    let stdio = stdio(&process, fds)?;
    let special = special::of_container(linux, fds)?;
    Ok(Plan {
        name: String::new(),
        cgroup,
        namespaces: namespaces(&linux.namespaces, user, fds)?,
        hostname: spec.hostname.clone(),
        domainname: spec.domainname.clone(),
        root: Root { layers: vec![layer], writable: None, readonly: root.readonly },
        mounts,
        devices: Vec::new(),
        masked_paths: linux.masked_paths.clone(),
        readonly_paths: linux.readonly_paths.clone(),
        sysctls: linux.sysctl.clone().into_iter().collect(),
        process: self::process(&process, linux, stdio)?,
        init: false,
        special,
    })
}

fn namespaces(specs: &[NamespaceSpec], user: UserNamespace, fds: &mut Fds) -> Result<Namespaces, OciError> {
    let mut find = |kind: &str| match specs.iter().find(|one| one.kind == kind) {
        None => Ok(Namespace::Host),
        Some(NamespaceSpec { path: None, .. }) => Ok(Namespace::New),
        Some(NamespaceSpec { path: Some(path), .. }) => {
            let opened = std::fs::File::open(path).map_err(file("open", path))?;
            fds.add(opened.into()).map(Namespace::Join)
        }
    };
    Ok(Namespaces {
        user,
        net: find("network")?,
        pid: find("pid")?,
        ipc: find("ipc")?,
        uts: find("uts")?,
        cgroup: find("cgroup")?,
    })
}

/// A container without a process can be created, and its `start` is an error.
fn none() -> ProcessSpec {
    ProcessSpec { args: vec![String::new()], cwd: "/".to_owned(), ..ProcessSpec::default() }
}

/// The command's own streams, or a new terminal.
pub fn stdio(process: &ProcessSpec, fds: &mut Fds) -> Result<Stdio, OciError> {
    if process.terminal {
        let size = process.console_size.unwrap_or_default();
        return Ok(Stdio::Terminal { rows: size.height, columns: size.width });
    }
    let mut own = |stream: rustix::fd::BorrowedFd<'_>| {
        // Above the standard numbers, where they are put in place later.
        let copy = rustix::io::fcntl_dupfd_cloexec(stream, 3).map_err(super::system("standard streams"))?;
        fds.add(copy)
    };
    Ok(Stdio::Fds([
        own(rustix::stdio::stdin())?,
        own(rustix::stdio::stdout())?,
        own(rustix::stdio::stderr())?,
    ]))
}

/// Translates a process.
pub fn process(spec: &ProcessSpec, linux: &Linux, stdio: Stdio) -> Result<Process, OciError> {
    if spec.args.is_empty() {
        return Err(OciError::Spec("process.args is empty".to_owned()));
    }
    if !spec.cwd.starts_with('/') {
        return Err(OciError::Spec(format!("process.cwd {:?} is not absolute", spec.cwd)));
    }
    let capabilities = capabilities(spec);
    let seccomp = match &linux.seccomp {
        Some(wanted) => filter(wanted, capabilities)?,
        None => Seccomp::Unconfined,
    };
    Ok(Process {
        args: spec.args.clone(),
        env: spec.env.clone(),
        cwd: spec.cwd.clone(),
        user: format!("{}:{}", spec.user.uid, spec.user.gid),
        groups: spec.user.additional_gids.iter().map(u32::to_string).collect(),
        capabilities,
        no_new_privileges: spec.no_new_privileges,
        seccomp,
        rlimits: spec.rlimits.iter().map(rlimit).collect::<Result<_, _>>()?,
        oom_score_adj: spec.oom_score_adj.unwrap_or_else(own_oom_score_adj),
        umask: spec.user.umask.unwrap_or(0o22),
        stdio,
        special: special::of_process(spec, linux)?,
    })
}

/// The bounding set. Names nobody knows are skipped with no effect, as the specification wants since 1.1.
fn capabilities(spec: &ProcessSpec) -> u64 {
    let Some(sets) = &spec.capabilities else { return 0 };
    let bits = sets.bounding.iter().filter_map(|name| capability::bit(name).ok());
    bits.fold(0, |set, bit| set | 1 << bit)
}

fn rlimit(spec: &super::spec::RlimitSpec) -> Result<Rlimit, OciError> {
    let bad = || OciError::Spec(format!("rlimit {:?}", spec.kind));
    let name = spec.kind.strip_prefix("RLIMIT_").ok_or_else(bad)?;
    let number = RLIMITS.iter().position(|known| *known == name).ok_or_else(bad)?;
    Ok(Rlimit { resource: u32::try_from(number).map_err(|_| bad())?, soft: spec.soft, hard: spec.hard })
}

/// Not set means inherited.
fn own_oom_score_adj() -> i32 {
    let text = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::spec::Mapping;

    fn linux(uid: &[Mapping], gid: &[Mapping]) -> Linux {
        Linux {
            namespaces: vec![NamespaceSpec { kind: "user".to_owned(), path: None }],
            uid_mappings: uid.to_vec(),
            gid_mappings: gid.to_vec(),
            ..Linux::default()
        }
    }

    #[test]
    fn ranges_become_maps_and_must_hold_the_containers_root() {
        let map = |container_id, host_id| Mapping { container_id, host_id, size: 10 };
        assert_eq!(users(&Linux::default()).unwrap(), Users::Host);
        let found = users(&linux(&[map(0, 1000)], &[map(0, 2000), map(10, 0)])).unwrap();
        let (uid_map, gid_map) = ("0 1000 10\n".to_owned(), "0 2000 10\n10 0 10\n".to_owned());
        assert_eq!(found, Users::New { uid_map, gid_map });
        for (uid, gid, field) in
            [(vec![map(5, 0)], vec![map(0, 0)], "uidMappings"), (vec![map(0, 1)], vec![], "gidMappings")]
        {
            let error = users(&linux(&uid, &gid)).unwrap_err();
            assert!(error.to_string().contains(field), "{error}");
        }
    }

    #[test]
    fn a_process_is_translated_and_checked() {
        let json = r#"{"args":["sh"],"cwd":"/","user":{"uid":7,"gid":8,"additionalGids":[9]},
            "capabilities":{"bounding":["CAP_CHOWN","CAP_FROM_THE_FUTURE"]},
            "rlimits":[{"type":"RLIMIT_NOFILE","soft":1,"hard":2}],"noNewPrivileges":true}"#;
        let spec: ProcessSpec = serde_json::from_str(json).unwrap();
        let stdio = Stdio::Fds([Fd(0); 3]);
        let process = process(&spec, &Linux::default(), stdio).unwrap();
        assert_eq!((process.user.as_str(), process.groups.as_slice()), ("7:8", ["9".to_owned()].as_slice()));
        assert_eq!(process.capabilities, 1);
        assert_eq!((process.rlimits[0].resource, process.rlimits[0].hard), (7, 2));
        for bad in [
            ProcessSpec { args: Vec::new(), ..spec.clone() },
            ProcessSpec { cwd: "x".to_owned(), ..spec.clone() },
        ] {
            assert!(super::process(&bad, &Linux::default(), stdio).is_err());
        }
    }
}
