//! Runs the outside programs a build needs, with their output kept back until one fails.

use crate::progress::Step;
use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

/// How much of a failed program's output is shown; unit: lines.
const SHOWN_LINES: usize = 40;

/// Administration programs live outside an ordinary user's PATH on Debian.
const SYSTEM_FOLDERS: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// Finds a program in PATH or in the system's administration folders.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SYSTEM_FOLDERS.iter().map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

/// A command for a program that may be an administration program.
pub(crate) fn command(program: &str) -> Command {
    Command::new(find(program).unwrap_or_else(|| PathBuf::from(program)))
}

/// Cargo for a build inside this one. What the outer cargo told only us is taken away: build scripts that watch
/// those variables would otherwise rebuild their crate each time inner and outer take turns.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text == "CARGO"
            || ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"]
                .iter()
                .any(|own| text.starts_with(own))
        {
            command.env_remove(&name);
        }
    }
    command
}

/// Runs a program to its end. Its last lines are the error when it fails; each line shows beside the step.
pub(crate) fn run(command: &mut Command, step: &Step) -> Result<String> {
    watch(command, |line| step.message(line))
}

/// Runs a program to its end and hands each line to the caller, who shows how far it is.
pub(crate) fn watch(command: &mut Command, mut on_line: impl FnMut(&str)) -> Result<String> {
    let name =
        Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {name}"))?;
    let (sender, lines) = mpsc::channel();
    let mut readers = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        readers.push(forward(stdout, true, sender.clone()));
    }
    if let Some(stderr) = child.stderr.take() {
        readers.push(forward(stderr, false, sender));
    }
    let (mut output, mut all) = (String::new(), Vec::new());
    for (is_stdout, line) in lines {
        on_line(&line);
        if is_stdout {
            output.push_str(&line);
            output.push('\n');
        }
        all.push(line);
    }
    for reader in readers {
        let _ = reader.join();
    }
    let status = child.wait().with_context(|| format!("waiting for {name}"))?;
    if !status.success() {
        let shown =
            all.iter().skip(all.len().saturating_sub(SHOWN_LINES)).cloned().collect::<Vec<_>>().join("\n");
        bail!("{name} failed with {status}:\n{shown}");
    }
    Ok(output)
}

fn forward(
    stream: impl std::io::Read + Send + 'static,
    is_stdout: bool,
    lines: mpsc::Sender<(bool, String)>,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            if lines.send((is_stdout, String::from_utf8_lossy(&line).into_owned())).is_err() {
                break;
            }
        }
    })
}

/// Runs a short program and gives its output; for questions, not for work.
pub(crate) fn ask<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> Result<String> {
    let output = command(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {program}"))?;
    if !output.status.success() {
        bail!("{program} failed with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
