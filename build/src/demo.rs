//! The demo image: Debian's busybox serving one page with live values.

use crate::debian;
use crate::paths::Paths;
use crate::progress::Step;
use anyhow::{Context, Result};
use qemu_test::oci::{Builder, Image, Layer};
use serde_json::json;
use std::fs;

/// Busybox's links that the page's script and a curious visitor use.
const APPLETS: &[&str] = &[
    "sh", "httpd", "hostname", "uname", "cat", "cut", "date", "echo", "env", "id", "ls", "ps", "sleep",
    "wget",
];

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
<tr><td>image digest<td id="digest">$IMAGE_DIGEST
</table>
END
"#;

/// Makes the image from Debian's package.
pub(crate) fn image(paths: &Paths, step: &Step) -> Result<Image> {
    let package = debian::unpack("busybox-static", paths, step)?;
    let program = package.root.join("bin/busybox");
    let busybox = fs::read(&program).with_context(|| format!("reading {}", program.display()))?;
    let mut base = Layer::default().folder("bin", 0o755)?.folder("tmp", 0o1777)?.folder("etc", 0o755)?;
    base = base.file("bin/busybox", 0o755, &busybox)?;
    for applet in APPLETS {
        base = base.symlink(&format!("bin/{applet}"), "busybox")?;
    }
    base = base.file("etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/sh\n")?.file(
        "etc/group",
        0o644,
        b"root:x:0:\n",
    )?;
    let page = Layer::default().folder("www", 0o755)?.folder("www/cgi-bin", 0o755)?;
    let page = page.file("www/cgi-bin/index.cgi", 0o755, PAGE.as_bytes())?;
    Builder::default()
        .layer(base)?
        .layer(page)?
        .set("Env", json!(["PATH=/bin"]))
        .set("Cmd", json!(["httpd", "-f", "-p", "80", "-h", "/www"]))
        .set("ExposedPorts", json!({ "80/tcp": {} }))
        .build()
}
