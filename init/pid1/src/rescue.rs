//! What keeps PID 1 going when its own code fails: a panic becomes a fresh start of the event loop.
//!
//! Containers run on; the ledger and the stored descriptors are lost, the agent and the launcher are started anew.
//! After [`RESTARTS_MAX`] such starts init only reaps, which keeps the containers alive until somebody reboots.

use std::ffi::CStr;
use std::io;

use crate::kmsg::{error, warn};
use crate::{cgroups, kmsg, run};

/// Panics survived with services; a loop of panics shall not starve the machine.
const RESTARTS_MAX: usize = 3;
const COUNTS: [&CStr; RESTARTS_MAX] = [c"1", c"2", c"3"];

/// How often init has started again, as told by the command line of this process.
fn restarts() -> usize {
    let mut arguments = std::env::args_os().skip(1);
    match (arguments.next(), arguments.next().and_then(|count| count.into_string().ok())) {
        (Some(role), Some(count)) if role == "again" => count.parse().unwrap_or(RESTARTS_MAX),
        _ => 0,
    }
}

/// Makes a panic of PID 1 a fresh start. In a child it is the child's end, as usual.
pub(crate) fn install() {
    std::panic::set_hook(Box::new(|info| {
        error!("panic: {info}");
        if rustix::process::getpid().is_init() {
            if let Some(count) = COUNTS.get(restarts()) {
                let error = crate::execute(&[c"init", c"again", count]);
                error!("init does not start again: {error}");
            }
            reap_forever();
        }
    }));
}

/// The event loop after a panic.
pub(crate) fn again(count: Option<&str>) {
    kmsg::open();
    warn!(
        "started again after a panic ({}): exits and descriptors kept before are lost",
        count.unwrap_or("?")
    );
    // They talk to the old init's sockets.
    for name in ["agent", "launcher"] {
        if let Err(error) = cgroups::kill(name) {
            warn!("the old {name} is not killed: {error}, continuing");
        }
    }
    run::run(None);
}

/// Reaps, and nothing else, for ever.
pub(crate) fn reap_forever() -> ! {
    error!("only reaping from now on");
    // Signals must not be blocked by a descriptor nobody reads: waiting needs none.
    loop {
        match rustix::process::wait(rustix::process::WaitOptions::empty()) {
            Ok(_) => {}
            // No children: whoever is left is in the kernel. A pause that ends by any signal.
            Err(rustix::io::Errno::CHILD) => pause(),
            Err(error) => {
                let _: io::Error = error.into();
                pause();
            }
        }
    }
}

fn pause() {
    std::thread::park_timeout(std::time::Duration::from_secs(1));
}
