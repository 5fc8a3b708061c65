//! Standard input, output and error from given descriptors.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, Gid, Uid, fchown, fstat};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use super::failure::Step;
use crate::plan::Failure;

/// Puts the descriptors in place and gives pipes to the user, who may then open `/dev/stdout` anew.
pub(super) fn install(fds: [BorrowedFd<'_>; 3], uid: u32, gid: u32) -> Result<(), Failure> {
    for fd in fds {
        give_pipe(fd, uid, gid);
    }
    let [input, output, error] = fds;
    dup2_stdin(input).step("streams", "stdin")?;
    dup2_stdout(output).step("streams", "stdout")?;
    dup2_stderr(error).step("streams", "stderr")
}

/// Changes the owner of a pipe. A refusal costs the program only the second opening, so it is no failure.
pub(crate) fn give_pipe(fd: BorrowedFd<'_>, uid: u32, gid: u32) {
    let is_pipe = fstat(fd.as_fd()).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
    if is_pipe {
        let _ = fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    }
}
