//! Starts containers through the launcher and checks what they see: this process plays init and agent.
//!
//! Needs root, a static busybox and an empty directory on a file system that can shift owners (ext4).
//! `try_launch BUSYBOX DIRECTORY CGROUP2_DIRECTORY [CASE]`

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Instant;

use berth_runtime::cgroup::Group;
use berth_runtime::client::{LaunchError, Launcher, Slot, Started};
use berth_runtime::launcher::{Host, serve};
use berth_runtime::plan::{
    ExecPlan, Fd, Mount, MountSource, Namespace, Namespaces, Plan, Process, Rlimit, Root, Seccomp, Stdio,
    UserNamespace,
};
use berth_runtime::{capability, defaults};
use berth_sys::clone::{Options, SingleThreaded, spawn};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{WaitId, WaitIdOptions, waitid};

const BASE: u32 = 200_000;

struct Quiet;

impl Host for Quiet {
    fn register(&mut self, _name: &str, _pid: i32, _pidfd: BorrowedFd<'_>) -> std::io::Result<()> {
        Ok(())
    }

    fn log(&mut self, line: &str) {
        eprintln!("launcher: {line}");
    }
}

struct Bench {
    dir: PathBuf,
    cgroups: OwnedFd,
    launcher: Launcher,
    runs: u32,
    failed: u32,
}

/// A plan and its descriptors, to be changed by a case.
struct Case {
    plan: Plan,
    fds: Vec<OwnedFd>,
    output: OwnedFd,
    group: Group,
}

