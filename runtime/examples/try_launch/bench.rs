//! Containers to try: a plan with everything usual, to be changed by a check, and its run to the end.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use berth_runtime::cgroup::Group;
use berth_runtime::client::{LaunchError, Launcher, Slot, Started};
use berth_runtime::plan::{
    Fd, Mount, MountSource, MountSpecial, Namespace, Namespaces, Plan, Process, ProcessSpecial, Rlimit, Root,
    Seccomp, Special, Stdio, UserNamespace,
};
use berth_runtime::{capability, defaults};
use rustix::fs::{Mode, OFlags};
use rustix::process::{WaitId, WaitIdOptions, waitid};

/// First host id of the containers.
pub(crate) const BASE: u32 = 200_000;

pub(crate) struct Bench {
    pub(crate) dir: PathBuf,
    pub(crate) cgroups: OwnedFd,
    pub(crate) launcher: Launcher,
    pub(crate) runs: u32,
    pub(crate) failed: u32,
}

/// A plan and its descriptors, to be changed by a case.
pub(crate) struct Case {
    pub(crate) plan: Plan,
    pub(crate) fds: Vec<OwnedFd>,
    pub(crate) output: OwnedFd,
    pub(crate) group: Group,
}

pub(crate) fn open_dir(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

impl Case {
    pub(crate) fn add(&mut self, fd: OwnedFd) -> Fd {
        self.fds.push(fd);
        Fd(u16::try_from(self.fds.len() - 1).unwrap())
    }

    pub(crate) fn bind(&mut self, source: &Path, target: &str, copy_up: bool) {
        let fd = rustix::fs::open(source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let fd = self.add(fd);
        self.plan.mounts.push(Mount {
            target: target.to_owned(),
            source: MountSource::Bind { fd, idmap: true, recursive: false, copy_up, slave: false },
            readonly: false,
            nosuid: true,
            nodev: true,
            noexec: false,
            special: MountSpecial::default(),
        });
    }
}

impl Bench {
    pub(crate) fn case(&mut self, args: &[&str]) -> Case {
        self.runs += 1;
        let slot = self.launcher.make_slot(BASE, 65536).unwrap();
        self.case_in(slot, args)
    }

    pub(crate) fn case_in(&mut self, slot: Slot, args: &[&str]) -> Case {
        let writable = self.dir.join(format!("rw-{}", self.runs));
        for sub in ["fs", "work"] {
            std::fs::create_dir_all(writable.join(sub)).unwrap();
        }
        let group = Group::create(self.cgroups.as_fd(), &format!("try-{}", self.runs)).unwrap();
        let (output, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let fds = vec![
            slot.user,
            slot.net,
            group.dir().try_clone_to_owned().unwrap(),
            open_dir(&self.dir.join("layer0")),
            open_dir(&self.dir.join("layer1")),
            open_dir(&writable),
            null,
            write.try_clone().unwrap(),
            write,
        ];
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let process = Process {
            args: owned(args),
            env: owned(&["PATH=/bin"]),
            cwd: "/".to_owned(),
            user: String::new(),
            groups: Vec::new(),
            capabilities: capability::DEFAULT,
            no_new_privileges: true,
            seccomp: Seccomp::Default,
            rlimits: vec![Rlimit { resource: 7, soft: 1024, hard: 2048 }],
            oom_score_adj: 77,
            umask: 0o22,
            stdio: Stdio::Fds([Fd(6), Fd(7), Fd(8)]),
            special: ProcessSpecial::default(),
        };
        let plan = Plan {
            name: format!("c/try/{}", self.runs),
            cgroup: Fd(2),
            namespaces: Namespaces {
                user: UserNamespace::Own { fd: Fd(0), base: BASE, count: 65536 },
                net: Namespace::Join(Fd(1)),
                pid: Namespace::New,
                ipc: Namespace::New,
                uts: Namespace::New,
                cgroup: Namespace::New,
            },
            hostname: "box".to_owned(),
            domainname: "example".to_owned(),
            root: Root { layers: vec![Fd(3), Fd(4)], writable: Some(Fd(5)), readonly: false },
            mounts: defaults::mounts(1 << 20, false),
            devices: Vec::new(),
            masked_paths: owned(&defaults::MASKED_PATHS),
            readonly_paths: owned(&defaults::READONLY_PATHS),
            sysctls: vec![("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned())],
            process,
            init: false,
            special: Special::default(),
        };
        Case { plan, fds, output, group }
    }

    /// Runs a case to its end: exit code and output, or the failure.
    pub(crate) fn run(&mut self, case: Case) -> Result<(i32, String), String> {
        let started = self.start(&case)?;
        let Case { fds, output, group, .. } = case;
        drop(fds);
        let code = wait(&started);
        let text = match started.terminal {
            Some(master) => read_terminal(&master),
            None => read_all(output),
        };
        group.remove().unwrap();
        Ok((code, text))
    }

    pub(crate) fn start(&mut self, case: &Case) -> Result<Started, String> {
        let fds: Vec<BorrowedFd<'_>> = case.fds.iter().map(AsFd::as_fd).collect();
        self.launcher.launch(&case.plan, &fds).map_err(|error| match error {
            LaunchError::Step(failure) => format!("{}|{}", failure.step, failure.detail),
            LaunchError::Connection(error) => panic!("connection: {error}"),
        })
    }

    pub(crate) fn sh(&mut self, script: &str) -> Case {
        self.case(&["sh", "-c", script])
    }

    pub(crate) fn check(&mut self, what: &str, got: &Result<(i32, String), String>, expected: &str) {
        let text = match got {
            Ok((0, text)) => text.trim_end().to_owned(),
            Ok((code, text)) => format!("exit {code}: {}", text.trim_end()).trim_end().to_owned(),
            Err(failure) => format!("failed: {failure}"),
        };
        if text == expected {
            println!("ok    {what}");
        } else {
            self.failed += 1;
            println!("WRONG {what}\n  expected {expected:?}\n  got      {text:?}");
        }
    }

    pub(crate) fn script(&mut self, what: &str, script: &str, expected: &str) {
        let case = self.sh(script);
        let got = self.run(case);
        self.check(what, &got, expected);
    }
}

pub(crate) fn wait(started: &Started) -> i32 {
    let status = waitid(WaitId::PidFd(started.pidfd.as_fd()), WaitIdOptions::EXITED).unwrap().unwrap();
    status.exit_status().unwrap_or_else(|| 128 + status.terminating_signal().unwrap_or(0))
}

pub(crate) fn read_all(fd: OwnedFd) -> String {
    let mut text = String::new();
    std::fs::File::from(fd).read_to_string(&mut text).unwrap();
    text
}

pub(crate) fn read_terminal(master: &OwnedFd) -> String {
    let mut bytes = Vec::new();
    let mut chunk = [0; 1024];
    while let Ok(length @ 1..) = rustix::io::read(master, &mut chunk) {
        bytes.extend_from_slice(&chunk[..length]);
    }
    String::from_utf8_lossy(&bytes).replace('\r', "")
}
