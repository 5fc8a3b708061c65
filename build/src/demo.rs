//! The demo image: Debian's busybox serving one page with live values.

use crate::debian;
use crate::paths::Paths;
use crate::progress::Step;
use anyhow::{Context, Result};
use qemu_test::oci::{Builder, Image, Layer, busybox_layer};
use serde_json::json;
use std::fs;
use std::path::PathBuf;

/// Run by the web server for each visit. Everything on the page is asked for at that moment.
const PAGE: &str = r#"#!/bin/sh
printf 'Content-Type: text/html; charset=utf-8\r\n\r\n'
cat <<END
<!doctype html>
<title>Berth</title>
<style>body{font:16px/1.6 sans-serif;margin:4em auto;max-width:40em}td:first-child{padding-right:2em;color:#666}</style>
<h1>A container on Berth</h1>
<table>
<tr><td>host name<td id="hostname">$(hostname)
<tr><td>kernel<td id="kernel">$(uname -r)
<tr><td>uptime<td id="uptime">$(cut -d ' ' -f 1 /proc/uptime) s
<tr><td>idle of it<td id="idle">$(cut -d ' ' -f 2 /proc/uptime) s
<tr><td>image digest<td id="digest">$IMAGE_DIGEST
</table>
END
"#;

/// Debian's static busybox, unpacked and not installed, since its package would replace the host's own.
pub(crate) fn busybox(paths: &Paths, step: &Step) -> Result<PathBuf> {
    Ok(debian::unpack("busybox-static", paths, step)?.root.join("bin/busybox"))
}

/// Makes the image from Debian's package.
pub(crate) fn image(paths: &Paths, step: &Step) -> Result<Image> {
    let program = busybox(paths, step)?;
    let busybox = fs::read(&program).with_context(|| format!("reading {}", program.display()))?;
    let page = Layer::default().folder("www", 0o755)?.folder("www/cgi-bin", 0o755)?;
    let page = page.file("www/cgi-bin/index.cgi", 0o755, PAGE.as_bytes())?;
    Builder::default()
        .layer(busybox_layer(&busybox)?)?
        .layer(page)?
        .set("Env", json!(["PATH=/bin"]))
        .set("Cmd", json!(["httpd", "-f", "-p", "80", "-h", "/www"]))
        // As first process it would ignore SIGTERM, having no handler for it; it has nothing to lose.
        .set("StopSignal", json!("SIGKILL"))
        .set("ExposedPorts", json!({ "80/tcp": {} }))
        .build()
}
