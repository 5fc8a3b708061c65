//! Stage 2: on the root image, everything up to the event loop, as a list of named steps.
//!
//! No step can stop the boot: each logs what it could not do, and the API that comes up afterwards tells the rest.

use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::children::BootLoader;
use crate::kmsg::{note, warn};
use crate::{cgroups, children, console, disks, kmsg, mounts, run, settings, timeline};

/// Devices that take longer than this come late; the agent starts without them.
const DEVICES_LIMIT: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// Runs stage 2; comes back only when there is no event loop to be had.
pub(crate) fn run() {
    kmsg::open();
    console::repair();
    timeline::mark("stage2");
    note!("stage2 on {}", os_name());
    // A session of its own; PID 1 may have one already.
    let _ = rustix::process::setsid();
    // Before devices are looked for, so that none is missed.
    let uevents = run::open_uevents();
    // In parallel to the rest, and before there are descriptors a child could hold.
    let loader = children::boot_loader().unwrap_or_else(|error| {
        warn!("no modules are loaded: {error}, continuing");
        None
    });
    mounts::after_root();
    cgroups::set_up();
    settings::apply();
    timeline::mark("mounts");
    disks::mount_state();
    settings::identity();
    if let Some(loader) = &loader {
        wait_for_devices(loader);
        // Their drivers are loaded by now; only what comes later is news.
        if let Some(uevents) = &uevents {
            while let Ok(Some(_)) = uevents.next() {}
        }
    }
    timeline::mark("services");
    run::run(Some(run::Booted { uevents, loader: loader.map(|loader| loader.child.pid) }));
}

fn wait_for_devices(loader: &BootLoader) {
    // Nothing is ever written: the pipe hangs up.
    match poll(&mut [PollFd::new(&loader.early_done, PollFlags::empty())], Some(&DEVICES_LIMIT)) {
        Ok(0) => {
            let limit = Duration::from_secs(10);
            warn!("devices are not ready after {} s, continuing", limit.as_secs());
        }
        Ok(_) => {}
        Err(error) => warn!("devices are not waited for: {error}, continuing"),
    }
}

/// `PRETTY_NAME` of os-release.
fn os_name() -> String {
    let text = std::fs::read_to_string("/etc/berth/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Berth".to_owned(), |name| name.trim_matches('"').to_owned())
}
