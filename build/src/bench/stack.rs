//! The two Debian stacks as data: which packages, which files, which units start the demo container.
//!
//! Everything optional is left out, to Debian's advantage: no SSH, no cron, no logging daemon, no recommended packages.

use clap::ValueEnum;

/// The page's port on the machine, as with `cargo berth up`.
pub(super) const PAGE_PORT: u16 = 8080;

/// Where the demo image waits to be loaded into the engine.
pub(super) const DEMO_ARCHIVE: &str = "srv/demo.tar";

/// The demo image's name inside the engines.
pub(super) const DEMO_NAME: &str = "demo:latest";

/// On the kernel's command line of the first boot only.
pub(super) const PREPARE_WORD: &str = "bench.prepare";

/// What the first boot says when the engine holds the container.
pub(super) const PREPARED: &str = "bench: prepared";

/// What later boots say when the container answers.
pub(super) const ANSWERED: &str = "bench: container answered";

/// What they say after that: when the initramfs and systemd began, by the kernel's log.
pub(super) const STARTED: &str = "bench: started";

/// A container engine under systemd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Stack {
    /// docker.io: dockerd, containerd, restart policy `always`.
    Docker,
    /// podman: no daemon, a systemd unit as quadlet writes it.
    Podman,
}

/// A file of the disk image.
pub(super) struct File {
    pub(super) path: &'static str,
    pub(super) mode: u32,
    pub(super) text: String,
}

/// What every stack has: systemd, a network by DHCP, the stock cloud kernel.
const BASE_PACKAGES: &[&str] = &[
    "linux-image-cloud-amd64",
    "initramfs-tools",
    "systemd-sysv",
    "udev",
    "dbus",
    "iproute2",
    "ca-certificates",
];

impl Stack {
    /// Both, in the order they are reported.
    pub(crate) const ALL: [Self; 2] = [Self::Docker, Self::Podman];

    /// As it stands in tables and folder names.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
        }
    }

    pub(super) fn packages(self) -> Vec<&'static str> {
        let own: &[&str] = match self {
            Self::Docker => &["docker.io", "iptables", "apparmor"],
            Self::Podman => &["podman", "crun", "conmon", "netavark", "aardvark-dns", "iptables"],
        };
        [BASE_PACKAGES, own].concat()
    }

    /// Units that `systemctl enable` would link.
    pub(super) fn wanted(self) -> &'static [&'static str] {
        match self {
            Self::Docker => &["systemd-networkd.service", "bench-prepare.service", "bench-answer.service"],
            Self::Podman => {
                &["systemd-networkd.service", "bench-prepare.service", "bench-answer.service", "demo.service"]
            }
        }
    }

    pub(super) fn files(self) -> Vec<File> {
        let mut files = vec![
            file("etc/hostname", 0o644, "debian\n"),
            file("etc/fstab", 0o644, "/dev/vda / ext4 errors=remount-ro 0 1\n"),
            // A busy machine emulates the first boot slowly; that is no failure.
            file(
                "etc/systemd/system.conf.d/patient.conf",
                0o644,
                "[Manager]\nDefaultTimeoutStartSec=infinity\n",
            ),
            file("etc/systemd/network/80-dhcp.network", 0o644, "[Match]\nName=en*\n[Network]\nDHCP=yes\n"),
            file("etc/systemd/system/bench-prepare.service", 0o644, self.prepare_unit()),
            file("srv/prepare", 0o755, self.prepare_script()),
            file("etc/systemd/system/bench-answer.service", 0o644, ANSWER_UNIT),
            file("srv/answer", 0o755, answer_script()),
        ];
        if self == Self::Podman {
            files.push(file("etc/systemd/system/demo.service", 0o644, podman_unit()));
        }
        files
    }

    fn prepare_unit(self) -> String {
        let after = match self {
            Self::Docker => "docker.service",
            Self::Podman => "network.target",
        };
        format!(
            "[Unit]\nDescription=Load the demo container\nConditionKernelCommandLine={PREPARE_WORD}\nAfter={after}\n\
             [Service]\nType=oneshot\nExecStart=/srv/prepare\n[Install]\nWantedBy=multi-user.target\n"
        )
    }

    fn prepare_script(self) -> String {
        let load = match self {
            Self::Docker => format!(
                "docker load -i /{DEMO_ARCHIVE}\n\
                 docker run -d --name demo --restart always -p {PAGE_PORT}:80 {DEMO_NAME}\n"
            ),
            Self::Podman => format!("podman load -i /{DEMO_ARCHIVE}\npodman image exists {DEMO_NAME}\n"),
        };
        // All it says goes to the console, and a failure ends the machine: whoever waits need not wait for nothing.
        format!(
            "#!/bin/bash\nset -eo pipefail\n\
             exec > >(while read -r line; do echo \"<2>prepare: $line\" > /dev/kmsg; done) 2>&1\n\
             trap 'echo failed; sleep 1; systemctl poweroff' ERR\n{load}\
             rm /{DEMO_ARCHIVE}\nsync\necho '<2>{PREPARED}' > /dev/kmsg\nsystemctl poweroff\n"
        )
    }
}

