//! Looks at a running machine from outside, as its users would: the page, the API, the docker command line.

use anyhow::{Context, Result, bail, ensure};
use berth_api::host::Status;
use qemu_test::docker::Docker;
use qemu_test::pki::Pki;
use qemu_test::{Guest, http};
use serde_json::Value;
use std::net::SocketAddr;

/// What the page must show.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    /// Kernel release.
    pub(crate) kernel: String,
    /// Digest of the image's manifest.
    pub(crate) digest: String,
    /// The unit's name.
    pub(crate) unit: String,
}

/// True when the page is served at all.
pub(crate) fn page_answers(address: SocketAddr) -> bool {
    http::get(address, "/").is_ok_and(|answer| answer.status == 200)
}

/// The page shows live values of this machine and image.
pub(crate) fn page(address: SocketAddr, expected: &Expected) -> Result<()> {
    let answer = http::get(address, "/")?;
    let text = answer.text();
    for wanted in [&expected.kernel, &expected.digest] {
        ensure!(text.contains(wanted.as_str()), "the page does not show {wanted}: {text}");
    }
    ensure!(uptime_s(&text)? > 0.0, "the page shows no uptime");
    ensure!(!cell(&text, "hostname")?.is_empty(), "the page shows no host name");
    Ok(())
}

/// The machine's uptime in seconds, as the demo page shows it.
pub(crate) fn uptime_s(page: &str) -> Result<f64> {
    seconds(page, "uptime")
}

/// How long its processors idled, in seconds.
pub(crate) fn idle_s(page: &str) -> Result<f64> {
    seconds(page, "idle")
}

fn seconds(page: &str, id: &str) -> Result<f64> {
    cell(page, id)?.trim_end_matches(" s").parse().with_context(|| format!("the page's {id}"))
}

fn cell<'a>(page: &'a str, id: &str) -> Result<&'a str> {
    let mark = format!("id=\"{id}\">");
    let (_, rest) = page.split_once(&mark).with_context(|| format!("the page has no cell {id}"))?;
    Ok(rest.lines().next().unwrap_or_default().trim())
}

/// The API answers with mutual TLS, shows the unit's container, and refuses a stranger's certificate.
pub(crate) fn api(guest: &Guest, expected: &Expected) -> Result<()> {
    let version: Value = guest.get("/version")?;
    ensure!(version["KernelVersion"] == expected.kernel.as_str(), "the API tells another kernel: {version}");
    let containers: Value = guest.get("/containers/json")?;
    let running = containers.as_array().is_some_and(|all| {
        all.iter().any(|one| one["State"] == "running" && one["Names"].to_string().contains(&expected.unit))
    });
    ensure!(running, "the API does not show {} running: {containers}", expected.unit);
    let stranger = guest.client_with(&stranger_of(guest)?)?;
    if guest.block_on(stranger.get_bytes("/_ping")).is_ok() {
        bail!("the API let a stranger's certificate in");
    }
    Ok(())
}

/// A client certificate of another authority, which trusts this machine's server.
fn stranger_of(guest: &Guest) -> Result<Pki> {
    let own = Pki::load_or_generate(&guest.artifacts().path("pki"))?;
    let other = Pki::generate()?;
    Ok(Pki { authority: own.authority, server: own.server, client: other.client })
}

/// The stock command line sees the container.
pub(crate) fn docker(docker: &Docker, expected: &Expected) -> Result<()> {
    docker.ok(&["version"])?;
    let names = docker.ok(&["ps", "--format", "{{.Names}}"])?;
    ensure!(
        names.lines().any(|name| name == expected.unit),
        "docker ps does not show {}: {names}",
        expected.unit
    );
    Ok(())
}

/// The machine's own report.
pub(crate) fn status(guest: &Guest) -> Result<Status> {
    guest.get("/host/v1/status")
}