fn open_dir(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

impl Case {
    fn add(&mut self, fd: OwnedFd) -> Fd {
        self.fds.push(fd);
        Fd(u16::try_from(self.fds.len() - 1).unwrap())
    }

    fn bind(&mut self, source: &Path, target: &str, copy_up: bool) {
        let fd = rustix::fs::open(source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let fd = self.add(fd);
        self.plan.mounts.push(Mount {
            target: target.to_owned(),
            source: MountSource::Bind { fd, idmap: true, recursive: false, copy_up, slave: false },
            readonly: false,
            nosuid: true,
            nodev: true,
            noexec: false,
        });
    }
}

impl Bench {
    fn case(&mut self, args: &[&str]) -> Case {
        self.runs += 1;
        let slot = self.launcher.make_slot(BASE, 65536).unwrap();
        self.case_in(slot, args)
    }

    fn case_in(&mut self, slot: Slot, args: &[&str]) -> Case {
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
        };
        Case { plan, fds, output, group }
    }

    /// Runs a case to its end: exit code and output, or the failure.
    fn run(&mut self, case: Case) -> Result<(i32, String), String> {
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

    fn start(&mut self, case: &Case) -> Result<Started, String> {
        let fds: Vec<BorrowedFd<'_>> = case.fds.iter().map(AsFd::as_fd).collect();
        self.launcher.launch(&case.plan, &fds).map_err(|error| match error {
            LaunchError::Step(failure) => format!("{}|{}", failure.step, failure.detail),
            LaunchError::Connection(error) => panic!("connection: {error}"),
        })
    }

    fn sh(&mut self, script: &str) -> Case {
        self.case(&["sh", "-c", script])
    }

    fn check(&mut self, what: &str, got: &Result<(i32, String), String>, expected: &str) {
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

    fn script(&mut self, what: &str, script: &str, expected: &str) {
        let case = self.sh(script);
        let got = self.run(case);
        self.check(what, &got, expected);
    }
}

fn wait(started: &Started) -> i32 {
    let status = waitid(WaitId::PidFd(started.pidfd.as_fd()), WaitIdOptions::EXITED).unwrap().unwrap();
    status.exit_status().unwrap_or_else(|| 128 + status.terminating_signal().unwrap_or(0))
}

fn read_all(fd: OwnedFd) -> String {
    let mut text = String::new();
    std::fs::File::from(fd).read_to_string(&mut text).unwrap();
    text
}

fn read_terminal(master: &OwnedFd) -> String {
    let mut bytes = Vec::new();
    let mut chunk = [0; 1024];
    while let Ok(length @ 1..) = rustix::io::read(master, &mut chunk) {
        bytes.extend_from_slice(&chunk[..length]);
    }
    String::from_utf8_lossy(&bytes).replace('\r', "")
}

fn make_layers(busybox: &Path, dir: &Path) {
    let lower = dir.join("layer0");
    for sub in ["bin", "etc", "root", "tmp", "home/app", "data/sub"] {
        std::fs::create_dir_all(lower.join(sub)).unwrap();
    }
    std::fs::set_permissions(lower.join("tmp"), PermissionsExt::from_mode(0o1777)).unwrap();
    std::fs::copy(busybox, lower.join("bin/busybox")).unwrap();
    for name in
        "sh ls cat id hostname mount ps sleep echo grep stat wc tr sort touch rm mkdir tty kill ln test \
        readlink cut head unshare nc ulimit sed find dd env dmesg chown umount mknod stty pwd true sync"
            .split_ascii_whitespace()
    {
        symlink("busybox", lower.join("bin").join(name)).unwrap();
    }
    std::fs::write(
        lower.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n",
    )
    .unwrap();
    std::fs::write(lower.join("etc/group"), "root:x:0:\napp:x:1000:\nvideo:x:44:app\n").unwrap();
    std::fs::write(lower.join("data/sub/file"), "from image\n").unwrap();
    std::fs::write(lower.join("below"), "lower\n").unwrap();
    std::fs::write(lower.join("etc/noexec"), "#!/bin/sh\n").unwrap();
    std::fs::write(lower.join("bin/badinterp"), "#!/no/such\n").unwrap();
    std::fs::set_permissions(lower.join("bin/badinterp"), PermissionsExt::from_mode(0o755)).unwrap();
    let upper = dir.join("layer1");
    std::fs::create_dir_all(&upper).unwrap();
    std::fs::write(upper.join("above"), "upper\n").unwrap();
    for (index, layer) in (2..127).map(|index| (index, dir.join(format!("layer{index}")))) {
        std::fs::create_dir_all(&layer).unwrap();
        std::fs::write(layer.join(format!("n{index}")), "").unwrap();
    }
}

fn connect_to_launcher(single: SingleThreaded, dir: &Path) -> (Launcher, Ending) {
    let path = dir.join("launcher.sock");
    let listener =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .unwrap();
    rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&listener, 8).unwrap();
    let child = || {
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable).unwrap();
        let error = serve(&listener, &mut Quiet).unwrap_err();
        eprintln!("launcher ended: {error}: {:?}", std::error::Error::source(&error));
        1
    };
    let child = spawn(single, Options::default(), child).unwrap();
    (Launcher::connect(&path).unwrap(), Ending(child.pidfd))
}

/// The launcher must not outlive its maker, also when that panics.
struct Ending(OwnedFd);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = rustix::process::pidfd_send_signal(&self.0, rustix::process::Signal::KILL);
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, busybox, dir, cgroups, rest @ ..] = args.as_slice() else { panic!("see the first lines") };
    let dir = PathBuf::from(dir);
    make_layers(Path::new(busybox), &dir);
    let single = SingleThreaded::check().unwrap();
    let (launcher, ending) = connect_to_launcher(single, &dir);
    let cgroups = open_dir(Path::new(cgroups));
    let mut bench = Bench { dir, cgroups, launcher, runs: 0, failed: 0 };
    let only = rest.first().map(String::as_str);
    let groups: [(&str, fn(&mut Bench)); 8] = [
        ("view", view),
        ("security", security),
        ("users", users),
        ("failures", failures),
        ("mounts", mounts),
        ("terminal", terminal),
        ("exec", exec),
        ("speed", speed),
    ];
    for (name, run) in groups {
        if only.is_none_or(|only| only == name) {
            println!("-- {name}");
            run(&mut bench);
        }
    }
    println!("{} wrong", bench.failed);
    drop(ending);
    std::process::exit(i32::from(bench.failed > 0));
}

