//! A container's standard streams: made before it runs, and kept by init as well, so that neither output nor terminal
//! is lost with the agent.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;

use super::error::StartError;
use crate::init_link::Init;
use crate::store::Record;

/// Capacity of an output pipe in bytes: what a container may write while no agent reads. The default maximum.
const PIPE_BYTES: usize = 1 << 20;

/// Both ends, before the start.
pub(super) enum Streams {
    /// Three pipes, or `/dev/null` for standard input.
    Pipes {
        /// The container's ends.
        inside: [OwnedFd; 3],
        /// Ours.
        ends: Ends,
    },
    /// A terminal, made by the launcher.
    Terminal,
}

/// Our ends.
#[derive(Debug)]
pub(crate) enum Ends {
    /// Pipes.
    Pipes {
        /// Read end of standard output.
        out: OwnedFd,
        /// Read end of standard error.
        err: OwnedFd,
        /// Write end of standard input, when open.
        input: Option<OwnedFd>,
    },
    /// The master of a terminal.
    Terminal(OwnedFd),
}

/// Under which name init keeps the write end of a run's standard input: apart, because it may be closed early.
pub(crate) fn input_name(id: &str, run: u32) -> String {
    format!("i/{id}/{run}")
}

/// Under which name init keeps the other ends of a run.
pub(crate) fn streams_name(id: &str, run: u32) -> String {
    format!("s/{id}/{run}")
}

impl Ends {
    /// Out of what init kept: two pipes or a master, and standard input beside them.
    pub(crate) fn from_kept(tty: bool, fds: Vec<OwnedFd>, input: Option<OwnedFd>) -> Option<Self> {
        let mut fds = fds.into_iter();
        match (tty, fds.next(), fds.next()) {
            (true, Some(master), _) => Some(Self::Terminal(master)),
            (false, Some(out), Some(err)) => Some(Self::Pipes { out, err, input }),
            _ => None,
        }
    }

    /// Has init keep them.
    pub(crate) fn keep(&self, init: &Init, id: &str, run: u32) -> io::Result<()> {
        match self {
            Self::Terminal(master) => init.store(&streams_name(id, run), vec![master.try_clone()?]),
            Self::Pipes { out, err, input } => {
                init.store(&streams_name(id, run), vec![out.try_clone()?, err.try_clone()?])?;
                match input {
                    Some(input) => init.store(&input_name(id, run), vec![input.try_clone()?]),
                    None => Ok(()),
                }
            }
        }
    }
}

/// Makes a container's streams. `base` is the host id of its root, who shall be able to open `/dev/stdout`.
pub(super) fn make(record: &Record, base: Option<u32>) -> io::Result<Streams> {
    if record.config.tty {
        return Ok(Streams::Terminal);
    }
    let (inside, ends) = pipes(record.config.open_stdin, base)?;
    Ok(Streams::Pipes { inside, ends })
}

/// Three streams of a process without terminal: its ends and ours.
pub(crate) fn pipes(input: bool, base: Option<u32>) -> io::Result<([OwnedFd; 3], Ends)> {
    let pipe = || -> io::Result<(OwnedFd, OwnedFd)> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        if let Some(base) = base {
            let owner = (rustix::fs::Uid::from_raw(base), rustix::fs::Gid::from_raw(base));
            rustix::fs::fchown(&write, Some(owner.0), Some(owner.1))?;
        }
        Ok((read, write))
    };
    let ((out, out_inside), (err, err_inside)) = (pipe()?, pipe()?);
    for end in [&out, &err] {
        // A smaller pipe works as well, only for a shorter absence of the agent.
        let _ = rustix::pipe::fcntl_setpipe_size(end, PIPE_BYTES);
    }
    let (in_inside, input) = if input {
        let (read, write) = pipe()?;
        (read, Some(write))
    } else {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        (rustix::fs::open("/dev/null", flags, Mode::empty())?, None)
    };
    Ok(([in_inside, out_inside, err_inside], Ends::Pipes { out, err, input }))
}

impl Streams {
    /// Has init keep our ends. A terminal's master does not exist before the start.
    pub(super) fn keep(&self, init: &Init, id: &str, run: u32) -> io::Result<()> {
        match self {
            Self::Pipes { ends, .. } => ends.keep(init, id, run),
            Self::Terminal => Ok(()),
        }
    }

    /// Our ends once the process runs; its own are closed.
    pub(super) fn started(
        self,
        terminal: Option<OwnedFd>,
        init: &Init,
        id: &str,
        run: u32,
    ) -> Result<Ends, StartError> {
        match (self, terminal) {
            (Self::Pipes { ends, .. }, _) => Ok(ends),
            (Self::Terminal, Some(master)) => {
                let ends = Ends::Terminal(master);
                if let Err(error) = ends.keep(init, id, run) {
                    crate::log::warning!("init cannot keep a terminal: {error}, continuing");
                }
                Ok(ends)
            }
            (Self::Terminal, None) => Err(StartError::failed("the launcher gave no terminal".to_owned())),
        }
    }

    /// The container's ends.
    pub(super) fn inside(&self) -> Option<io::Result<[OwnedFd; 3]>> {
        match self {
            Self::Terminal => None,
            Self::Pipes { inside: [input, out, err], .. } => {
                let clone = |fd: &OwnedFd| fd.as_fd().try_clone_to_owned();
                Some(clone(input).and_then(|input| Ok([input, clone(out)?, clone(err)?])))
            }
        }
    }
}
