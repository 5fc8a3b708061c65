//! Work that may take long or hang, done in children: loading modules, syncing, the last system call.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;

use berth_sys::clone::{self, Child, SingleThreaded};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::kmsg::{note, warn};
use crate::modules::{self, Loader};
use crate::{settings, timeline};

/// Loaded before the agent starts.
const EARLY: &str = "/etc/berth/modules";
/// Loaded while the agent starts.
const LATE: &str = "/etc/berth/modules.late";
/// Stands for every device among the aliases a loader is given.
const EVERYTHING: &CStr = c"--all";
/// How much the late modules give way on a machine with one processor.
const LATE_NICE: i32 = 15;
/// Tells the agent that every module is there.
const READY: &str = "/run/berth/modules-ready";

/// Runs `work` in a child.
pub(crate) fn run(work: impl FnOnce() -> i32) -> io::Result<Child> {
    clone::spawn(SingleThreaded::check()?, clone::Options::default(), work)
}

/// The boot's module loader, and a pipe that hangs up when devices and early modules are done.
pub(crate) struct BootLoader {
    pub(crate) child: Child,
    pub(crate) early_done: OwnedFd,
}

/// Starts loading everything. The late modules go on after `early_done` hangs up. `None` when the kernel has
/// everything built in: then nothing is ever loaded, and nothing needs to be waited for.
pub(crate) fn boot_loader() -> io::Result<Option<BootLoader>> {
    if !modules::are_there() {
        lock_door();
        report_ready();
        return Ok(None);
    }
    let (early_done, working) = pipe_with(PipeFlags::CLOEXEC)?;
    let child = run(move || {
        let mut loader = Loader::open();
        loader.load_list(Path::new(EARLY));
        loader.coldplug();
        timeline::mark("modules-early");
        drop(working);
        // From here on the agent's start goes first.
        if let Err(error) = rustix::process::nice(LATE_NICE) {
            warn!("late modules load at full speed: {error}, continuing");
        }
        loader.load_list(Path::new(LATE));
        close_door();
        note!("{} modules loaded", loader.loaded);
        timeline::mark("modules-ready");
        i32::from(!report_ready())
    })?;
    Ok(Some(BootLoader { child, early_done }))
}

fn report_ready() -> bool {
    std::fs::write(READY, "").inspect_err(|error| warn!("{READY} is not made: {error}, continuing")).is_ok()
}

/// Starts a loader for what devices that came later ask for. It is a program of its own, so that it holds none of
/// init's descriptors.
pub(crate) fn hotplug_loader(aliases: &[String], everything: bool) -> io::Result<Child> {
    let aliases: Vec<CString> =
        aliases.iter().filter_map(|alias| CString::new(alias.as_str()).ok()).collect();
    let mut arguments = vec![c"init", c"load"];
    if everything {
        arguments.push(EVERYTHING);
    }
    arguments.extend(aliases.iter().map(CString::as_c_str));
    run(|| {
        let _ = berth_sys::signals::reset();
        let error = crate::execute(&arguments);
        warn!("no loader: {error}, continuing");
        1
    })
}

/// The loader that [`hotplug_loader`] starts.
pub(crate) fn load(aliases: &[String]) -> ExitCode {
    let mut loader = Loader::open();
    for alias in aliases {
        if alias.as_bytes() == EVERYTHING.to_bytes() {
            loader.coldplug();
        } else {
            loader.load(alias);
        }
    }
    if loader.loaded > 0 {
        note!("{} modules loaded for new devices", loader.loaded);
    }
    ExitCode::SUCCESS
}

/// From now on the kernel asks nobody for modules: a container could otherwise have obscure protocols loaded.
fn close_door() {
    if let Err(error) = settings::sysctl("kernel/modprobe", "\n") {
        warn!("the kernel's own module loading stays on: {error}, continuing");
    }
}

/// Until the next boot nobody loads a module, root with all capabilities included.
fn lock_door() {
    if let Err(error) = settings::sysctl("kernel/modules_disabled", "1") {
        warn!("modules can still be loaded: {error}, continuing");
    }
}
