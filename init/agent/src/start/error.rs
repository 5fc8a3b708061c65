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
    pub(crate) fn launch(error: LaunchError) -> Self {
        let failure = match error {
            LaunchError::Step(failure) => failure,
            connection @ LaunchError::Connection(_) => {
                return Self::failed(format!(
                    "failed to create task for container: {}",
                    crate::log::chain(&connection)
                ));
            }
        };
        let message = failure.message();
        let errno = Errno::from_raw_os_error(failure.errno);
        let (code, reason) = match (failure.step.as_str(), errno) {
            ("user" | "group", _) => return Self::failed(message),
            ("exec", Errno::NOENT | Errno::NOTDIR) => (127, message),
            // The reference engine's words, which its command line looks for.
            ("exec", Errno::ISDIR) => (126, format!("{message}: permission denied")),
            ("exec", Errno::ACCESS | Errno::PERM | Errno::NOEXEC) => (126, message),
            _ => (128, message),
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

    fn text(step: &str, errno: Errno) -> (i64, String) {
        let failure =
            Failure { step: step.to_owned(), detail: "who".to_owned(), errno: errno.raw_os_error() };
        let error = StartError::launch(LaunchError::Step(failure));
        assert_eq!(matches!(error.refusal(), Refusal::Invalid(_)), error.code < 128);
        (error.code, error.text)
    }

    #[test]
    fn texts_and_codes_are_those_the_docker_command_looks_for() {
        let task = "failed to create task for container: ";
        let cases = [
            ("exec", Errno::NOENT, 127, format!("{task}who")),
            ("exec", Errno::NOTDIR, 127, format!("{task}who")),
            ("exec", Errno::ACCESS, 126, format!("{task}who")),
            ("exec", Errno::NOEXEC, 126, format!("{task}who")),
            ("exec", Errno::ISDIR, 126, format!("{task}who: permission denied")),
            ("exec", Errno::NOMEM, 128, format!("{task}who")),
            (
                "user",
                Errno::NOENT,
                128,
                "unable to find user who: no matching entries in passwd file".to_owned(),
            ),
            ("mount", Errno::NOENT, 128, format!("{task}mount: who: {}", io::Error::from(Errno::NOENT))),
        ];
        for (step, errno, code, expected) in cases {
            assert_eq!(text(step, errno), (code, expected), "{step} {errno}");
        }
    }
}
