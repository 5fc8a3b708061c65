//! Several cases on one guest: each has a name and its own verdict; one that fails does not hide the others.

use crate::docker::Docker;
use crate::guest::Guest;
use crate::machine::{BootImage, Machine};
use crate::oci;
use crate::pki::Pki;
use crate::registry::Registry;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;
use std::time::Instant;

/// A guest with all it may need around it: certificates, a registry that holds the probe image, the docker command.
pub struct World {
    /// The guest.
    pub guest: Guest,
    /// The certificates of its API.
    pub pki: Pki,
    /// The registry, stopped with the world.
    pub registry: Registry,
    /// The stock command line.
    pub docker: Docker,
    /// The probe image's reference as the guest names it.
    pub probe: String,
    /// The image behind it.
    pub probe_image: oci::Image,
    _data: tempfile::TempDir,
}

/// What a scenario wants of its machine beyond the usual.
#[derive(Default)]
pub struct Wish {
    /// Units and other tables for the machine file; `{probe}` stands for the probe image's reference.
    pub config: String,
    /// Changes the machine.
    pub machine: Option<Box<dyn FnOnce(Machine) -> Machine>>,
}

impl World {
    /// Boots a machine and waits for its API. `probe` is the path of the probe program.
    pub fn boot(name: &str, probe: &str, wish: Wish) -> Result<Self> {
        let image = BootImage::from_environment()?;
        let pki = Pki::generate()?;
        let data = tempfile::Builder::new().prefix("berth-registry-").tempdir()?;
        let registry = Registry::start(data.path())?;
        let probe_image = oci::probe_image(&fs::read(Path::new(probe)).context("reading the probe")?)?;
        let probe = registry.push("probe:latest", &probe_image)?;
        let config = machine_file(&pki, &registry.guest_name(), &wish.config.replace("{probe}", &probe));
        let machine = Machine::new(name).config(config);
        let machine = match wish.machine {
            Some(change) => change(machine),
            None => machine,
        };
        let mut guest = machine.boot(&image)?;
        let within = guest.within(30);
        guest.connect_api(&pki, within)?;
        let docker = guest.docker(&pki)?;
        Ok(Self { guest, pki, registry, docker, probe, probe_image, _data: data })
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
