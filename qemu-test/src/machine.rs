//! Describes a guest and starts it: `Machine` is what is wanted, [`Guest`] what runs.

use crate::accel::{self, Accel, Choice};
use crate::artifacts::Artifacts;
use crate::disk::Disk;
use crate::guest::{Guest, Started};
use crate::ports;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The API's port inside the guest.
pub const API_PORT: u16 = 2376;

/// Where the image's files are, for test processes.
pub const IMAGE_VARIABLE: &str = "BERTH_IMAGE_DIR";

/// Forwarded ports can be taken by others between choosing and QEMU's start; how often to choose again.
const START_TRIES: usize = 3;

/// Quiet until init runs; then everything, so that what init and the agent say is on the console. The crypto
/// self-tests cost more than all the rest of the boot. Lines have time stamps whatever the kernel's default.
const COMMAND_LINE: &str = "console=ttyS0 quiet sysctl.kernel.printk=7 cryptomgr.notests printk.time=1";

/// Kernel and initramfs.
#[derive(Debug, Clone)]
pub struct BootImage {
    /// Bootable kernel: compressed, or an ELF file with a PVH note.
    pub kernel: PathBuf,
    /// Initramfs with the root image inside.
    pub initramfs: PathBuf,
}

impl BootImage {
    /// The kernel and `initramfs.cpio` of a folder. Of a kernel that is there both ways the ELF file is taken:
    /// QEMU starts it at once, where translated code needs about a second to unpack `vmlinuz`.
    pub fn in_folder(folder: &Path) -> Result<Self> {
        let (elf, compressed) = (folder.join("vmlinux"), folder.join("vmlinuz"));
        let kernel = if elf.is_file() { elf } else { compressed };
        let image = Self { kernel, initramfs: folder.join("initramfs.cpio") };
        for file in [&image.kernel, &image.initramfs] {
            if !file.is_file() {
                bail!("{} is not there; cargo berth image makes it", file.display());
            }
        }
        Ok(image)
    }

    /// The image that the test command built.
    pub fn from_environment() -> Result<Self> {
        let folder = std::env::var_os(IMAGE_VARIABLE)
            .with_context(|| format!("{IMAGE_VARIABLE} is not set; run cargo berth test"))?;
        Self::in_folder(Path::new(&folder))
    }

    /// Cases keep their folders beside the image: `target/qemu-test`.
    pub fn artifacts_base(&self) -> PathBuf {
        let output = self.kernel.parent().and_then(Path::parent).unwrap_or(Path::new("target"));
        output.join("qemu-test")
    }
}

/// One end of a cable between two guests.
#[derive(Debug, Clone)]
pub struct Cable {
    /// Socket of this end.
    pub own: PathBuf,
    /// Socket of the other end; what is sent before it is there is lost, as on a cable.
    pub other: PathBuf,
    /// Ethernet address of the card.
    pub mac: String,
}

/// A guest to be started.
#[derive(Debug, Clone)]
pub struct Machine {
    pub(crate) name: String,
    memory_mib: u32,
    cpus: u32,
    accel: Choice,
    config: Option<String>,
    disk: Option<Disk>,
    network: bool,
    forwards: Vec<u16>,
    fixed: BTreeMap<u16, u16>,
    cable: Option<Cable>,
    command_line: Vec<String>,
    echo: bool,
    counted: bool,
}

