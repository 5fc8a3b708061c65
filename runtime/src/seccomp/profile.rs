//! The default profile: Docker's (github.com/moby/profiles, seccomp/default.json) for x86-64, made tighter.
//!
//! Tighter where nothing a container needs is lost: foreign ABIs are killed; sockets are allowed by family instead of
//! refused by family; no `modify_ldt`, `name_to_handle_at` and `process_vm_*` without their capability.

use std::collections::BTreeMap;

use super::calls::number;
use super::compile::{Action, Compare, Condition, Decision, Profile, Test};

/// Calls every container may make.
#[rustfmt::skip]
const ALLOWED: &[&str] = &[
    "accept", "accept4", "access", "adjtimex", "alarm", "arch_prctl", "bind", "brk", "cachestat", "capget",
    "capset", "chdir", "chmod", "chown", "clock_adjtime", "clock_getres", "clock_gettime",
    "clock_nanosleep", "close", "close_range", "connect", "copy_file_range", "creat", "dup", "dup2", "dup3",
    "epoll_create", "epoll_create1", "epoll_ctl", "epoll_ctl_old", "epoll_pwait", "epoll_pwait2",
    "epoll_wait", "epoll_wait_old", "eventfd", "eventfd2", "execve", "execveat", "exit", "exit_group",
    "faccessat", "faccessat2", "fadvise64", "fallocate", "fanotify_mark", "fchdir", "fchmod", "fchmodat",
    "fchmodat2", "fchown", "fchownat", "fcntl", "fdatasync", "fgetxattr", "flistxattr", "flock", "fork",
    "fremovexattr", "fsetxattr", "fstat", "fstatfs", "fsync", "ftruncate", "futex", "futex_requeue",
    "futex_wait", "futex_waitv", "futex_wake", "futimesat", "get_robust_list", "get_thread_area", "getcpu",
    "getcwd", "getdents", "getdents64", "getegid", "geteuid", "getgid", "getgroups", "getitimer",
    "getpeername", "getpgid", "getpgrp", "getpid", "getppid", "getpriority", "getrandom", "getresgid",
    "getresuid", "getrlimit", "getrusage", "getsid", "getsockname", "getsockopt", "gettid", "gettimeofday",
    "getuid", "getxattr", "getxattrat", "inotify_add_watch", "inotify_init", "inotify_init1",
    "inotify_rm_watch", "io_cancel", "io_destroy", "io_getevents", "io_pgetevents", "io_setup", "io_submit",
    "ioctl", "ioprio_get", "ioprio_set", "kill", "landlock_add_rule", "landlock_create_ruleset",
    "landlock_restrict_self", "lchown", "lgetxattr", "link", "linkat", "listen", "listmount", "listxattr",
    "listxattrat", "llistxattr", "lremovexattr", "lseek", "lsetxattr", "lstat", "madvise",
    "map_shadow_stack", "membarrier", "memfd_create", "memfd_secret", "mincore", "mkdir", "mkdirat",
    "mknod", "mknodat", "mlock", "mlock2", "mlockall", "mmap", "mprotect", "mq_getsetattr", "mq_notify",
    "mq_open", "mq_timedreceive", "mq_timedsend", "mq_unlink", "mremap", "mseal", "msgctl", "msgget",
    "msgrcv", "msgsnd", "msync", "munlock", "munlockall", "munmap", "nanosleep", "newfstatat", "open",
    "openat", "openat2", "pause", "pidfd_open", "pidfd_send_signal", "pipe", "pipe2", "pkey_alloc",
    "pkey_free", "pkey_mprotect", "poll", "ppoll", "prctl", "pread64", "preadv", "preadv2", "prlimit64",
    "process_mrelease", "pselect6", "ptrace", "pwrite64", "pwritev", "pwritev2", "read", "readahead",
    "readlink", "readlinkat", "readv", "recvfrom", "recvmmsg", "recvmsg", "remap_file_pages", "removexattr",
    "removexattrat", "rename", "renameat", "renameat2", "restart_syscall", "rmdir", "rseq", "rt_sigaction",
    "rt_sigpending", "rt_sigprocmask", "rt_sigqueueinfo", "rt_sigreturn", "rt_sigsuspend",
    "rt_sigtimedwait", "rt_tgsigqueueinfo", "sched_get_priority_max", "sched_get_priority_min",
    "sched_getaffinity", "sched_getattr", "sched_getparam", "sched_getscheduler", "sched_rr_get_interval",
    "sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler", "sched_yield", "seccomp",
    "select", "semctl", "semget", "semop", "semtimedop", "sendfile", "sendmmsg", "sendmsg", "sendto",
    "set_robust_list", "set_thread_area", "set_tid_address", "setfsgid", "setfsuid", "setgid", "setgroups",
    "setitimer", "setpgid", "setpriority", "setregid", "setresgid", "setresuid", "setreuid", "setrlimit",
    "setsid", "setsockopt", "setuid", "setxattr", "setxattrat", "shmat", "shmctl", "shmdt", "shmget",
    "shutdown", "sigaltstack", "signalfd", "signalfd4", "socketpair", "splice", "stat", "statfs",
    "statmount", "statx", "symlink", "symlinkat", "sync", "sync_file_range", "syncfs", "sysinfo", "tee",
    "tgkill", "time", "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime", "timer_settime",
    "timerfd_create", "timerfd_gettime", "timerfd_settime", "times", "tkill", "truncate", "umask", "uname",
    "unlink", "unlinkat", "uretprobe", "utime", "utimensat", "utimes", "vfork", "vmsplice", "wait4",
    "waitid", "write", "writev",
];

