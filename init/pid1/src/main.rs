//! PID 1 of Berth: see docs/pid1.md.
//!
//! One program in several roles, told by its first argument: none (the kernel starts it: stage 1), `stage2` (on the
//! root image), `again` (after a panic), `load` (a child that loads modules).

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::exit
    )
)]

mod backoff;
mod cgroups;
mod children;
mod console;
mod disks;
mod fdstore;
mod input;
mod kmsg;
mod ledger;
mod loopdev;
mod modules;
mod mounts;
mod outbox;
mod rescue;
mod root;
mod run;
mod service;
mod settings;
mod shutdown;
mod signals;
mod stage2;
mod timeline;
mod uevent;
mod watchdog;

use std::ffi::CStr;
use std::process::ExitCode;

fn main() -> ExitCode {
    rescue::install();
    let arguments: Vec<String> =
        std::env::args_os().skip(1).filter_map(|argument| argument.into_string().ok()).collect();
    let role = arguments.first().map(String::as_str);
    if !rustix::process::getpid().is_init() {
        kmsg::open();
        if role == Some("load") {
            return children::load(arguments.get(1..).unwrap_or_default());
        }
        eprintln!("init is started by the kernel");
        return ExitCode::FAILURE;
    }
    let _ = rustix::process::umask(rustix::fs::Mode::empty());
    let _ = rustix::process::chdir("/");
    match role {
        Some("stage2") => stage2::run(),
        Some("again") => rescue::again(arguments.get(1).map(String::as_str)),
        // The kernel passes on what it does not know of its command line.
        _ => root::stage1(),
    }
    rescue::reap_forever()
}

/// Becomes init in another role; comes back only with an error.
fn execute(arguments: &[&CStr]) -> std::io::Error {
    let path = if std::path::Path::new("/sbin/init").exists() { c"/sbin/init" } else { c"/init" };
    match nix::unistd::execve(path, arguments, &[c"PATH=/sbin:/bin"]) {
        Ok(never) => match never {},
        Err(error) => error.into(),
    }
}
