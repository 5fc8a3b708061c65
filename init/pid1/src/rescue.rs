//! What keeps PID 1 going when its own code fails.
//!
//! A panic in the event loop unwinds to the loop's caller, which enters it again: exits, descriptors and services are
//! all still there. When that keeps happening the program is executed afresh. Then nobody could tell how the
//! containers end, so they are killed with the services, and the agent starts them as after a boot.
//! After [`RESTARTS_MAX`] such starts init only reaps: containers stay alive until somebody reboots, or the watchdog,
//! which nobody feeds then, resets the machine.

use std::ffi::CStr;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::kmsg::{error, warn};
use crate::{cgroups, kmsg, run};

/// Panics of the event loop survived with everything in place, before the program is executed afresh.
const PANICS_MAX: usize = 5;
/// A loop that ran this long had recovered.
const FORGOTTEN: Duration = Duration::from_secs(600);
/// Fresh starts survived; a loop of panics shall not starve the machine.
const RESTARTS_MAX: usize = 3;
/// Whether a panic of PID 1 is caught by [`keep_running`].
static CATCHING: AtomicBool = AtomicBool::new(false);
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
        if rustix::process::getpid().is_init() && !CATCHING.load(Ordering::Relaxed) {
            execute_afresh();
            reap_forever();
        }
    }));
}

/// Runs the event loop and enters it again after a panic.
pub(crate) fn keep_running(mut body: impl FnMut()) {
    let mut panics = 0_usize;
    while panics < PANICS_MAX {
        let entered = Instant::now();
        CATCHING.store(true, Ordering::Relaxed);
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(&mut body));
        CATCHING.store(false, Ordering::Relaxed);
        if outcome.is_ok() {
            return;
        }
        if entered.elapsed() > FORGOTTEN {
            panics = 0;
        }
        panics = panics.saturating_add(1);
        warn!("the event loop panicked, {panics} of {PANICS_MAX} times, continuing");
    }
    execute_afresh();
}

fn execute_afresh() {
    if let Some(count) = COUNTS.get(restarts()) {
        let error = crate::execute(&[c"init", c"again", count]);
        error!("init does not start again: {error}");
    }
}

/// The event loop after the program was executed afresh.
pub(crate) fn again(count: Option<&str>) {
    kmsg::open();
    warn!(
        "executed afresh after panics ({}): what was kept is lost, containers start again",
        count.unwrap_or("?")
    );
    // The services talk to the old init's sockets.
    for name in ["agent", "launcher", cgroups::CONTAINERS] {
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
    std::thread::park_timeout(Duration::from_secs(1));
}
