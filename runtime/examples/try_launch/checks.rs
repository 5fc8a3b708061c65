//! What containers see and what they may not do.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Instant;

use berth_runtime::cgroup::devices;
use berth_runtime::client::Slot;
use berth_runtime::plan::{
    ExecPlan, Fd, Mount, MountSource, MountSpecial, Namespace, Process, Seccomp, Stdio, UserNamespace,
};
use berth_runtime::{capability, defaults};
use rustix::fs::{Mode, OFlags};

use crate::bench::{BASE, Bench, open_dir, read_all, read_terminal, wait};

pub(crate) fn view(bench: &mut Bench) {
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

pub(crate) fn security(bench: &mut Bench) {
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

pub(crate) fn users(bench: &mut Bench) {
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
    for (user, text) in [("nobody", "user|nobody"), ("0day", "user|0day"), ("app:nope", "group|nope")] {
        let mut case = bench.sh("true");
        case.plan.process.user = user.to_owned();
        let got = bench.run(case);
        bench.check(user, &got, &format!("failed: {text}"));
    }
    let mut case = bench.sh("true");
    case.plan.process.user = "70000".to_owned();
    let got = bench.run(case);
    bench.check("an id outside the range", &got, "failed: identity|uid 70000");
}

pub(crate) fn failures(bench: &mut Bench) {
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

/// Images that lie about what they are: each start works inside the container or fails by name, and the host is
/// untouched.
pub(crate) fn hostile(bench: &mut Bench) {
    let upper = bench.dir.join("layer1");
    let canary = bench.dir.join("canary");
    std::fs::create_dir_all(&canary).unwrap();
    let out = format!("/../../../../../../../..{}", canary.display());
    for dir in ["proc", "dev", "sys", "etc", "data"] {
        for link in [out.as_str(), "/nowhere", "loop", "/tmp", "."] {
            let place = upper.join(dir);
            let target = if link == "loop" { dir } else { link };
            symlink(target, &place).unwrap();
            let mut case = bench.sh("true");
            let volume = bench.dir.join("volume2");
            std::fs::create_dir_all(&volume).unwrap();
            case.bind(&volume, "/data", true);
            let got = bench.run(case);
            let fine = match &got {
                Ok((code, _)) => *code == 0,
                Err(failure) => ["mount|", "device|", "volume|"].iter().any(|step| failure.starts_with(step)),
            };
            if !fine {
                println!("      {dir} -> {link}: {got:?}");
            }
            bench.check(&format!("{dir} -> {link}"), &Ok((i32::from(!fine), String::new())), "");
            std::fs::remove_file(&place).unwrap();
        }
    }
    let left = std::fs::read_dir(&canary).unwrap().count();
    bench.check("nothing was made outside", &Ok((0, left.to_string())), "0");
    let lower = bench.dir.join("layer0/etc/passwd");
    let passwd = std::fs::read(&lower).unwrap();
    std::fs::write(&lower, vec![b'x'; 2 << 20]).unwrap();
    bench.script("a huge passwd", "true", "failed: identity|/etc/passwd");
    std::fs::remove_file(&lower).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &lower, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o666), 0)
        .unwrap();
    bench.script("a pipe as passwd", "echo $HOME", "/");
    std::fs::remove_file(&lower).unwrap();
    std::fs::write(&lower, passwd).unwrap();
}

pub(crate) fn device_rules(bench: &mut Bench) {
    for (rules, expected) in [
        (&devices::DEFAULT[..], "block refused\n4"),
        (&[devices::ALL][..], "block opened\n4"),
        (&[][..], "block refused\n0"),
    ] {
        let mut case = bench.sh(
            "cd /tmp; mknod b b 254 0 2>&-; (exec 3< b) 2>&- && echo block opened || echo block refused; \
             head -c 4 /dev/zero 2>&- | wc -c",
        );
        case.plan.namespaces.user = UserNamespace::Host;
        case.plan.namespaces.net = Namespace::New;
        case.plan.process.capabilities = capability::DEFAULT | 1 << 27;
        case.plan.mounts.push(Mount {
            target: "/tmp".to_owned(),
            source: MountSource::Fs { kind: "tmpfs".to_owned(), options: Vec::new() },
            readonly: false,
            nosuid: true,
            nodev: false,
            noexec: false,
            special: MountSpecial::default(),
        });
        devices::restrict(case.group.dir(), rules).unwrap();
        let got = bench.run(case);
        bench.check("device rules", &got, expected);
    }
}

pub(crate) fn mounts(bench: &mut Bench) {
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
    let mut case = bench.sh("stat -c '%F %u' /bound");
    case.bind(Path::new("/dev/urandom"), "/bound", false);
    let got = bench.run(case);
    bench.check("a file system that cannot shift owners", &got, "character special file 65534");
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

pub(crate) fn terminal(bench: &mut Bench) {
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

pub(crate) fn exec(bench: &mut Bench) {
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

pub(crate) fn speed(bench: &mut Bench) {
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