impl Machine {
    /// 512 MiB, two processors, a network, no disk, no machine file. The name is the artifacts' folder.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            memory_mib: 512,
            cpus: 2,
            accel: Choice::Auto,
            config: None,
            disk: None,
            network: true,
            forwards: vec![API_PORT],
            fixed: BTreeMap::new(),
            cable: None,
            command_line: Vec::new(),
            echo: false,
            counted: false,
        }
    }

    /// Memory in MiB.
    #[must_use]
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// Virtual processors.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// KVM, TCG or what works.
    #[must_use]
    pub fn accel(mut self, choice: Choice) -> Self {
        self.accel = choice;
        self
    }

    /// The machine file, handed over by fw_cfg.
    #[must_use]
    pub fn config(mut self, toml: impl Into<String>) -> Self {
        self.config = Some(toml.into());
        self
    }

    /// A state disk.
    #[must_use]
    pub fn disk(mut self, disk: Disk) -> Self {
        self.disk = Some(disk);
        self
    }

    /// No network card at all.
    #[must_use]
    pub fn without_network(mut self) -> Self {
        self.network = false;
        self.forwards.clear();
        self
    }

    /// Makes a guest's TCP port reachable on a free loopback port here.
    #[must_use]
    pub fn forward(mut self, guest_port: u16) -> Self {
        self.forwards.push(guest_port);
        self
    }

    /// Makes a guest's TCP port reachable on this loopback port here.
    #[must_use]
    pub fn forward_from(mut self, host_port: u16, guest_port: u16) -> Self {
        self.fixed.insert(guest_port, host_port);
        self
    }

    /// A second network card at one end of a cable.
    #[must_use]
    pub fn cable(mut self, end: Cable) -> Self {
        self.cable = Some(end);
        self
    }

    /// Adds to the kernel's command line.
    #[must_use]
    pub fn command_line(mut self, words: &str) -> Self {
        self.command_line.push(words.to_owned());
        self
    }

    /// Shows the console on this process's output too.
    #[must_use]
    pub fn echo_console(mut self, echo: bool) -> Self {
        self.echo = echo;
        self
    }

    /// Runs one instruction per nanosecond of guest time, so that time stamps count instructions: the same on any
    /// machine at any load. One processor, TCG.
    #[must_use]
    pub fn count_instructions(mut self) -> Self {
        self.counted = true;
        self.cpus = 1;
        self.accel = Choice::Only(Accel::Tcg);
        self
    }

    /// Starts QEMU. The guest is killed when what is returned is dropped.
    pub fn boot(&self, image: &BootImage) -> Result<Guest> {
        let artifacts = Artifacts::create(&image.artifacts_base(), &self.name)?;
        self.boot_in(image, artifacts)
    }

    /// As [`Machine::boot`], with a folder for the artifacts.
    pub fn boot_in(&self, image: &BootImage, artifacts: Artifacts) -> Result<Guest> {
        let accel = accel::choose(self.accel, &image.kernel)?;
        if let Some(config) = &self.config {
            artifacts.write("machine.toml", config)?;
        }
        let sockets =
            tempfile::Builder::new().prefix("berth-qmp-").tempdir().context("making a folder for QMP")?;
        for _ in 1..START_TRIES {
            match self.start(image, accel, &artifacts, sockets.path()) {
                Ok(started) => return Guest::new(started, artifacts, sockets, accel),
                Err(error)
                    if format!("{error:#}").contains("host forwarding rule") && self.fixed.is_empty() => {}
                Err(error) => return Err(error),
            }
        }
        let started = self.start(image, accel, &artifacts, sockets.path())?;
        Guest::new(started, artifacts, sockets, accel)
    }

    fn start(
        &self,
        image: &BootImage,
        accel: Accel,
        artifacts: &Artifacts,
        sockets: &Path,
    ) -> Result<Started> {
        let free = ports::free(self.forwards.len())?;
        let mut forwards: BTreeMap<u16, u16> = self.forwards.iter().copied().zip(free).collect();
        forwards.extend(&self.fixed);
        let mut command = self.command(image, accel, &forwards, &sockets.join("qmp"));
        if self.config.is_some() {
            let file = artifacts.path("machine.toml");
            command
                .arg("-fw_cfg")
                .arg(format!("name=opt/org.berth/machine.toml,file={}", comma_safe(&file)?));
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(std::fs::File::create(artifacts.path("qemu.log"))?);
        Started::spawn(command, forwards, &sockets.join("qmp"), artifacts, self.echo)
    }

    fn command(&self, image: &BootImage, accel: Accel, forwards: &BTreeMap<u16, u16>, qmp: &Path) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        let cpu = if accel == Accel::Kvm { "host" } else { "max,la57=off" };
        // The chipset's SATA controller has no disk here; a kernel that drives it would wait for links to come up.
        command.args(["-machine", &format!("q35,accel={},sata=off", accel.name()), "-cpu", cpu]);
        command.args(["-smp", &self.cpus.to_string(), "-m", &self.memory_mib.to_string()]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"]);
        command.args(["-rtc", "base=utc", "-device", "virtio-rng-pci", "-device", "virtio-balloon-pci"]);
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", qmp.display()));
        command.arg("-kernel").arg(&image.kernel).arg("-initrd").arg(&image.initramfs);
        command.arg("-append").arg([&[COMMAND_LINE.to_owned()], &self.command_line[..]].concat().join(" "));
        if self.counted {
            command.args(["-icount", "shift=0"]);
        }
        if self.network {
            let rule = |(guest, host)| format!("hostfwd=tcp:127.0.0.1:{host}-:{guest}");
            let options: Vec<String> =
                ["user,id=net0".to_owned()].into_iter().chain(forwards.iter().map(rule)).collect();
            // No option ROM: it would only slow the firmware down.
            command.args(["-netdev", &options.join(","), "-device", "virtio-net-pci,netdev=net0,romfile="]);
        }
        if let Some(Cable { own, other, mac }) = &self.cable {
            let end = |side: &str, path: &Path| {
                let path = path.display().to_string().replace(',', ",,");
                format!("{side}.type=unix,{side}.path={path}")
            };
            let ends = format!("dgram,id=net1,{},{}", end("local", own), end("remote", other));
            command.args(["-netdev", &ends]);
            command.args(["-device", &format!("virtio-net-pci,netdev=net1,mac={mac},romfile=")]);
        }
        if let Some(disk) = &self.disk {
            let path = disk.path.display().to_string().replace(',', ",,");
            command
                .arg("-drive")
                .arg(format!("if=none,id=state,format=raw,cache=writeback,discard=unmap,file={path}"));
            command.args(["-device", "virtio-blk-pci,drive=state,serial=berth-state"]);
        }
        command
    }
}

/// QEMU doubles commas inside option values; fw_cfg's file option does not undo it.
fn comma_safe(path: &Path) -> Result<String> {
    let text = path.display().to_string();
    if text.contains(',') {
        bail!("{text} has a comma in it, which QEMU cannot take here");
    }
    Ok(text)
}
