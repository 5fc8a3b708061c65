//! From power on to power off: what the machine keeps, what it says about a bad machine file, what it can do without.

use anyhow::{Context, Result, ensure};
use berth_api::host::Status;
use qemu_test::scenario::{Cases, Site};
use qemu_test::{BootImage, Machine, http};
use std::time::Duration;

const PROBE: &str = env!("CARGO_BIN_EXE_probe");

/// A unit that serves a page on port 8080 of the machine.
const WEB: &str = "[[container]]\nname = \"web\"\nimage = \"{image}\"\ncommand = [\"/probe\", \"http\", \"80\"]\n\
                   ports = [\"8080:80\"]\n";

#[test]
#[ignore = "boots a machine: cargo berth test"]
fn state_survives_an_orderly_shutdown_and_a_power_cut() -> Result<()> {
    let site = Site::prepare(PROBE)?;
    let disk = site.disk(2048)?;
    let machine = Machine::new("boot-state").config(site.machine_file("")).disk(disk.clone());
    let mut cases = Cases::default();

    let mut guest = site.boot(&machine)?;
    let docker = site.docker(&guest)?;
    cases.case("a volume is written on the first boot", || {
        docker.ok(&[
            "run",
            "--name",
            "writer",
            "-v",
            "data:/data",
            &site.image,
            "/probe",
            "write",
            "/data/file",
            "kept",
        ])?;
        Ok(())
    });
    let off = guest.within(30);
    cases.case("the power button powers the machine off", || guest.power_down(off));
    cases.case("its file system is clean then", || disk.check_clean());
    cases.finish(&mut guest)?;
    drop(guest);

    let mut cases = Cases::default();
    let mut guest = site.boot(&machine)?;
    let docker = site.docker(&guest)?;
    cases.case("image, container and volume are there on the second boot", || {
        ensure!(docker.ok(&["ps", "-a", "--format", "{{.Names}} {{.State}}"])? == "writer exited");
        let text =
            docker.ok(&["run", "--rm", "-v", "data:/data", &site.image, "/probe", "cat", "/data/file"])?;
        ensure!(text == "kept", "{text}");
        Ok(())
    });
    cases.case("what was acknowledged before a power cut is there after it", || {
        docker.ok(&[
            "run",
            "-d",
            "--name",
            "steady",
            "--restart",
            "always",
            &site.image,
            "/probe",
            "sleep",
            "100000",
        ])?;
        guest.kill()
    });
    cases.finish(&mut guest)?;
    drop(guest);

    let mut cases = Cases::default();
    let mut guest = site.boot(&machine)?;
    let docker = site.docker(&guest)?;
    let within = guest.within(20);
    cases.case("a container with restart=always runs again after a power cut", || {
        guest.until("steady running", within, |_| {
            let state = docker.ok(&["inspect", "-f", "{{.State.Status}}", "steady"])?;
            Ok((state == "running").then_some(()))
        })
    });
    cases.case("the machine reboots by its own API", || {
        guest.post("/host/v1/reboot", &serde_json::Value::Null)?;
        let mark = guest.console().mark();
        guest.console().wait_for(mark, "agent: api ready", within * 3)?;
        Ok(())
    });
    cases.case("and powers off by it", || {
        guest.connect_api(&site.pki, within)?;
        guest.post("/host/v1/poweroff", &serde_json::Value::Null)?;
        guest.wait_off(within * 2)
    });
    cases.finish(&mut guest)
}

#[test]
#[ignore = "boots a machine: cargo berth test"]
fn a_unit_is_served_with_256_mib_and_no_disk() -> Result<()> {
    let site = Site::prepare(PROBE)?;
    let machine = Machine::new("boot-small").memory_mib(256).config(site.machine_file(WEB)).forward(8080);
    let mut guest = site.boot(&machine)?;
    let (page, within) = (guest.address(8080)?, guest.within(30));
    let mut cases = Cases::default();
    cases.case("the unit's page answers", || {
        let text = guest.until("the page", within, |_| Ok(Some(http::get(page, "/")?.text())))?;
        ensure!(text.contains("request GET /"), "{text}");
        Ok(())
    });
    cases.case("init and agent stay within their memory", || {
        let status: Status = guest.get("/host/v1/status")?;
        ensure!(
            status.init_rss_bytes > 0 && status.init_rss_bytes < 2_000_000,
            "init: {}",
            status.init_rss_bytes
        );
        ensure!(
            status.agent_rss_bytes > 0 && status.agent_rss_bytes < 24_000_000,
            "agent: {}",
            status.agent_rss_bytes
        );
        ensure!(status.config_errors.is_empty(), "{:?}", status.config_errors);
        Ok(())
    });
    cases.finish(&mut guest)
}

#[test]
#[ignore = "boots a machine: cargo berth test"]
fn a_broken_machine_file_never_costs_the_api() -> Result<()> {
    let site = Site::prepare(PROBE)?;
    let disk = site.disk(1024)?;
    let machine =
        |more: &str| Machine::new("boot-broken-file").config(site.machine_file(more)).disk(disk.clone());
    let broken = "[[container]]\nname = \"web\"\nimage = \"{image}\"\nprots = [\"8080:80\"]\n";
    let mut cases = Cases::default();

    let mut guest = site.boot(&machine(broken))?;
    cases.case("the error names line and key, on the console and by the API", || {
        let line =
            site.machine_file(broken).lines().position(|line| line.starts_with("prots")).context("line")? + 1;
        let status: Status = guest.get("/host/v1/status")?;
        let error = status.config_errors.first().context("no error in the status")?;
        ensure!(error.contains("prots") && error.contains(&format!(":{line}:")), "{error}");
        guest.wait_for_line("prots", Duration::from_secs(1)).map(drop)
    });
    cases.finish(&mut guest)?;
    guest.power_down(guest.within(30))?;
    drop(guest);

    let mut cases = Cases::default();
    let mut guest = site.boot(&machine("[host]\nname = \"good\""))?;
    cases.case("a good file is in force at once", || {
        let status: Status = guest.get("/host/v1/status")?;
        ensure!(status.name == "good" && status.config_errors.is_empty(), "{status:?}");
        Ok(())
    });
    let off = guest.within(30);
    guest.power_down(off)?;
    cases.finish(&mut guest)?;
    drop(guest);

    let mut cases = Cases::default();
    let garbage = Machine::new("boot-broken-file").config("this is = not [toml").disk(disk.clone());
    let mut guest = site.boot(&garbage)?;
    cases.case("with a file that is no TOML the last good one holds", || {
        let status: Status = guest.get("/host/v1/status")?;
        ensure!(status.name == "good" && !status.config_errors.is_empty(), "{status:?}");
        Ok(())
    });
    cases.finish(&mut guest)
}

#[test]
#[ignore = "boots a machine: cargo berth test"]
fn without_network_and_machine_file_it_boots_and_goes_off_in_order() -> Result<()> {
    let mut guest = Machine::new("boot-alone").without_network().boot(&BootImage::from_environment()?)?;
    let within = guest.within(20);
    guest.wait_for_line("agent: api ready", within)?;
    guest.power_down(within)?;
    guest.passed();
    Ok(())
}
