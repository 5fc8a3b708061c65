//! The process that copies files: one job, then its end. Everything it reads of the container it reads here.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

use berth_runtime::passwd;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::enter::{EnterError, Entered, enter};
use super::job::{Answer, Job, Task};
use super::pack;
use super::tree::{Asked, FOLDER, Tree, told};
use super::unpack::{UnpackError, Wishes, unpack};

/// Memory of the process in bytes: an archive that wants more is refused by the allocator, not felt by the machine.
const MEMORY_MAX: u64 = 512 << 20;
/// Largest `/etc/passwd` or `/etc/group` that is read, in bytes.
const ACCOUNTS_MAX: u64 = 1 << 20;
/// Written after an archive that could not be completed, so that readers notice: no archive ends in half a block.
const CUT_SHORT: &[u8] = &[b'!'; 8];

/// Does the job and ends. The answer goes to standard output, archives come and go on the standard streams.
pub(crate) fn main(job: &str) -> ExitCode {
    rustix::process::umask(Mode::empty());
    bound();
    let answer = match serde_json::from_str::<Job>(job) {
        Ok(job) => work(&job),
        Err(error) => Some(Answer::Failed(format!("job: {error}"))),
    };
    match answer.map_or(Ok(()), |answer| tell(&answer)) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever asked is gone.
        Err(_) => ExitCode::FAILURE,
    }
}

/// Limits on memory, and all the descriptors there may be: deep trees take one for each level.
fn bound() {
    let memory = Rlimit { current: Some(MEMORY_MAX), maximum: Some(MEMORY_MAX) };
    let files = getrlimit(Resource::Nofile);
    let files = Rlimit { current: files.maximum, maximum: files.maximum };
    // Without them the job is done all the same.
    let _ = setrlimit(Resource::As, memory);
    let _ = setrlimit(Resource::Nofile, files);
}

fn tell(answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer).map_err(io::Error::other)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    out.flush()
}

/// Does the job; the answer, unless it was told already.
fn work(job: &Job) -> Option<Answer> {
    let bare = matches!(job.task, Task::Export);
    let entered = match enter(&job.tree, bare) {
        Ok(entered) => entered,
        Err(EnterError::Moved) => return Some(Answer::Moved),
        Err(error) => return Some(Answer::Failed(crate::log::chain(&error))),
    };
    let Entered { tree, .. } = &entered;
    match &job.task {
        Task::Look(path) => Some(match tree.find(&Asked::of(path.as_bytes())) {
            Ok(found) => Answer::Found(told(&found)),
            Err(error) => refusal(path, error),
        }),
        Task::Pack(path) => match tree.find(&Asked::of(path.as_bytes())) {
            Ok(found) => {
                if tell(&Answer::Found(told(&found))).is_ok() {
                    finish(pack::one(&found, out()));
                }
                None
            }
            Err(error) => Some(refusal(path, error)),
        },
        Task::Export => {
            if tell(&Answer::Done).is_ok() {
                finish(pack::whole(tree.root(), out()));
            }
            None
        }
        Task::Unpack { path, owner, keep_kinds, readonly } => {
            let owner = owner.as_deref();
            Some(put(tree, path, owner, *keep_kinds, readonly).unwrap_or_else(|answer| answer))
        }
    }
}

fn out() -> impl Write {
    io::BufWriter::with_capacity(256 << 10, io::stdout().lock())
}

fn finish(result: io::Result<()>) {
    if let Err(error) = result {
        crate::log::warning!("archive of a container's files: {error}, cut short");
        let mut out = io::stdout().lock();
        // Nobody may be reading any more.
        let _ = out.write_all(CUT_SHORT).and_then(|()| out.flush());
    }
}

fn refusal(path: &str, error: Errno) -> Answer {
    match error {
        Errno::NOENT => Answer::NoSuchPath,
        Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG | Errno::INVAL => {
            Answer::Invalid(format!("{path}: {}", io::Error::from(error)))
        }
        _ => Answer::Failed(format!("{path}: {}", io::Error::from(error))),
    }
}

fn put(
    tree: &Tree,
    path: &str,
    owner: Option<&str>,
    keep_kinds: bool,
    readonly: &[(String, bool)],
) -> Result<Answer, Answer> {
    let asked = Asked::of(path.as_bytes());
    let base = tree.open(&asked.parts.join(&b'/'), OFlags::PATH).map_err(|error| refusal(path, error))?;
    let stat = rustix::fs::fstat(&base).map_err(|error| refusal(path, error))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(Answer::Invalid("extraction point is not a directory".to_owned()));
    }
    let base = tree.path_of(base.as_fd()).map_err(|error| refusal(path, error))?;
    check_writable(&base, readonly)?;
    let owner = owner.map(|user| account(tree, user)).transpose()?;
    match unpack(tree, &base, io::stdin().lock(), Wishes { owner, keep_kinds }) {
        Ok(()) => Ok(Answer::Done),
        Err(error @ (UnpackError::Archive(_) | UnpackError::Entry { .. } | UnpackError::Kind { .. })) => {
            Err(Answer::Invalid(error.to_string()))
        }
        Err(error @ UnpackError::Io { .. }) => Err(Answer::Failed(crate::log::chain(&error))),
    }
}

/// Refuses a directory that the container may not write to.
fn check_writable(base: &[u8], readonly: &[(String, bool)]) -> Result<(), Answer> {
    let covers = |place: &&(String, bool)| {
        let rest = base.strip_prefix(place.0.trim_end_matches('/').as_bytes());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    };
    match readonly.iter().filter(covers).max_by_key(|(path, _)| path.len()) {
        Some((path, true)) if path == "/" => {
            Err(Answer::Invalid("container rootfs is marked read-only".to_owned()))
        }
        Some((_, true)) => Err(Answer::Invalid("mounted volume is marked read-only".to_owned())),
        _ => Ok(()),
    }
}

/// User and group of a container's configuration, by the container's own files.
fn account(tree: &Tree, user: &str) -> Result<(u32, u32), Answer> {
    let read = |path: &[u8]| {
        use std::io::Read;
        let mut text = String::new();
        let folder = tree.open(b"/etc", FOLDER).ok()?;
        let file = tree.open(path, OFlags::RDONLY | OFlags::NONBLOCK).ok()?;
        drop(folder);
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&file).ok()?.st_mode);
        let file = std::fs::File::from(file);
        (kind == FileType::RegularFile).then(|| file.take(ACCOUNTS_MAX).read_to_string(&mut text).ok())??;
        Some(text)
    };
    let (users, groups) = (read(b"/etc/passwd").unwrap_or_default(), read(b"/etc/group").unwrap_or_default());
    match passwd::resolve(user, &[], &users, &groups) {
        Ok(identity) => Ok((identity.uid, identity.gid)),
        Err(passwd::Unknown::User(name) | passwd::Unknown::Group(name)) => {
            Err(Answer::Invalid(format!("unable to find user {name}: no matching entries in passwd file")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_place_decides_whether_a_directory_is_writable() {
        let places = [("/".to_owned(), true), ("/data".to_owned(), false), ("/data/ro".to_owned(), true)];
        let text = |base: &str| match check_writable(base.as_bytes(), &places) {
            Ok(()) => String::new(),
            Err(Answer::Invalid(text)) => text,
            Err(other) => format!("{other:?}"),
        };
        assert_eq!(text("/etc"), "container rootfs is marked read-only");
        assert_eq!(text("/database"), "container rootfs is marked read-only");
        assert_eq!((text("/data"), text("/data/x")), (String::new(), String::new()));
        assert_eq!(text("/data/ro/x"), "mounted volume is marked read-only");
    }
}
