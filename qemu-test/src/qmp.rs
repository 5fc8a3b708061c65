//! QEMU's machine protocol: a greeting, then one JSON object per line each way (docs/interop/qmp-spec.txt of QEMU).

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// QEMU answers within this or is stuck.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// A connection past its greeting.
pub struct Qmp {
    writer: UnixStream,
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects and negotiates. The socket must exist.
    pub fn connect(path: &Path) -> Result<Self> {
        let writer = UnixStream::connect(path).context("connecting to QMP")?;
        writer.set_read_timeout(Some(ANSWER_DEADLINE))?;
        let reader = BufReader::new(writer.try_clone()?);
        let mut qmp = Self { writer, reader };
        let greeting = qmp.line()?;
        if greeting.get("QMP").is_none() {
            bail!("not a QMP greeting: {greeting}");
        }
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and gives what it returned; events that come meanwhile are passed over.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let mut text = json!({ "execute": command, "arguments": arguments }).to_string();
        text.push('\n');
        self.writer.write_all(text.as_bytes()).with_context(|| format!("sending {command} to QMP"))?;
        loop {
            let mut answer = self.line().with_context(|| format!("waiting for {command}"))?;
            if let Some(error) = answer.get("error") {
                bail!("QMP {command}: {error}");
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut text = String::new();
        if self.reader.read_line(&mut text).context("reading QMP")? == 0 {
            bail!("QEMU closed QMP");
        }
        serde_json::from_str(&text).context("reading QMP")
    }
}
