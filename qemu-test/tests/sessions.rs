//! The stock docker command line, session by session, each on a fresh machine.

use anyhow::Result;
use qemu_test::Machine;
use qemu_test::scenario::Site;

const PROBE: &str = env!("CARGO_BIN_EXE_probe");

fn session(name: &str, script: &str) -> Result<()> {
    let site = Site::prepare(PROBE)?;
    let machine = Machine::new(&format!("session-{name}")).config(site.machine_file(""));
    let mut guest = site.boot(&machine)?;
    site.docker(&guest)?.ok(&["pull", "-q", &site.image])?;
    site.session(&guest, script)?;
    guest.passed();
    Ok(())
}

#[test]
#[ignore = "boots a machine: cargo berth test"]
fn compose() -> Result<()> {
    session("compose", include_str!("sessions/compose.txt"))
}

#[test]
#[ignore = "boots a machine: cargo berth test"]
fn containers() -> Result<()> {
    session("containers", include_str!("sessions/containers.txt"))
}

#[test]
#[ignore = "boots a machine: cargo berth test"]
fn networks() -> Result<()> {
    session("networks", include_str!("sessions/networks.txt"))
}

#[test]
#[ignore = "boots a machine: cargo berth test"]
fn images() -> Result<()> {
    session("images", include_str!("sessions/images.txt"))
}

#[test]
#[ignore = "boots a machine: cargo berth test"]
fn system() -> Result<()> {
    session("system", include_str!("sessions/system.txt"))
}
