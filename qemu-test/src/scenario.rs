//! Several cases on one guest: each has a name and its own verdict; one that fails does not hide the others.

use crate::disk::Disk;
use crate::docker::Docker;
use crate::guest::Guest;
use crate::machine::{BootImage, Machine};
use crate::pki::Pki;
use crate::registry::Registry;
use crate::{oci, session};
use anyhow::{Context, Result, ensure};
use berth_api::host::Status;
use std::fs;
use std::time::Instant;

/// Names Debian's static busybox; the test command sets it.
const BUSYBOX_VARIABLE: &str = "BERTH_BUSYBOX";

/// What is around guests: certificates, and a registry that holds an image of tools.
pub struct Site {
    /// The certificates of the API.
    pub pki: Pki,
    /// The registry, stopped with the site.
    pub registry: Registry,
    /// The tools image's reference as the guest names it.
    pub image: String,
    /// The image behind it.
    pub tools: oci::Image,
    /// The registry's folder, and a place for disks.
    pub data: tempfile::TempDir,
}

impl Site {
    /// Prepares all of it. `probe` is the path of the probe program.
    pub fn prepare(probe: &str) -> Result<Self> {
        let data = tempfile::Builder::new().prefix("berth-site-").tempdir()?;
        let registry = Registry::start(&data.path().join("registry"))?;
        let busybox =
            std::env::var_os(BUSYBOX_VARIABLE).with_context(|| format!("{BUSYBOX_VARIABLE} is not set"))?;
        let busybox = fs::read(busybox).context("reading busybox")?;
        let tools = oci::tools_image(&busybox, &fs::read(probe).context("reading the probe")?)?;
        let image = registry.push("tools:latest", &tools)?;
        Ok(Self { pki: Pki::generate()?, registry, image, tools, data })
    }

    /// A machine file for this site with further tables; `{image}` in them stands for the tools image.
    pub fn machine_file(&self, more: &str) -> String {
        machine_file(&self.pki, &self.registry.guest_name(), &more.replace("{image}", &self.image))
    }

    /// A blank state disk beside the registry's data.
    pub fn disk(&self, mib: u64) -> Result<Disk> {
        Disk::create_or_open(&self.data.path().join("state.raw"), mib << 20)
    }

    /// Boots a machine and waits for its API.
    pub fn boot(&self, machine: &Machine) -> Result<Guest> {
        let mut guest = machine.boot(&BootImage::from_environment()?)?;
        let within = guest.within(30);
        guest.connect_api(&self.pki, within)?;
        Ok(guest)
    }

    /// Has the agent crash, and waits until the next one has taken containers and their networks over.
    pub fn crash_agent(&self, guest: &mut Guest) -> Result<()> {
        let within = guest.within(30);
        // The connection may have been idle for long.
        guest.connect_api(&self.pki, within)?;
        let mark = guest.console().mark();
        // The answer and the end of the agent may pass each other.
        let _ = guest.post("/host/v1/agent/crash", &serde_json::Value::Null);
        guest.console().wait_for(mark, "agent: api ready on 0.0.0.0", within)?;
        guest.connect_api(&self.pki, within)?;
        guest.until("container networks", within, |guest| {
            let status: Status = guest.get("/host/v1/status")?;
            let ready = status.boot.iter().any(|phase| phase.name == "container networks ready");
            Ok(ready.then_some(()))
        })
    }

    /// The docker command line for a guest of this site.
    pub fn docker(&self, guest: &Guest) -> Result<Docker> {
        guest.docker(&self.pki)
    }

    /// Runs a scripted session; `$IMAGE` and `$REGISTRY` are set.
    pub fn session(&self, guest: &Guest, script: &str) -> Result<()> {
        let mut variables = self.docker(guest)?.variables();
        variables.push(("IMAGE".to_owned(), self.image.clone()));
        variables.push(("REGISTRY".to_owned(), self.registry.guest_name()));
        session::run(script, &variables, self.data.path()).map(drop)
    }
}

/// A machine file with the API's certificates, one insecure registry and further tables.
pub fn machine_file(pki: &Pki, registry: &str, more: &str) -> String {
    format!("version = 1\n[registries]\ninsecure = [\"{registry}\"]\n{}\n{more}\n", pki.machine_table())
}

/// Runs named cases and remembers the verdicts.
#[derive(Default)]
pub struct Cases {
    failed: Vec<String>,
    passed: usize,
}

impl Cases {
    /// Runs one case.
    pub fn case(&mut self, name: &str, run: impl FnOnce() -> Result<()>) {
        let began = Instant::now();
        let verdict = run();
        let took = began.elapsed().as_secs_f64();
        match verdict {
            Ok(()) => {
                self.passed += 1;
                eprintln!("  ok      {name} ({took:.1} s)");
            }
            Err(error) => {
                eprintln!("  FAILED  {name} ({took:.1} s): {error:#}");
                self.failed.push(format!("{name}: {error:#}"));
            }
        }
    }

    /// Ends the scenario: an error that lists the failed cases, or the guest's artifacts go.
    pub fn finish(self, guest: &mut Guest) -> Result<()> {
        let all = self.failed.len() + self.passed;
        ensure!(
            self.failed.is_empty(),
            "{} of {all} cases failed:\n{}",
            self.failed.len(),
            self.failed.join("\n")
        );
        guest.passed();
        Ok(())
    }
}
