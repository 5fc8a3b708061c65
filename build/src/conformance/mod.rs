//! The validation suite of opencontainers/runtime-tools, run against OCI runtimes in a lab machine.
//!
//! [`suite`] builds its programs with Debian's Go, [`verdict`] reads what they print and knows which of them cannot
//! pass on control groups of version 2.

mod suite;
mod verdict;

pub(crate) use suite::build;
pub(crate) use verdict::{Outcome, Verdict, count, read};

use crate::debian;
use crate::lab::Lab;
use crate::paths::Paths;
use crate::progress::Step;
use anyhow::Result;
use std::fmt::Write as _;
use std::path::Path;

/// A runtime under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Runtime {
    /// This project's command line.
    Berth,
    /// Debian's package.
    Crun,
    /// Debian's package.
    Runc,
}

/// Shared libraries that Debian's crun and runc need.
pub(crate) const LIBRARIES: &[&str] = &[
    "libc6",
    "libsystemd0",
    "libseccomp2",
    "libcap2",
    "libyajl2",
    "libgcrypt20",
    "libgpg-error0",
    "liblzma5",
    "libzstd1",
    "liblz4-1",
];

impl Runtime {
    /// In the order they are reported.
    pub(crate) const ALL: [Self; 3] = [Self::Berth, Self::Crun, Self::Runc];

    /// The program's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Berth => "berth-runtime",
            Self::Crun => "crun",
            Self::Runc => "runc",
        }
    }

    /// Puts the program into the lab as `usr/bin/NAME`; gives its version.
    pub(crate) fn install(self, lab: &mut Lab, paths: &Paths, step: &Step) -> Result<String> {
        let place = format!("usr/bin/{}", self.name());
        let (package, program) = match self {
            Self::Berth => {
                lab.file(&paths.binaries.join("berth-runtime"), &place)?;
                return Ok(env!("CARGO_PKG_VERSION").to_owned());
            }
            Self::Crun => ("crun", "usr/bin/crun"),
            Self::Runc => ("runc", "usr/sbin/runc"),
        };
        let unpacked = debian::unpack(package, paths, step)?;
        lab.file(&unpacked.root.join(program), &place)?;
        Ok(unpacked.version)
    }
}

/// Debian's crun refuses bundles of a version it does not know yet. The suite writes 1.3.0 and asks for nothing that
/// is new in it, so for crun the number is changed on the way.
const OLDER_VERSION: &str = r#"#!/bin/sh
bundle=.
previous=
for word in "$@"; do
  [ "$previous" = --bundle ] && bundle=$word
  previous=$word
done
[ "$1" = create ] && sed -i 's/"ociVersion": *"1\.3\.0"/"ociVersion":"1.0.2"/' $bundle/config.json
exec /usr/bin/crun "$@"
"#;

/// Longest run of one program; unit: seconds. Most wait for a container that they stop themselves.
const PROGRAM_SECONDS: u32 = 120;

/// Puts the suite into the lab and gives the script that runs it against each runtime.
pub(crate) fn furnish(
    lab: &mut Lab,
    suite: &Path,
    programs: &[String],
    runtimes: &[Runtime],
) -> Result<String> {
    lab.text("shim/crun", 0o755, OLDER_VERSION);
    for name in programs.iter().map(String::as_str).chain(["runtimetest", suite::ROOTFS]) {
        lab.file(&suite.join(name), &format!("suite/{name}"))?;
    }
    let mut script = String::from("cd /suite\n");
    for runtime in runtimes {
        let command = match runtime {
            Runtime::Crun => "/shim/crun",
            Runtime::Berth => "/usr/bin/berth-runtime",
            Runtime::Runc => "/usr/bin/runc",
        };
        for program in programs {
            let name = runtime.name();
            writeln!(script, "echo '{} {name} {program}'", verdict::BEGIN)?;
            writeln!(script, "RUNTIME={command} timeout -k 5 {PROGRAM_SECONDS} ./{program} </dev/null 2>&1")?;
            writeln!(script, "code=$?; echo; echo \"{} {name} {program} $code\"", verdict::END)?;
        }
    }
    script.push_str("true\n");
    Ok(script)
}
