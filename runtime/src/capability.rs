//! Capability names, bits, and what a container gets.

/// Names without `CAP_`; the index is the bit (`include/uapi/linux/capability.h`).
pub const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Every capability of Linux 6.1.
pub const ALL: u64 = (1 << NAMES.len()) - 1;
/// `CAP_SYS_ADMIN`.
pub const SYS_ADMIN: u32 = 21;
/// `CAP_SYS_CHROOT`.
pub const SYS_CHROOT: u32 = 18;
/// `CAP_SYS_RESOURCE`: lifts `user.max_user_namespaces`, so it is never given without being named.
pub const SYS_RESOURCE: u32 = 24;

/// What a container gets unless asked otherwise: Docker's fourteen without `NET_RAW` (ping works by
/// `ping_group_range`), `MKNOD`, `AUDIT_WRITE` and `SETFCAP`.
pub const DEFAULT: u64 = bits(&[0, 1, 3, 4, 5, 6, 7, 8, 10, 18]);

const fn bits(list: &[u32]) -> u64 {
    let mut set = 0;
    let mut index = 0;
    while index < list.len() {
        set |= 1 << list[index];
        index += 1;
    }
    set
}

/// The text is not a capability.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown capability: {0:?}")]
pub struct UnknownCapability(pub String);

/// The bit of a capability, with or without `CAP_`, in any case.
pub fn bit(name: &str) -> Result<u32, UnknownCapability> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    let found = NAMES.iter().position(|known| *known == short);
    found.and_then(|bit| u32::try_from(bit).ok()).ok_or_else(|| UnknownCapability(name.to_owned()))
}

/// The names (`CAP_CHOWN`) of a set, in order of bits.
pub fn names(set: u64) -> Vec<String> {
    let named = NAMES.iter().enumerate().filter(|(bit, _)| set >> bit & 1 == 1);
    named.map(|(_, name)| format!("CAP_{name}")).collect()
}

/// The set for `--cap-add`, `--cap-drop` and `--privileged`, as Docker computes it: `ALL` stands for every
/// capability, and a name added wins over a name dropped unless `ALL` is added.
pub fn from_add_drop(add: &[String], drop: &[String], privileged: bool) -> Result<u64, UnknownCapability> {
    let (add_all, added) = parse_list(add)?;
    let (drop_all, dropped) = parse_list(drop)?;
    if privileged {
        return Ok(ALL);
    }
    Ok(match (add_all, drop_all) {
        (true, _) => ALL & !dropped,
        (false, true) => added,
        (false, false) => (DEFAULT & !dropped) | added,
    })
}

fn parse_list(names: &[String]) -> Result<(bool, u64), UnknownCapability> {
    let mut all = false;
    let mut set = 0;
    for name in names {
        if name.eq_ignore_ascii_case("ALL") || name.eq_ignore_ascii_case("CAP_ALL") {
            all = true;
        } else {
            set |= 1 << bit(name)?;
        }
    }
    Ok((all, set))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn names_follow_the_kernels_numbers() {
        for (name, expected) in
            [("CAP_CHOWN", 0), ("net_raw", 13), ("SYS_ADMIN", 21), ("cap_checkpoint_restore", 40)]
        {
            assert_eq!(bit(name), Ok(expected), "{name}");
        }
        assert!(bit("CAP_").is_err());
        assert!(bit("ROOT").is_err());
    }

    #[test]
    fn the_default_set_is_the_documented_one() {
        let expected = [
            "CAP_CHOWN",
            "CAP_DAC_OVERRIDE",
            "CAP_FOWNER",
            "CAP_FSETID",
            "CAP_KILL",
            "CAP_SETGID",
            "CAP_SETUID",
            "CAP_SETPCAP",
            "CAP_NET_BIND_SERVICE",
            "CAP_SYS_CHROOT",
        ];
        assert_eq!(names(DEFAULT), expected);
        assert_eq!(DEFAULT >> SYS_RESOURCE & 1, 0);
    }

    #[test]
    fn adding_and_dropping_follow_docker() {
        let chown = 1;
        let cases: [(&[&str], &[&str], bool, u64); 7] = [
            (&[], &[], false, DEFAULT),
            (&["NET_RAW"], &[], false, DEFAULT | 1 << 13),
            (&[], &["CHOWN"], false, DEFAULT & !chown),
            (&["CHOWN"], &["ALL"], false, chown),
            (&["ALL"], &["CHOWN"], false, ALL & !chown),
            (&[], &["all"], false, 0),
            (&[], &["CHOWN"], true, ALL),
        ];
        for (add, drop, privileged, expected) in cases {
            assert_eq!(from_add_drop(&list(add), &list(drop), privileged), Ok(expected), "{add:?} {drop:?}");
        }
        assert!(from_add_drop(&list(&["NOPE"]), &[], true).is_err());
    }
}
