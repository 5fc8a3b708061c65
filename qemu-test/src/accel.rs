//! Chooses between KVM and TCG by what really runs.
//!
//! On some machines `/dev/kvm` opens, creates a machine and runs real-mode code, and then hangs as soon as a kernel
//! enters protected mode. So the probe boots the real kernel until its first console line, under a deadline.

use anyhow::{Context, Result, bail};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// How the guest's instructions run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// On the processor.
    Kvm,
    /// Translated by QEMU.
    Tcg,
}

/// What the caller asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// KVM where it works, else TCG.
    Auto,
    /// This one, or an error.
    Only(Accel),
}

/// KVM needs well under a second to the kernel's first line; a loaded machine may need a few.
const PROBE_DEADLINE: Duration = Duration::from_secs(6);

/// Overrides [`Choice::Auto`], so that many test processes probe once.
const VARIABLE: &str = "BERTH_ACCEL";

impl Accel {
    /// QEMU's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    /// How much longer than KVM a step may take, for deadlines.
    pub fn patience(self) -> u32 {
        match self {
            Self::Kvm => 1,
            Self::Tcg => 4,
        }
    }
}

impl std::str::FromStr for Choice {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Only(Accel::Kvm)),
            "tcg" => Ok(Self::Only(Accel::Tcg)),
            _ => bail!("{text} is none of auto, kvm, tcg"),
        }
    }
}

/// Decides, running the probe when the choice is open. The answer is remembered until the machine reboots.
pub fn choose(choice: Choice, kernel: &Path) -> Result<Accel> {
    if let Choice::Only(accel) = choice {
        if accel == Accel::Kvm && !kvm_runs(kernel)? {
            bail!("KVM does not run a guest on this machine; use --accel tcg");
        }
        return Ok(accel);
    }
    match std::env::var(VARIABLE).as_deref() {
        Ok("kvm") => return Ok(Accel::Kvm),
        Ok("tcg") => return Ok(Accel::Tcg),
        _ => {}
    }
    let memory = kernel.with_file_name("accel");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let remembered = fs::read_to_string(&memory).unwrap_or_default();
    match remembered.strip_prefix(boot.trim()) {
        Some(" kvm") => return Ok(Accel::Kvm),
        Some(" tcg") => return Ok(Accel::Tcg),
        _ => {}
    }
    let accel = if kvm_runs(kernel)? { Accel::Kvm } else { Accel::Tcg };
    // Only a memory: a probe that cannot be remembered is made again.
    let _ = fs::write(&memory, format!("{} {}", boot.trim(), accel.name()));
    Ok(accel)
}

/// True when a kernel under KVM reaches its first console line before the deadline.
fn kvm_runs(kernel: &Path) -> Result<bool> {
    if !Path::new("/dev/kvm").exists() {
        return Ok(false);
    }
    let mut child = Command::new("qemu-system-x86_64")
        .args(["-machine", "q35,accel=kvm", "-cpu", "host", "-m", "256", "-nodefaults", "-no-user-config"])
        .args([
            "-display",
            "none",
            "-no-reboot",
            "-serial",
            "stdio",
            "-append",
            "console=ttyS0 earlyprintk=ttyS0 panic=-1",
        ])
        .arg("-kernel")
        .arg(kernel)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("starting qemu-system-x86_64")?;
    let runs = speaks(&mut child);
    child.kill().context("ending the KVM probe")?;
    child.wait().context("ending the KVM probe")?;
    Ok(runs)
}

fn speaks(child: &mut Child) -> bool {
    let Some(console) = child.stdout.take() else { return false };
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let spoke = BufReader::new(console)
            .split(b'\n')
            .map_while(Result::ok)
            .any(|line| contains(&line, b"Linux version"));
        // Nobody listens any more once the deadline has passed.
        let _ = sender.send(spoke);
    });
    receiver.recv_timeout(PROBE_DEADLINE).unwrap_or(false)
}

fn contains(line: &[u8], needle: &[u8]) -> bool {
    line.windows(needle.len()).any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::{Accel, Choice};

    #[test]
    fn choices_are_read_as_the_option_names_them() {
        let read = |text: &str| text.parse::<Choice>().ok();
        assert_eq!(read("auto"), Some(Choice::Auto));
        assert_eq!(read("kvm"), Some(Choice::Only(Accel::Kvm)));
        assert_eq!(read("tcg"), Some(Choice::Only(Accel::Tcg)));
        assert_eq!(read("KVM"), None);
    }
}
