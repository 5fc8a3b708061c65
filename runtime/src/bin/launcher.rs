//! `/sbin/launcher`: serves start requests of the agent, as a child of init.
//!
//! Descriptor 3 is the control socket to init, 4 the listening socket (see `berth_control`).

use std::io;
use std::os::fd::BorrowedFd;
use std::process::ExitCode;
use std::time::Duration;

use berth_control::{CONTROL_FD, Channel, LAUNCHER_LISTEN_FD, Name, ToInit};
use berth_runtime::launcher::{Host, serve};
use berth_sys::inherited;

/// How long init may take to make room in its queue. It never blocks, so this only passes when it is in trouble.
const INIT_PATIENCE: Duration = Duration::from_secs(5);

/// init on descriptor 3, the log on standard error.
struct Init(Channel);

impl Host for Init {
    fn register(&mut self, name: &str, pid: i32, pidfd: BorrowedFd<'_>) -> io::Result<()> {
        let name: Name = name.parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let message = ToInit::Register { name, pid, pidfd: pidfd.try_clone_to_owned()? };
        loop {
            match self.0.send_to_init(&message) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !self.0.wait_writable(INIT_PATIENCE)? {
                        return Err(io::Error::from(io::ErrorKind::TimedOut));
                    }
                }
                result => return result,
            }
        }
    }

    fn log(&mut self, line: &str) {
        eprintln!("launcher: {line}");
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = format!("launcher: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                text += &format!(": {cause}");
                source = cause.source();
            }
            eprintln!("{text}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let control = inherited::take(CONTROL_FD)?;
    let listener = inherited::take(LAUNCHER_LISTEN_FD)?;
    // Nothing of this process, nor of a container's set-up, may be read by others; children inherit it up to execve.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    let channel = Channel::from_fd(control);
    channel.set_nonblocking(true)?;
    serve(&listener, &mut Init(channel))?;
    Ok(())
}
