//! What of the kernel a container can reach, and what the kernel itself refuses when nothing else does.

use anyhow::{Context, Result, ensure};
use qemu_test::Machine;
use qemu_test::scenario::{Cases, Site};

const PROBE: &str = env!("CARGO_BIN_EXE_probe");

/// In the release of the kernel that the project builds.
const OWN_MARK: &str = "berth";

/// What a container may open: local and internet sockets, and netlink's routing. UDP-Lite cannot be left out of
/// IPv4 in 6.1.
const OPEN_TO_CONTAINERS: &[&str] =
    &["family 1", "family 2", "family 10", "family 16", "netlink 0", "protocol udplite"];

/// The kernel's own refusals, whoever asks.
const NOT_IN_THE_KERNEL: &[&str] = &[
    "family 3",
    "family 4",
    "family 5",
    "family 6",
    "family 8",
    "family 9",
    "family 11",
    "family 12",
    "family 15",
    "family 18",
    "family 19",
    "family 20",
    "family 21",
    "family 22",
    "family 23",
    "family 24",
    "family 26",
    "family 27",
    "family 28",
    "family 29",
    "family 30",
    "family 31",
    "family 32",
    "family 33",
    "family 34",
    "family 35",
    "family 36",
    "family 37",
    "family 38",
    "family 39",
    "family 40",
    "family 41",
    "family 42",
    "family 43",
    "family 44",
    "family 45",
    "protocol sctp",
    "protocol sctp-seqpacket",
    "protocol dccp",
    "protocol mptcp",
    "protocol l2tp",
    "protocol smc",
    "netlink 7",
    "netlink 8",
    "netlink 9",
    "netlink 11",
    "netlink 14",
    "netlink 18",
    "netlink 20",
    "netlink 21",
    "call io_uring_setup",
    "call io_uring_enter",
    "call io_uring_register",
    "call userfaultfd",
    "call kexec_load",
    "call kexec_file_load",
    "call modify_ldt",
    "call iopl",
    "call ioperm",
    "call uselib",
    "call sysfs",
    "call acct",
    "call lookup_dcookie",
    "call nfsservctl",
];

/// A door's name and what it said.
fn surface(text: &str) -> Result<Vec<(&str, &str)>> {
    text.lines()
        .map(|line| line.split_once(": ").with_context(|| format!("not a line of the probe: {line}")))
        .collect()
}

/// Whether the kernel's code behind the door was not reached.
fn refused(said: &str) -> bool {
    const REFUSALS: &[&str] = &[
        "Function not implemented",
        "Operation not permitted",
        "Permission denied",
        "No such file or directory",
        "No such device",
        "No such device or address",
        "Read-only file system",
        "Address family not supported by protocol",
        "Protocol not supported",
        "Socket type not supported",
        "Operation not supported",
        "No data available",
    ];
    REFUSALS.contains(&said)
}

#[test]
#[ignore = "boots a machine: cargo berth test"]
fn a_container_reaches_little_of_the_kernel() -> Result<()> {
    let site = Site::prepare(PROBE)?;
    let mut guest = site.boot(&Machine::new("kernel-surface").config(site.machine_file("")))?;
    let docker = site.docker(&guest)?;
    docker.ok(&["pull", "-q", &site.image])?;
    // The filter lets protocols of the internet families through, as Docker's does; our own kernel has not this one.
    let tolerated = |own: bool, name: &str| !own && name == "protocol mptcp";
    let release = docker.ok(&["info", "--format", "{{.KernelVersion}}"])?;
    let own = release.contains(OWN_MARK);
    let mut cases = Cases::default();

    let confined = docker.ok(&["run", "--rm", &site.image, "/probe", "surface"])?;
    println!("a container on {release}:\n{confined}");
    cases.case("a container opens nothing but local and internet sockets", || {
        let all = surface(&confined)?;
        ensure!(all.len() > 140, "the probe tried {} doors only", all.len());
        let open: Vec<_> = all
            .into_iter()
            .filter(|(name, said)| {
                !refused(said) && !OPEN_TO_CONTAINERS.contains(name) && !tolerated(own, name)
            })
            .collect();
        ensure!(open.is_empty(), "{open:?}");
        Ok(())
    });
    if own {
        let script = ["run", "--rm", "--security-opt", "seccomp=unconfined", "--cap-add", "ALL"];
        let bare = docker.ok(&[&script[..], &[&site.image, "/probe", "surface"]].concat())?;
        println!("without a filter, with all capabilities:\n{bare}");
        cases.case("the kernel itself refuses what nobody needs", || {
            let all = surface(&bare)?;
            for door in NOT_IN_THE_KERNEL {
                let said = all.iter().find(|(name, _)| name == door).map(|(_, said)| *said);
                let said = said.with_context(|| format!("{door} was not tried"))?;
                ensure!(refused(said), "{door}: {said}");
            }
            Ok(())
        });
    }
    cases.finish(&mut guest)
}
