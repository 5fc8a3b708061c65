//! Programs a bundle wants run at points of a container's life; each gets the state on standard input.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::OciError;
use super::spec::Hook;
use super::state::Shown;
use crate::stage::sync::wait_readable;

/// How long a hook may run that names no limit itself.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Runs hooks in order; the first that fails ends it.
///
/// # Errors
/// The hook that failed: not startable, exit code, signal, out of time.
pub fn run(hooks: &[Hook], state: &Shown) -> Result<(), OciError> {
    let input =
        serde_json::to_vec(state).map_err(|source| OciError::Json { path: "state".into(), source })?;
    for hook in hooks {
        run_one(hook, &input).map_err(|reason| OciError::Hook { path: hook.path.clone(), reason })?;
    }
    Ok(())
}

fn run_one(hook: &Hook, input: &[u8]) -> Result<(), String> {
    let mut command = Command::new(&hook.path);
    if let Some((name, args)) = hook.args.split_first() {
        command.arg0(name).args(args);
    }
    command.env_clear().stdin(Stdio::piped());
    command.envs(hook.env.iter().filter_map(|entry| entry.split_once('=')));
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook need not read its input.
        let _ = stdin.write_all(input);
    }
    let timeout = hook.timeout.map_or(TIMEOUT, |seconds| Duration::from_secs(u64::from(seconds)));
    let pidfd =
        pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).map_err(|error| error.to_string())?;
    if wait_readable(std::os::fd::AsFd::as_fd(&pidfd), Instant::now() + timeout).is_err() {
        let _ = child.kill();
        let _ = child.wait();
        return Err(format!("not done within {} s", timeout.as_secs()));
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    if status.success() { Ok(()) } else { Err(status.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::state::Status;

    fn state() -> Shown {
        Shown {
            oci_version: "1.0.2".to_owned(),
            id: "x".to_owned(),
            status: Status::Created,
            pid: 1,
            bundle: "/b".into(),
            annotations: std::collections::BTreeMap::new(),
        }
    }

    fn shell(script: &str, timeout: Option<u32>) -> Hook {
        let args = ["sh", "-c", script].map(str::to_owned).to_vec();
        Hook { path: "/bin/sh".into(), args, env: vec!["WANTED=created".to_owned()], timeout }
    }

    #[test]
    fn a_hook_reads_the_state_and_has_only_its_environment() {
        let hook =
            shell(r#"read x; case "$x" in *\"status\":\"$WANTED\"*) [ -z "$HOME" ];; *) false;; esac"#, None);
        run(&[hook], &state()).unwrap();
    }

    #[test]
    fn a_hook_that_fails_is_named_and_the_next_is_not_run() {
        let later = shell("touch /nonexistent/never", None);
        let error = run(&[shell("exit 3", None), later], &state()).unwrap_err();
        assert!(error.to_string().contains("exit status: 3"), "{error}");
    }

    #[test]
    fn a_hook_out_of_time_is_ended() {
        let error = run(&[shell("exec sleep 1000", Some(0))], &state()).unwrap_err();
        assert!(error.to_string().contains("not done within"), "{error}");
    }
}
