//! A terminal of the container's own devpts; its master side goes back to whoever asked for it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::termios::{Winsize, tcsetwinsize};

use super::failure::Step;
use super::mounts::move_to;
use super::resolve::{Kind, open_in, open_or_make};
use crate::plan::{Failure, Stdio};

/// `DEVPTS_SUPER_MAGIC`: an image could put anything at the path.
const DEVPTS_MAGIC: i64 = 0x1cd1;

/// Opens a terminal, makes it the controlling one and the standard streams, and gives its master side.
pub(super) fn open(stdio: &Stdio, root: BorrowedFd<'_>, uid: u32) -> Result<OwnedFd, Failure> {
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let master = open_in(root, "/dev/pts/ptmx", flags).step("terminal", "/dev/pts/ptmx")?;
    is_devpts(master.as_fd()).step("terminal", "/dev/pts/ptmx")?;
    unlockpt(&master).step("terminal", "unlock")?;
    let peer_flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = ioctl_tiocgptpeer(&master, peer_flags).step("terminal", "peer")?;
    if let Stdio::Terminal { rows, columns } = stdio
        && (*rows, *columns) != (0, 0)
    {
        let size = Winsize { ws_row: *rows, ws_col: *columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&slave, size).step("terminal", "size")?;
    }
    rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(uid)), None).step("terminal", "owner")?;
    rustix::process::ioctl_tiocsctty(&slave).step("terminal", "controlling")?;
    dup2_stdin(&slave).step("terminal", "stdin")?;
    dup2_stdout(&slave).step("terminal", "stdout")?;
    dup2_stderr(&slave).step("terminal", "stderr")?;
    Ok(master)
}

/// Shows the terminal on standard input as `/dev/console` too (runtime-spec, config-linux, Default Devices).
pub(super) fn bind_console(root: BorrowedFd<'_>) -> Result<(), Failure> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(rustix::stdio::stdin(), "", flags).step("terminal", "console")?;
    let target = open_or_make(root, "/dev/console", Kind::File).step("terminal", "/dev/console")?;
    move_to(tree.as_fd(), target.as_fd()).step("terminal", "/dev/console")
}

fn is_devpts(fd: BorrowedFd<'_>) -> rustix::io::Result<()> {
    if rustix::fs::fstatfs(fd)?.f_type == DEVPTS_MAGIC { Ok(()) } else { Err(Errno::NOTTY) }
}
