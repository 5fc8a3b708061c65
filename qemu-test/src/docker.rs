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

    /// What the command line reads from its environment. The docker found first in PATH is this one.
    pub fn variables(&self) -> Vec<(String, String)> {
        let certificates = self.certificates.display().to_string();
        let path = std::env::var("PATH").unwrap_or_default();
        let folder =
            Path::new(&self.program).parent().map(|folder| folder.display().to_string()).unwrap_or_default();
        let path = if folder.is_empty() { path } else { format!("{folder}:{path}") };
        // A developer's own contexts and credentials stay out of it.
        let set = [
            ("DOCKER_HOST", self.host.clone()),
            ("DOCKER_TLS_VERIFY", "1".to_owned()),
            ("DOCKER_CERT_PATH", certificates.clone()),
            ("DOCKER_CONFIG", certificates),
            ("DOCKER_CONTEXT", String::new()),
            // Python's clients would believe these before DOCKER_CERT_PATH.
            ("REQUESTS_CA_BUNDLE", String::new()),
            ("CURL_CA_BUNDLE", String::new()),
            ("PATH", path),
        ];
        set.map(|(name, value)| (name.to_owned(), value)).to_vec()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", &DEADLINE_S.to_string()]).arg(&self.program).args(arguments);
        command.envs(self.variables()).stdin(Stdio::null());
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
