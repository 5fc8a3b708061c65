//! Naming the step that failed.

use std::io;

use rustix::io::Errno;

use crate::plan::Failure;

/// Turns an error into a [`Failure`] of a named step.
pub(crate) trait Step<T> {
    /// `step` is the step's name, `detail` what it was about.
    fn step(self, step: &str, detail: impl AsRef<str>) -> Result<T, Failure>;
}

impl<T> Step<T> for Result<T, Errno> {
    fn step(self, step: &str, detail: impl AsRef<str>) -> Result<T, Failure> {
        self.map_err(|errno| failure(step, detail.as_ref(), errno))
    }
}

impl<T> Step<T> for io::Result<T> {
    fn step(self, step: &str, detail: impl AsRef<str>) -> Result<T, Failure> {
        self.map_err(|error| match error.raw_os_error() {
            Some(errno) => failure(step, detail.as_ref(), Errno::from_raw_os_error(errno)),
            None => failure(step, &format!("{}: {error}", detail.as_ref()), Errno::IO),
        })
    }
}

impl<T> Step<T> for nix::Result<T> {
    fn step(self, step: &str, detail: impl AsRef<str>) -> Result<T, Failure> {
        self.map_err(|errno| failure(step, detail.as_ref(), Errno::from_raw_os_error(errno as i32)))
    }
}

/// A failure from its parts.
pub(crate) fn failure(step: &str, detail: &str, errno: Errno) -> Failure {
    Failure { step: step.to_owned(), detail: detail.to_owned(), errno: errno.raw_os_error() }
}
