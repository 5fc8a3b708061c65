//! Pulls that go wrong: each is a clear error, leaves nothing half-written, and the next pull works.

use anyhow::{Context, Result, ensure};
use qemu_test::Machine;
use qemu_test::docker::Docker;
use qemu_test::oci::{Builder, Image, Layer};
use qemu_test::scenario::{Cases, Site};
use std::fs;

const PROBE: &str = env!("CARGO_BIN_EXE_probe");

/// An image of one layer with one file of that size that does not compress.
fn image_of(seed: u64, bytes: usize) -> Result<Image> {
    let mut state = seed | 1;
    let noise = |_| {
        // Xorshift: no two seeds share a layer, and the registry stores it at full size.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes().first().copied().unwrap_or_default()
    };
    let content: Vec<u8> = (0..bytes).map(noise).collect();
    Builder::default().layer(Layer::default().file("content", 0o644, &content)?)?.build()
}

/// Pulling fails and the message says why.
fn refused(docker: &Docker, reference: &str, why: &[&str]) -> Result<()> {
    let done = docker.run(&["pull", reference])?;
    ensure!(done.code == 1, "docker pull gave {}: {}{}", done.code, done.stdout, done.stderr);
    let said = done.stderr.to_lowercase();
    ensure!(why.iter().any(|word| said.contains(word)), "none of {why:?} in: {}", done.stderr);
    let listed = docker.ok(&["images", "-q", reference])?;
    ensure!(listed.is_empty(), "a failed pull left {listed}");
    Ok(())
}

/// Changes a blob in the registry's store behind its back; gives what was there.
fn damage(site: &Site, digest: &str, change: impl FnOnce(&mut Vec<u8>)) -> Result<Vec<u8>> {
    let file = site.registry.blob_file(digest)?;
    let whole = fs::read(&file)?;
    let mut damaged = whole.clone();
    change(&mut damaged);
    fs::write(&file, &damaged)?;
    Ok(whole)
}

#[test]
#[ignore = "boots a machine: cargo berth test"]
fn a_pull_that_fails_says_why_and_leaves_nothing() -> Result<()> {
    let mut site = Site::prepare(PROBE)?;
    let damaged = image_of(1, 100_000)?;
    let reference = site.registry.push("damaged:1", &damaged)?;
    let layer = damaged.layers.first().context("a layer")?.digest.clone();
    let mut guest = site.boot(&Machine::new("images-pulls").config(site.machine_file("")))?;
    let docker = site.docker(&guest)?;
    let mut cases = Cases::default();

    cases.case("a flipped bit in a layer", || {
        let whole = damage(&site, &layer, |bytes| {
            let middle = bytes.len() / 2;
            bytes.iter_mut().skip(middle).take(1).for_each(|byte| *byte ^= 1);
        })?;
        let verdict = refused(&docker, &reference, &["digest", "checksum", "verif"]);
        fs::write(site.registry.blob_file(&layer)?, whole)?;
        verdict
    });
    cases.case("a truncated layer", || {
        let whole = damage(&site, &layer, |bytes| bytes.truncate(50_000))?;
        let verdict = refused(&docker, &reference, &["digest", "size", "short", "trunc", "length", "bytes"]);
        fs::write(site.registry.blob_file(&layer)?, whole)?;
        verdict
    });
    cases.case("a changed manifest under its digest", || {
        let by_digest = site.registry.reference(&format!("damaged@{}", damaged.manifest.digest));
        let whole = damage(&site, &damaged.manifest.digest, |bytes| bytes.push(b' '))?;
        let verdict = refused(&docker, &by_digest, &["digest", "verif", "unknown", "not found"]);
        fs::write(site.registry.blob_file(&damaged.manifest.digest)?, whole)?;
        verdict
    });
    cases.case("an unknown image and an unknown tag", || {
        refused(&docker, &site.registry.reference("nosuch:1"), &["manifest unknown", "not found"])?;
        refused(&docker, &site.registry.reference("tools:nosuch"), &["manifest unknown", "not found"])
    });
    cases.case("a registry without TLS that the machine file does not name", || {
        refused(&docker, "10.0.2.2:9/tools:latest", &["connect", "refused", "tls", "reach"])
    });
    cases.case("a registry that is down, and is up again", || {
        site.registry.pause()?;
        let verdict = refused(&docker, &reference, &["connect", "refused", "reach"]);
        site.registry.resume()?;
        verdict
    });
    cases.case("the same image whole", || docker.ok(&["pull", &reference]).map(drop));
    cases.finish(&mut guest)
}

#[test]
#[ignore = "boots a machine: cargo berth test"]
fn a_full_disk_fails_the_pull_and_not_the_machine() -> Result<()> {
    let site = Site::prepare(PROBE)?;
    let large = site.registry.push("large:1", &image_of(2, 200 << 20)?)?;
    let machine = Machine::new("images-full-disk").config(site.machine_file("")).disk(site.disk(160)?);
    let mut guest = site.boot(&machine)?;
    let docker = site.docker(&guest)?;
    let mut cases = Cases::default();
    cases.case("an image larger than the disk is refused", || refused(&docker, &large, &["space", "full"]));
    cases.case("a small one is pulled and run after that", || {
        let said = docker.ok(&["run", "--rm", &site.image, "/probe", "print", "room"])?;
        ensure!(said.ends_with("room"), "{said}");
        Ok(())
    });
    cases.case("a container that fills the disk does not take the API away", || {
        let done = docker.run(&["run", "--name", "filler", &site.image, "/probe", "fill", "/file", "400"])?;
        ensure!(done.code != 0, "400 MiB fitted on a disk of 160");
        docker.ok(&["ps", "-a"])?;
        docker.ok(&["rm", "filler"]).map(drop)
    });
    cases.case("removing it gives the room back", || {
        docker.ok(&["run", "--rm", &site.image, "/probe", "fill", "/file", "20"]).map(drop)
    });
    cases.finish(&mut guest)
}
