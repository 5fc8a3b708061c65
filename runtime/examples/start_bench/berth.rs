//! The launcher in a process of its own, asked over its socket as the agent asks it: user namespace, network
//! namespace from a pool, overlay of two layers, filter, log pipe.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use berth_runtime::cgroup::Group;
use berth_runtime::client::{Launcher, Slot};
use berth_runtime::launcher::{Host, serve};
use berth_runtime::plan::{
    Fd, Namespace, Namespaces, Plan, Process, ProcessSpecial, Rlimit, Root, Seccomp, Special, Stdio,
    UserNamespace,
};
use berth_runtime::{capability, defaults};
use berth_sys::clone::{Options, SingleThreaded, spawn};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::{BASE, COUNT, Contender, GROUPS, Took, open_dir, since};

/// Init is another process, and telling it is one message; here there is none.
struct Alone;

impl Host for Alone {
    fn register(&mut self, _name: &str, _pid: i32, _pidfd: BorrowedFd<'_>) -> std::io::Result<()> {
        Ok(())
    }

    fn log(&mut self, line: &str) {
        eprintln!("launcher: {line}");
    }
}

pub(crate) struct Berth {
    dir: PathBuf,
    layers: [PathBuf; 2],
    launcher: Launcher,
    slot: Option<Slot>,
}

impl Berth {
    pub(crate) fn new(single: SingleThreaded, dir: &Path, layers: &[PathBuf; 2]) -> Self {
        let path = dir.join("launcher.sock");
        let listener =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&listener, 8).unwrap();
        let child = || {
            rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable).unwrap();
            let error = serve(&listener, &mut Alone).unwrap_err();
            eprintln!("launcher ended: {error}");
            1
        };
        spawn(single, Options::default(), child).unwrap();
        let launcher = Launcher::connect(&path).unwrap();
        Self { dir: dir.to_owned(), layers: layers.clone(), launcher, slot: None }
    }
}

/// What the agent asks for when it is asked for nothing special.
fn plan(round: u32) -> Plan {
    let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    Plan {
        name: format!("c/bench/{round}"),
        cgroup: Fd(2),
        namespaces: Namespaces {
            user: UserNamespace::Own { fd: Fd(0), base: BASE, count: COUNT },
            net: Namespace::Join(Fd(1)),
            pid: Namespace::New,
            ipc: Namespace::New,
            uts: Namespace::New,
            cgroup: Namespace::New,
        },
        hostname: "bench".to_owned(),
        domainname: String::new(),
        root: Root { layers: vec![Fd(3), Fd(4)], writable: Some(Fd(5)), readonly: false },
        mounts: defaults::mounts(defaults::SHM_BYTES, false),
        devices: Vec::new(),
        masked_paths: owned(&defaults::MASKED_PATHS),
        readonly_paths: owned(&defaults::READONLY_PATHS),
        sysctls: vec![("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned())],
        process: Process {
            args: owned(&["/bin/true"]),
            env: owned(&["PATH=/bin", "HOSTNAME=bench"]),
            cwd: "/".to_owned(),
            user: String::new(),
            groups: Vec::new(),
            capabilities: capability::DEFAULT,
            no_new_privileges: true,
            seccomp: Seccomp::Default,
            rlimits: vec![Rlimit { resource: 7, soft: 1024, hard: 2048 }],
            oom_score_adj: 0,
            umask: 0o22,
            stdio: Stdio::Fds([Fd(6), Fd(7), Fd(8)]),
            special: ProcessSpecial::default(),
        },
        init: false,
        special: Special::default(),
    }
}

impl Contender for Berth {
    fn name(&self) -> String {
        "launcher".to_owned()
    }

    fn prepare(&mut self, _round: u32) {
        self.slot = Some(self.launcher.make_slot(BASE, COUNT).unwrap());
    }

    fn start(&mut self, round: u32) -> Took {
        let slot = self.slot.take().unwrap();
        let begun = Instant::now();
        let writable = self.dir.join(format!("launcher-{round}"));
        for sub in ["fs", "work"] {
            std::fs::create_dir_all(writable.join(sub)).unwrap();
        }
        let group = Group::create(open_dir(Path::new(GROUPS)).as_fd(), &format!("launcher-{round}")).unwrap();
        let (_log, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let fds: Vec<OwnedFd> = vec![
            slot.user,
            slot.net,
            group.dir().try_clone_to_owned().unwrap(),
            open_dir(&self.layers[0]),
            open_dir(&self.layers[1]),
            open_dir(&writable),
            null,
            write.try_clone().unwrap(),
            write,
        ];
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let started = self.launcher.launch(&plan(round), &borrowed).unwrap();
        let took = since(begun);
        waitid(WaitId::PidFd(started.pidfd.as_fd()), WaitIdOptions::EXITED).unwrap();
        drop(fds);
        group.remove().unwrap();
        Took { started: took, gone: since(begun) }
    }
}