/// Asks for the page from early on and says when it came, with the machine's idle time. Forks nothing while it waits:
/// one look is a few thousand instructions.
fn answer_script() -> String {
    format!(
        "#!/bin/bash\n\
         exec 4<> <(:)\n\
         while :; do\n\
         \x20 if {{ exec 3<>/dev/tcp/127.0.0.1/{PAGE_PORT}; }} 2>/dev/null; then\n\
         \x20   printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3\n\
         \x20   read -r -t 10 line <&3 && [[ $line == *' 200 '* ]] && break\n\
         \x20   exec 3>&-\n\
         \x20 fi\n\
         \x20 read -r -t 0.05 _ <&4\n\
         done\n\
         read -r up idle < /proc/uptime\n\
         echo \"<2>{ANSWERED}: up $up s, of it idle $idle s\" > /dev/kmsg\n\
         stamp() {{ dmesg | sed -n \"/$1/{{s/^\\[ *//;s/\\].*//;p;q}}\"; }}\n\
         echo \"<2>{STARTED}: initramfs $(stamp 'Run .init as init') systemd $(stamp 'systemd.1.: systemd')\" > /dev/kmsg\n"
    )
}

const ANSWER_UNIT: &str = "[Unit]\nDescription=Say when the container answers\nDefaultDependencies=no\n\
    ConditionKernelCommandLine=!bench.prepare\n[Service]\nExecStart=/srv/answer\n\
    [Install]\nWantedBy=multi-user.target\n";

/// What podman-system-generator makes of a `.container` file with `Image=` and `PublishPort=`, without its wait for
/// network-online.target: again to Debian's advantage.
fn podman_unit() -> String {
    format!(
        "[Unit]\nDescription=demo\nConditionKernelCommandLine=!{PREPARE_WORD}\nRequiresMountsFor=%t/containers\n\
         [Service]\nRestart=always\nEnvironment=PODMAN_SYSTEMD_UNIT=%n\nKillMode=mixed\nDelegate=yes\n\
         Type=notify\nNotifyAccess=all\nSyslogIdentifier=%N\n\
         ExecStop=/usr/bin/podman rm -v -f -i --cidfile=%t/%N.cid\n\
         ExecStopPost=-/usr/bin/podman rm -v -f -i --cidfile=%t/%N.cid\n\
         ExecStart=/usr/bin/podman run --name=systemd-%N --cidfile=%t/%N.cid --replace --rm --cgroups=split \
         --sdnotify=conmon -d --publish {PAGE_PORT}:80 {DEMO_NAME}\n\
         [Install]\nWantedBy=multi-user.target\n"
    )
}

fn file(path: &'static str, mode: u32, text: impl Into<String>) -> File {
    File { path, mode, text: text.into() }
}

#[cfg(test)]
mod tests {
    use super::Stack;

    #[test]
    fn every_wanted_unit_is_ours_or_systemds() {
        for stack in Stack::ALL {
            let files = stack.files();
            for unit in stack.wanted().iter().filter(|unit| !unit.starts_with("systemd-")) {
                let path = format!("etc/systemd/system/{unit}");
                assert!(files.iter().any(|file| file.path == path), "{path}");
            }
        }
    }
}
