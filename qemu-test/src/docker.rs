//! The stock docker command line, pointed at a guest.

use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Longest time for one command; unit: seconds.
const DEADLINE_S: u32 = 120;

/// Names the program when it is not in PATH.
const VARIABLE: &str = "BERTH_DOCKER";

/// The command line with the variables it needs.
#[derive(Debug, Clone)]
pub struct Docker {
    program: OsString,
    host: String,
    certificates: PathBuf,
}

/// What a command gave.
#[derive(Debug, Clone)]
pub struct Done {
    /// Exit code; 124 when the deadline ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Docker {
    /// For the API at this loopback port, with `ca.pem`, `cert.pem` and `key.pem` in a folder.
    pub fn new(port: u16, certificates: &Path) -> Self {
        let program = std::env::var_os(VARIABLE).unwrap_or_else(|| "docker".into());
        Self { program, host: format!("tcp://127.0.0.1:{port}"), certificates: certificates.to_owned() }
    }

    /// The same host with other certificates.
    #[must_use]
    pub fn with_certificates(&self, certificates: &Path) -> Self {
        Self { certificates: certificates.to_owned(), ..self.clone() }
    }

    /// True when the program is there.
    pub fn present(&self) -> bool {
        let asked =
            Command::new(&self.program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        asked.is_ok_and(|status| status.success())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", &DEADLINE_S.to_string()]).arg(&self.program).args(arguments);
        command
            .env("DOCKER_HOST", &self.host)
            .env("DOCKER_TLS_VERIFY", "1")
            .env("DOCKER_CERT_PATH", &self.certificates);
        // A developer's own contexts and credentials stay out of it.
        command.env_remove("DOCKER_CONTEXT").env("DOCKER_CONFIG", &self.certificates);
        command.stdin(Stdio::null());
        command
    }

    /// Runs a command to its end, whatever its exit code.
    pub fn run(&self, arguments: &[&str]) -> Result<Done> {
        let output = self.command(arguments).output().context("starting the docker command line")?;
        Ok(Done {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs a command that must succeed; gives its output without the last line end.
    pub fn ok(&self, arguments: &[&str]) -> Result<String> {
        let done = self.run(arguments)?;
        if done.code != 0 {
            bail!("docker {} gave {}: {}{}", arguments.join(" "), done.code, done.stdout, done.stderr);
        }
        Ok(done.stdout.trim_end().to_owned())
    }

    /// Starts a command and leaves it running, its output piped; for `logs -f`, `events`.
    pub fn spawn(&self, arguments: &[&str]) -> Result<Child> {
        self.command(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting the docker command line")
    }
}