fn view(bench: &mut Bench) {
    bench.script("layers", "cat /below /above; echo x > /new; cat /new", "lower\nupper\nx");
    bench.script(
        "ids",
        "id -u; id -g; cat /proc/self/uid_map | tr -s ' '",
        &format!("0\n0\n 0 {BASE} 65536"),
    );
    bench.script("owners", "stat -c %u:%g /below /etc /", "0:0\n0:0\n0:0");
    bench.script("names", "hostname; cat /proc/sys/kernel/domainname", "box\nexample");
    bench.script("pid 1", "echo $$; ls /proc | grep -c '^[0-9]'", "1\n3");
    bench.script(
        "cgroup namespace",
        "tail -1 /proc/self/cgroup 2>/dev/null || grep '^0:' /proc/self/cgroup",
        "0::/",
    );
    bench.script(
        "dev",
        "ls /dev | tr '\\n' ' '",
        "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero",
    );
    bench.script(
        "dev works",
        "echo lost > /dev/null; head -c 4 /dev/zero | wc -c; head -c 9 /dev/urandom | wc -c",
        "4\n9",
    );
    bench.script("descriptors", "ls /proc/self/fd | tr '\\n' ' '", "0 1 2 3");
    bench.script(
        "stdout can be opened anew",
        "echo one > /dev/stdout; echo two > /proc/self/fd/2",
        "one\ntwo",
    );
    bench.script(
        "limits",
        "ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj; umask",
        "1024\n2048\n77\n0022",
    );
    bench.script(
        "signals",
        "grep -E 'Sig(Blk|Ign)' /proc/self/status | tr -s '\\t' ' '",
        "SigBlk: 0000000000000000\nSigIgn: 0000000000000000",
    );
    bench.script("shm", "echo x > /dev/shm/a && cat /dev/shm/a; stat -f -c %b /dev/shm", "x\n256");
    bench.script("sysctl", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    bench.script("environment", "env | sort | grep -v -E 'SHLVL|PWD'", "HOME=/root\nPATH=/bin");
    let mut case = bench.sh("echo start; sleep 0.1 & exec_in_background=1; wait; echo end");
    case.plan.init = true;
    let got = bench.run(case);
    bench.check("built-in init", &got, "start\nend");
    let mut case = bench.sh("echo $$; exit 7");
    case.plan.init = true;
    let got = bench.run(case);
    bench.check("built-in init hands the code on", &got, "exit 7: 2");
    let mut case = bench.sh("kill -9 $$");
    case.plan.init = true;
    let got = bench.run(case);
    bench.check("built-in init hands the signal on", &got, "exit 137:");
}

fn security(bench: &mut Bench) {
    bench.script("capabilities",
        "grep -E '^Cap|NoNew|Seccomp:' /proc/self/status | tr -s '\\t' ' '",
        "CapInh: 0000000000000000\nCapPrm: 00000000000405fb\nCapEff: 00000000000405fb\nCapBnd: 00000000000405fb\n\
         CapAmb: 0000000000000000\nNoNewPrivs: 1\nSeccomp: 2");
    bench.script("masked", "cat /proc/keys /proc/timer_list | wc -c; ls /sys/firmware | wc -l", "0\n0");
    bench.script("read-only", "for f in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /sys/kernel/profiling \
        /sys/fs/cgroup/cgroup.procs /proc/sys/net/ipv4/ip_forward; do (echo 1 > $f) 2>/dev/null && echo wrote $f; done; echo done", "done");
    bench.script(
        "no mounts",
        "mount -t tmpfs x /tmp 2>/dev/null || umount /proc 2>/dev/null || echo refused",
        "refused",
    );
    bench.script(
        "no namespaces",
        "unshare -U true 2>/dev/null || unshare -m true 2>/dev/null || echo refused",
        "refused",
    );
    bench.script("no devices", "mknod /tmp/x b 8 0 2>/dev/null || echo refused", "refused");
    bench.script("no kernel log", "dmesg >/dev/null 2>&1 || echo refused", "refused");
    let mut case =
        bench.sh("unshare -U true 2>/dev/null || echo refused; cat /proc/sys/user/max_user_namespaces");
    case.plan.process.seccomp = Seccomp::Unconfined;
    case.plan.process.capabilities = capability::ALL & !(1 << capability::SYS_RESOURCE);
    let got = bench.run(case);
    bench.check("no user namespaces without a filter", &got, "refused\n0");
    let mut case = bench.sh("(echo 5 > /proc/sys/user/max_user_namespaces) 2>/dev/null || echo refused; mount -t tmpfs x /tmp && echo mounted");
    case.plan.process.seccomp = Seccomp::Unconfined;
    case.plan.process.capabilities = capability::ALL & !(1 << capability::SYS_RESOURCE);
    case.plan.readonly_paths.clear();
    let got = bench.run(case);
    bench.check("ucount cannot be raised", &got, "refused\nmounted");
    bench.script(
        "host files",
        "ls /proc/1/root/mnt 2>/dev/null; cat /proc/1/mountinfo | grep -c /mnt",
        "exit 1: 0",
    );
    bench.script(
        "seccomp errno",
        "cat /proc/self/status | grep Seccomp_filters | tr -s '\\t' ' '",
        "Seccomp_filters: 1",
    );
    let mut case = bench.sh("grep -E 'NoNew|Seccomp:' /proc/self/status | tr -s '\\t' ' '; id -u");
    case.plan.process.no_new_privileges = false;
    case.plan.process.user = "app".to_owned();
    let got = bench.run(case);
    bench.check("filter without no_new_privs", &got, "NoNewPrivs: 0\nSeccomp: 2\n1000");
    let mut case =
        bench.sh("mount -t tmpfs x /tmp && echo mounted; cat /proc/self/uid_map | tr -s ' '; id -u");
    case.plan.namespaces.user = UserNamespace::Host;
    case.plan.namespaces.net = Namespace::New;
    case.plan.process.seccomp = Seccomp::Unconfined;
    case.plan.process.no_new_privileges = false;
    case.plan.process.capabilities = capability::ALL;
    case.plan.masked_paths.clear();
    case.plan.readonly_paths.clear();
    case.plan.mounts = defaults::mounts(1 << 20, true);
    let got = bench.run(case);
    bench.check("privileged in the host's user namespace", &got, "mounted\n 0 0 4294967295\n0");
    let mut case =
        bench.sh("ls /sys/class/net | grep -c lo; (echo x > /sys/power/state) 2>/dev/null || echo refused");
    case.plan.namespaces.net = Namespace::Host;
    case.plan.sysctls.clear();
    let got = bench.run(case);
    bench.check("the host's network shows the host's /sys, read-only", &got, "1\nrefused");
}

fn users(bench: &mut Bench) {
    for (user, expected) in [
        ("app", "uid=1000(app) gid=1000(app) groups=44(video)\n/home/app\n1000"),
        ("1000:44", "uid=1000(app) gid=44(video)\n/home/app\n1000"),
        ("4242", "uid=4242 gid=0(root)\n/\n4242"),
    ] {
        let mut case =
            bench.sh("id | sed 's/,.*,/,/'; echo $HOME; stat -L -c %u /proc/self/fd/1; echo x > /dev/stderr");
        case.plan.process.user = user.to_owned();
        let got = bench.run(case);
        bench.check(user, &got, &format!("{expected}\nx"));
    }
    let mut case = bench.sh("grep ^Cap /proc/self/status | cut -f2 | tr '\\n' ' '");
    case.plan.process.user = "app".to_owned();
    let got = bench.run(case);
    bench.check(
        "capabilities of a plain user",
        &got,
        "0000000000000000 0000000000000000 0000000000000000 00000000000405fb 0000000000000000",
    );
    for (user, text) in [
        ("nobody", "unable to find user nobody: no matching entries in passwd file"),
        ("0day", "unable to find user 0day: no matching entries in passwd file"),
        ("app:nope", "unable to find group nope: no matching entries in group file"),
    ] {
        let mut case = bench.sh("true");
        case.plan.process.user = user.to_owned();
        let got = bench.run(case);
        bench.check(user, &got, &format!("failed: user|{text}"));
    }
    let mut case = bench.sh("true");
    case.plan.process.user = "70000".to_owned();
    let got = bench.run(case);
    bench.check("an id outside the range", &got, "failed: user|uid 70000");
}

fn failures(bench: &mut Bench) {
    for (args, text) in [
        (&["nope"][..], r#"exec: "nope": executable file not found in $PATH"#),
        (&["/etc/noexec"], r#"exec: "/etc/noexec": permission denied"#),
        (&["/no/where"], r#"exec: "/no/where": stat /no/where: no such file or directory"#),
        (&["badinterp"], "exec /bin/badinterp: no such file or directory"),
        (&["/etc"], r#"exec: "/etc": is a directory"#),
    ] {
        let case = bench.case(args);
        let got = bench.run(case);
        bench.check(args[0], &got, &format!("failed: exec|{text}"));
    }
    let mut case = bench.sh("true");
    case.plan.process.cwd = "/proc/self/fd/3".to_owned();
    let got = bench.run(case);
    bench.check("cwd through a magic link", &got, "failed: cwd|/proc/self/fd/3");
    let mut case = bench.sh("pwd; stat -c %u .");
    case.plan.process.cwd = "/made/on/the/way".to_owned();
    let got = bench.run(case);
    bench.check("a missing cwd is made", &got, "/made/on/the/way\n0");
    let mut case = bench.sh("true");
    case.plan.process.stdio = Stdio::Fds([Fd(6), Fd(7), Fd(99)]);
    let got = bench.run(case);
    bench.check("a descriptor that was not sent", &got, "failed: plan|descriptor 99");
    let mut case = bench.sh("true");
    case.plan.sysctls = vec![("kernel.core_pattern".to_owned(), "x".to_owned())];
    let got = bench.run(case);
    bench.check("a sysctl of the host", &got, "failed: sysctl|kernel.core_pattern");
    let case = bench.sh("echo fine");
    let got = bench.run(case);
    bench.check("the launcher goes on", &got, "fine");
}

fn mounts(bench: &mut Bench) {
    let volume = bench.dir.join("volume");
    std::fs::create_dir_all(&volume).unwrap();
    let mut case = bench.sh("cat /data/sub/file; stat -c %u /data /data/sub; echo new > /data/mine");
    case.bind(&volume, "/data", true);
    let got = bench.run(case);
    bench.check("volume filled from the image", &got, "from image\n0\n0");
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(volume.join("mine")).unwrap());
    bench.check("owners on disk are the container's", &Ok((0, owner.to_string())), "0");
    let mut case = bench.sh("cat /mnt/v/mine; (echo x > /mnt/v/no) 2>/dev/null || echo read-only");
    case.bind(&volume, "/mnt/v", false);
    case.plan.mounts.last_mut().unwrap().readonly = true;
    let got = bench.run(case);
    bench.check("volume again, read-only", &got, "new\nread-only");
    let file = bench.dir.join("hosts");
    std::fs::write(&file, "127.0.0.1 box\n").unwrap();
    let mut case = bench.sh("cat /etc/hosts; grep -c etc/hosts /proc/mounts");
    case.bind(&file, "/etc/hosts", false);
    let got = bench.run(case);
    bench.check("a file over a missing file", &got, "127.0.0.1 box\n1");
    let mut case = bench.sh("(echo x > /x) 2>/dev/null || echo read-only; echo y > /dev/shm/y && echo shm");
    case.plan.root.readonly = true;
    let got = bench.run(case);
    bench.check("read-only root", &got, "read-only\nshm");
    let mut case = bench.sh("ls / | grep -c '^n[0-9]'; cat /above");
    for index in 2..127 {
        let layer = open_dir(&bench.dir.join(format!("layer{index}")));
        let fd = case.add(layer);
        case.plan.root.layers.push(fd);
    }
    let got = bench.run(case);
    bench.check("127 layers", &got, "125\nupper");
    let mut case = bench.sh("cat /below; echo x > /direct; stat -c %u /direct");
    case.plan.root.layers.truncate(1);
    case.plan.root.writable = None;
    let got = bench.run(case);
    bench.check("a bare directory as root", &got, "lower\n0");
    let _ = std::fs::remove_file(bench.dir.join("layer0/direct"));
    let evil = bench.dir.join("layer1");
    symlink("/../../../../../../../../etc", evil.join("escape")).unwrap();
    let mut case = bench.sh("ls /etc/berth-try-made");
    case.bind(&file, "/escape/berth-try-made", false);
    let got = bench.run(case);
    bench.check("a link out of the root stays inside", &got, "/etc/berth-try-made");
    assert!(!Path::new("/etc/berth-try-made").exists());
    std::fs::remove_file(evil.join("escape")).unwrap();
}

fn terminal(bench: &mut Bench) {
    let mut case = bench.sh("tty; stty size; echo via console > /dev/console; ls -l /dev/console | cut -c1");
    case.plan.process.stdio = Stdio::Terminal { rows: 33, columns: 111 };
    let got = bench.run(case);
    bench.check("terminal", &got, "/dev/pts/0\n33 111\nvia console\nc");
    let mut case = bench.sh("tty; stat -c %u /dev/pts/0; id -u");
    case.plan.process.stdio = Stdio::Terminal { rows: 0, columns: 0 };
    case.plan.process.user = "app".to_owned();
    case.plan.init = true;
    let got = bench.run(case);
    bench.check("terminal of a user under the built-in init", &got, "/dev/pts/0\n1000\n1000");
}

fn exec(bench: &mut Bench) {
    let case = bench.sh("sleep 1000");
    let started = bench.start(&case).unwrap();
    let script = "id -u; hostname; for p in 1 self; do readlink /proc/$p/ns/pid; done | sort -u | wc -l; \
        grep '^0:' /proc/self/cgroup; grep -E '^Cap(Inh|Eff|Amb)|Seccomp:' /proc/self/status | cut -f2 | tr '\\n' ' '; \
        for n in user mnt net ipc uts cgroup; do for p in 1 self; do readlink /proc/$p/ns/$n; done | sort -u | wc -l; done | sort -u; \
        ls /proc/self/fd | wc -l; cat /proc/self/oom_score_adj; ls / | grep -c below";
    let expected = "0\nbox\n1\n0::/\n0000000000000000 00000000000405fb 0000000000000000 2 1\n4\n77\n1";
    for (stdio, expected) in [
        (case.plan.process.stdio, expected.to_owned()),
        (Stdio::Terminal { rows: 24, columns: 80 }, expected.to_owned()),
    ] {
        let mut process = case.plan.process.clone();
        process.args = ["sh", "-c", script].map(str::to_owned).to_vec();
        process.stdio = stdio;
        let plan = ExecPlan {
            name: "e/try".to_owned(),
            target: Fd(3),
            cgroup: Fd(2),
            user_namespace: true,
            process,
        };
        let (output, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let mut fds: Vec<BorrowedFd<'_>> = case.fds.iter().map(AsFd::as_fd).collect();
        fds[3] = started.pidfd.as_fd();
        fds[7] = write.as_fd();
        fds[8] = write.as_fd();
        let result = bench.launcher.exec(&plan, &fds);
        drop(write);
        let got = match result {
            Ok(run) => {
                let code = wait(&run);
                Ok((code, run.terminal.map_or_else(|| read_all(output), |master| read_terminal(&master))))
            }
            Err(error) => Err(error.to_string()),
        };
        bench.check("exec sees what the container sees", &got, &expected);
    }
    case.group.kill().unwrap();
    bench.check("kill", &Ok((0, wait(&started).to_string())), "137");
    let plan = ExecPlan {
        name: "e/late".to_owned(),
        target: Fd(0),
        cgroup: Fd(1),
        user_namespace: true,
        process: Process { stdio: Stdio::Fds([Fd(2); 3]), ..case.plan.process.clone() },
    };
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let fds = [started.pidfd.as_fd(), case.group.dir(), null.as_fd()];
    let got = bench.launcher.exec(&plan, &fds).map(|_| (0, String::new())).map_err(|error| error.to_string());
    bench.check(
        "exec in an ended container",
        &got,
        "failed: container: not running: No such process (os error 3)",
    );
}

fn speed(bench: &mut Bench) {
    let count = 50;
    let slots: Vec<Slot> = (0..count).map(|_| bench.launcher.make_slot(BASE, 65536).unwrap()).collect();
    let mut starts = Vec::new();
    let mut totals = Vec::new();
    for slot in slots {
        bench.runs += 1;
        let case = bench.case_in(slot, &["/bin/true"]);
        let begin = Instant::now();
        let started = bench.start(&case).unwrap();
        starts.push(begin.elapsed());
        wait(&started);
        totals.push(begin.elapsed());
        case.group.remove().unwrap();
    }
    starts.sort_unstable();
    totals.sort_unstable();
    println!(
        "      start median {:?} p95 {:?}; until reaped median {:?}",
        starts[count / 2],
        starts[count * 95 / 100],
        totals[count / 2]
    );
}
