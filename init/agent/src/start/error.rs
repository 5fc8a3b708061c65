//! Why a container could not be started, in Docker's words and with Docker's codes.

use std::error::Error;
use std::io;

use berth_image::FindError;
use berth_runtime::client::LaunchError;
use rustix::io::Errno;

use crate::command::Refusal;

/// A failed start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StartError {
    /// Text for the user.
    pub(crate) text: String,
    /// Exit code shown: 126 not executable, 127 not found, 128 anything else.
    pub(crate) code: i64,
}

impl StartError {
    /// Anything that is not the program's fault.
    pub(crate) fn failed(text: String) -> Self {
        Self { text, code: 128 }
    }

    /// The kernel refused a step.
    pub(super) fn io(step: &'static str) -> impl Fn(io::Error) -> Self {
        move |error| Self::failed(format!("failed to create task for container: {step}: {error}"))
    }

    /// The image is gone.
    pub(super) fn image(error: &FindError) -> Self {
        Self::failed(error.to_string())
    }

    /// The network refused.
    pub(super) fn network(error: &dyn Error) -> Self {
        Self::failed(format!("failed to set up container networking: {}", crate::log::chain(error)))
    }

    /// The launcher refused.
    pub(crate) fn launch(error: LaunchError, args: &[String]) -> Self {
        let program = args.first().map_or("", String::as_str);
        let failure = match error {
            LaunchError::Step(failure) => failure,
            connection @ LaunchError::Connection(_) => {
                return Self::failed(format!(
                    "failed to create task for container: {}",
                    crate::log::chain(&connection)
                ));
            }
        };
        let errno = Errno::from_raw_os_error(failure.errno);
        let (code, reason) = match (failure.step.as_str(), errno) {
            ("exec", Errno::NOENT) if program.contains('/') => {
                (127, format!("exec: \"{program}\": stat {program}: no such file or directory"))
            }
            ("exec", Errno::NOENT) => {
                (127, format!("exec: \"{program}\": executable file not found in $PATH"))
            }
            ("exec", Errno::ACCESS | Errno::PERM) => (126, format!("exec: \"{program}\": permission denied")),
            ("exec", Errno::ISDIR) => {
                (126, format!("exec: \"{program}\": is a directory: permission denied"))
            }
            ("exec", Errno::NOEXEC) => (126, format!("exec \"{program}\": exec format error")),
            ("user", _) => return Self::failed(failure.to_string()),
            _ => (128, failure.to_string()),
        };
        Self { text: format!("failed to create task for container: {reason}"), code }
    }

    /// What the API answers.
    pub(crate) fn refusal(&self) -> Refusal {
        if matches!(self.code, 126 | 127) {
            Refusal::Invalid(self.text.clone())
        } else {
            Refusal::Failed(self.text.clone())
        }
    }
}

#[cfg(test)]
mod tests {
    use berth_runtime::plan::Failure;

    use super::*;

    fn text(step: &str, errno: Errno, program: &str) -> (i64, String) {
        let failure =
            Failure { step: step.to_owned(), detail: "who".to_owned(), errno: errno.raw_os_error() };
        let error = StartError::launch(LaunchError::Step(failure), &[program.to_owned()]);
        assert_eq!(matches!(error.refusal(), Refusal::Invalid(_)), error.code < 128);
        (error.code, error.text)
    }

    #[test]
    fn texts_and_codes_are_those_the_docker_command_looks_for() {
        let cases = [
            ("exec", Errno::NOENT, "x", 127, "executable file not found in $PATH"),
            ("exec", Errno::NOENT, "/x", 127, "no such file or directory"),
            ("exec", Errno::ACCESS, "/etc/passwd", 126, "permission denied"),
            ("exec", Errno::ISDIR, "/etc", 126, "is a directory"),
            ("user", Errno::NOENT, "x", 128, "unable to find user who"),
            ("mount", Errno::NOENT, "x", 128, "mount: who"),
        ];
        for (step, errno, program, code, part) in cases {
            let (found, text) = text(step, errno, program);
            assert_eq!(found, code, "{text}");
            assert!(text.contains(part), "{text}");
        }
    }
}