/// Calls a capability opens: without it they would fail anyway, so the filter only keeps the kernel's code away.
const BY_CAPABILITY: &[(&str, &[&str])] = &[
    ("DAC_READ_SEARCH", &["open_by_handle_at", "name_to_handle_at"]),
    (
        "SYS_ADMIN",
        &[
            "bpf",
            "clone",
            "clone3",
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "perf_event_open",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "syslog",
            "umount2",
            "unshare",
        ],
    ),
    ("SYS_BOOT", &["reboot"]),
    ("SYS_CHROOT", &["chroot"]),
    ("SYS_MODULE", &["delete_module", "init_module", "finit_module"]),
    ("SYS_PACCT", &["acct"]),
    ("SYS_PTRACE", &["kcmp", "pidfd_getfd", "process_madvise", "process_vm_readv", "process_vm_writev"]),
    ("SYS_RAWIO", &["iopl", "ioperm"]),
    ("SYS_TIME", &["settimeofday", "clock_settime"]),
    ("SYS_TTY_CONFIG", &["vhangup"]),
    ("SYS_NICE", &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    ("SYSLOG", &["syslog"]),
    ("BPF", &["bpf"]),
    ("PERFMON", &["perf_event_open"]),
];

/// `CLONE_NEW*` without time, which `clone` cannot ask for: what Docker's profile refuses.
const CLONE_NEW: u64 = 0x7e02_0000;
/// Personalities that only change how a program sees the machine (Docker's list): Linux, `UNAME26`, 32-bit
/// addresses and both, and the question for the current one.
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// Arguments of type `int`: the kernel looks at the lower half only.
const INT: u64 = 0xffff_ffff;

const AF_UNIX: u64 = 1;
const AF_INET: u64 = 2;
const AF_INET6: u64 = 10;
const AF_NETLINK: u64 = 16;
const AF_PACKET: u64 = 17;
const NETLINK_ROUTE: u64 = 0;

/// The default profile for a process with these capabilities.
pub fn default(capabilities: u64) -> Profile {
    let refuse = Action::Errno(EPERM);
    let mut calls = BTreeMap::new();
    let mut decide = |name: &str, decision: Decision| {
        if let Some(number) = number(name) {
            calls.insert(number, decision);
        }
    };
    for name in ALLOWED {
        decide(name, Decision::always(Action::Allow));
    }
    decide("socket", socket(capabilities));
    decide("socketpair", one_of(0, INT, &[AF_UNIX]));
    decide("personality", one_of(0, u64::MAX, &PERSONALITIES));
    decide("clone", one_of(0, CLONE_NEW, &[0]));
    // The C library falls back on `clone`, whose flags a filter can see.
    decide("clone3", Decision::always(Action::Errno(ENOSYS)));
    for (capability, names) in BY_CAPABILITY {
        let has = crate::capability::bit(capability).is_ok_and(|bit| capabilities >> bit & 1 == 1);
        if has {
            names.iter().for_each(|name| decide(name, Decision::always(Action::Allow)));
        }
    }
    Profile { default: refuse, calls }
}

const EPERM: u16 = 1;
const ENOSYS: u16 = 38;

/// Local, internet and routing sockets; with `NET_RAW` packets, with `NET_ADMIN` every netlink protocol.
fn socket(capabilities: u64) -> Decision {
    let has = |name: &str| crate::capability::bit(name).is_ok_and(|bit| capabilities >> bit & 1 == 1);
    let equal = |argument, value| Condition { argument, mask: INT, compare: Compare::Equal, value };
    let mut allowed: Vec<Vec<Condition>> =
        [AF_UNIX, AF_INET, AF_INET6].map(|family| vec![equal(0, family)]).into();
    if has("NET_ADMIN") {
        allowed.push(vec![equal(0, AF_NETLINK)]);
    } else {
        allowed.push(vec![equal(0, AF_NETLINK), equal(2, NETLINK_ROUTE)]);
    }
    if has("NET_RAW") {
        allowed.push(vec![equal(0, AF_PACKET)]);
    }
    let test = |conditions| Test { conditions, action: Action::Allow };
    Decision { tests: allowed.into_iter().map(test).collect(), otherwise: Action::Errno(EAFNOSUPPORT) }
}

const EAFNOSUPPORT: u16 = 97;

/// Allowed when an argument under a mask is one of `values`.
fn one_of(argument: u8, mask: u64, values: &[u64]) -> Decision {
    let test = |value: &u64| Test {
        conditions: vec![Condition { argument, mask, compare: Compare::Equal, value: *value }],
        action: Action::Allow,
    };
    Decision { tests: values.iter().map(test).collect(), otherwise: Action::Errno(EPERM) }
}

#[cfg(test)]
mod tests {
    use super::super::calls::CALLS;
    use super::super::compile::{X86_64, compile};
    use super::super::interpret::{Call, run};
    use super::*;
    use crate::capability;
    use berth_sys::seccomp::Instruction;

    const ALLOW: u32 = 0x7fff_0000;
    const REFUSE: u32 = 0x0005_0001;

    fn ask(program: &[Instruction], name: &str, arguments: [u64; 6]) -> u32 {
        let number = number(name).unwrap();
        run(program, &Call { number, architecture: X86_64, arguments })
    }

    fn program(capabilities: u64) -> Vec<Instruction> {
        compile(&default(capabilities)).unwrap()
    }

    #[test]
    fn every_name_is_a_call_of_this_architecture() {
        for name in ALLOWED.iter().chain(BY_CAPABILITY.iter().flat_map(|(_, names)| *names)) {
            assert!(number(name).is_some(), "{name}");
        }
    }

    #[test]
    fn the_program_decides_every_number_as_the_profile_says() {
        for capabilities in [0, capability::DEFAULT, capability::ALL] {
            let profile = default(capabilities);
            let program = compile(&profile).unwrap();
            for number in 0..2000 {
                let got = run(&program, &Call { number, architecture: X86_64, arguments: [u64::MAX; 6] });
                let expected = match profile.calls.get(&number) {
                    None => REFUSE,
                    Some(decision) => match decision.otherwise {
                        Action::Allow => ALLOW,
                        Action::Errno(errno) => 0x0005_0000 | u32::from(errno),
                        other => panic!("{other:?}"),
                    },
                };
                assert_eq!(got, expected, "{number}");
            }
        }
    }

    #[test]
    fn nothing_of_what_attackers_need_is_open_by_default() {
        let program = program(capability::DEFAULT);
        let closed = [
            "mount",
            "umount2",
            "unshare",
            "setns",
            "bpf",
            "keyctl",
            "add_key",
            "request_key",
            "io_uring_setup",
            "io_uring_enter",
            "io_uring_register",
            "userfaultfd",
            "perf_event_open",
            "init_module",
            "kexec_load",
            "open_by_handle_at",
            "name_to_handle_at",
            "process_vm_readv",
            "process_vm_writev",
            "modify_ldt",
            "fsopen",
            "open_tree",
            "move_mount",
            "mount_setattr",
            "pivot_root",
            "reboot",
            "swapon",
            "quotactl",
            "syslog",
            "acct",
            "settimeofday",
            "nfsservctl",
            "vhangup",
            "iopl",
            "ioperm",
            "move_pages",
            "kcmp",
        ];
        for name in closed {
            assert_eq!(ask(&program, name, [0; 6]), REFUSE, "{name}");
        }
        let unknown = Call { number: 999, architecture: X86_64, arguments: [0; 6] };
        assert_eq!(run(&program, &unknown), REFUSE);
    }

    #[test]
    fn sockets_are_open_by_family() {
        let program = program(capability::DEFAULT);
        let open = [(AF_UNIX, 0), (AF_INET, 0), (AF_INET6, 0), (AF_NETLINK, 0)];
        for family in 0..64 {
            for protocol in 0..24 {
                let got = ask(&program, "socket", [family, 1, protocol, 0, 0, 0]);
                let plain = [AF_UNIX, AF_INET, AF_INET6].contains(&family);
                let expected = plain || open.contains(&(family, protocol));
                assert_eq!(got == ALLOW, expected, "{family} {protocol}");
            }
        }
        // The kernel takes the family as an int: what is above does not count.
        assert_ne!(ask(&program, "socket", [(1 << 32) + 38, 5, 0, 0, 0, 0]), ALLOW);
        assert_eq!(ask(&program, "socket", [1 << 32 | AF_INET, 1, 0, 0, 0, 0]), ALLOW);
    }

    #[test]
    fn new_namespaces_need_sys_admin() {
        let without = program(capability::DEFAULT);
        let with = program(1 << capability::SYS_ADMIN);
        for bit in [17, 25, 26, 27, 28, 29, 30] {
            let flags = [(1 << bit) + 17, 0, 0, 0, 0, 0];
            assert_eq!(ask(&without, "clone", flags), REFUSE, "bit {bit}");
            assert_eq!(ask(&with, "clone", flags), ALLOW, "bit {bit}");
        }
        let thread = [0x003d_0f00, 0, 0, 0, 0, 0];
        assert_eq!(ask(&without, "clone", thread), ALLOW);
        assert_eq!(ask(&without, "clone3", [0; 6]), 0x0005_0000 + 38);
        assert_eq!(ask(&with, "unshare", [0; 6]), ALLOW);
    }

    #[test]
    fn a_capability_opens_its_calls_and_no_others() {
        let none = default(0);
        for bit in 0..capability::NAMES.len() {
            let with = default(1 << bit);
            for (name, number) in CALLS {
                let opened = none.calls.get(number) != with.calls.get(number);
                let row = BY_CAPABILITY.iter().find(|(owner, _)| *owner == capability::NAMES[bit]);
                let listed = row.is_some_and(|(_, names)| names.contains(name));
                let by_family =
                    *name == "socket" && ["NET_RAW", "NET_ADMIN"].contains(&capability::NAMES[bit]);
                assert_eq!(opened, listed || by_family, "{name} with {}", capability::NAMES[bit]);
            }
        }
    }

    #[test]
    fn the_program_is_a_short_tree() {
        let program = program(capability::DEFAULT);
        assert!(program.len() < 256, "{} instructions", program.len());
    }
}
