//! One group: a directory of cgroup2, held open.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::limits::Limits;
use super::stats::{self, Stats};

/// Longest file of cgroup2 that is read, in bytes. `memory.stat` with every key is under 4 KiB; `io.stat` grows with devices.
const FILE_MAX: usize = 64 * 1024;
/// How deep groups made by a container inside its own are removed.
const DEPTH_MAX: usize = 32;

/// A group of cgroup2.
#[derive(Debug)]
pub struct Group {
    dir: OwnedFd,
    parent: OwnedFd,
    name: String,
}

impl Group {
    /// Makes the group `name` below `parent` (a directory of cgroup2). One that exists already is replaced, so that
    /// no limit and no count is left over; while processes live in it, it is taken over.
    ///
    /// Replacing matters: kernels since 6.14 kill whatever is born by `CLONE_INTO_CGROUP` into a group that
    /// [`Group::kill`] was used on (`kill_seq` is taken from the maker's group).
    ///
    /// # Errors
    /// What `mkdir` and `open` say.
    pub fn create(parent: BorrowedFd<'_>, name: &str) -> io::Result<Self> {
        if let Ok(old) = Self::open(parent, name) {
            match old.remove() {
                Err(error) if error.kind() != io::ErrorKind::ResourceBusy => return Err(error),
                _ => {}
            }
        }
        Self::ensure(parent, name)
    }

    /// Makes the group `name` below `parent` if it is missing: for groups that hold groups.
    ///
    /// # Errors
    /// What `mkdir` and `open` say.
    pub fn ensure(parent: BorrowedFd<'_>, name: &str) -> io::Result<Self> {
        match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        Self::open(parent, name)
    }

    /// Opens a group that exists.
    ///
    /// # Errors
    /// `NotFound` when it does not.
    pub fn open(parent: BorrowedFd<'_>, name: &str) -> io::Result<Self> {
        if name.is_empty() || name.contains('/') || name == "." || name == ".." {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a group's name is one path component"));
        }
        let dir = open_dir(parent, name)?;
        Ok(Self { dir, parent: parent.try_clone_to_owned()?, name: name.to_owned() })
    }

    /// The group a directory is, without knowing its parent: it cannot be removed by [`Group::remove`].
    ///
    /// # Errors
    /// What `open` says.
    pub fn open_at(dir: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self { dir: open_dir(dir, ".")?, parent: dir.try_clone_to_owned()?, name: ".".to_owned() })
    }

    /// Controllers that are there to be enabled.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn controllers(&self) -> io::Result<Vec<String>> {
        Ok(self.read("cgroup.controllers")?.split_ascii_whitespace().map(str::to_owned).collect())
    }

    /// Writes a file of the group that [`Limits`] has no name for (`unified` of the runtime specification).
    ///
    /// # Errors
    /// `InvalidInput` when the name is no file of a controller; what the kernel says otherwise.
    pub fn set_file(&self, name: &str, value: &str) -> io::Result<()> {
        let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
        if !name.contains('.') || name.starts_with('.') || !name.bytes().all(legal) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("no file of a controller: {name}"),
            ));
        }
        self.write(name, value)
    }

    /// The directory, for [`crate::plan::Plan::cgroup`].
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The name below the parent.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Lets groups below this one use `controllers` (`memory`, `pids`, …).
    ///
    /// # Errors
    /// `NotFound` when a controller is not there, `Busy` when processes live in this group.
    pub fn enable(&self, controllers: &[&str]) -> io::Result<()> {
        let text: Vec<String> = controllers.iter().map(|name| format!("+{name}")).collect();
        self.write("cgroup.subtree_control", &text.join(" "))
    }

    /// Sets what `limits` names and leaves the rest. Kernels without swap accounting lack `memory.swap.max`:
    /// there is no swap to bound then.
    ///
    /// # Errors
    /// What the kernel says to the first text it does not take, with the file's name.
    pub fn set(&self, limits: &Limits) -> io::Result<()> {
        for (file, value) in limits.writes() {
            match self.write(file, &value) {
                Err(error) if file == "memory.swap.max" && error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(io::Error::new(error.kind(), format!("{file} = {value}: {error}")));
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Kills every process in the group and below it, forks under way included.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn kill(&self) -> io::Result<()> {
        self.write("cgroup.kill", "1")
    }

    /// Asks for the group to stop or go on. The stop is complete when [`Group::frozen`] says so.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn freeze(&self, frozen: bool) -> io::Result<()> {
        self.write("cgroup.freeze", if frozen { "1" } else { "0" })
    }

    /// Whether every process is stopped.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn frozen(&self) -> io::Result<bool> {
        self.event("frozen")
    }

    /// Whether a process lives in the group or below it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn populated(&self) -> io::Result<bool> {
        self.event("populated")
    }

    /// `cgroup.events`, which becomes readable with priority (`POLLPRI`) at each change of [`Group::populated`]
    /// and [`Group::frozen`].
    ///
    /// # Errors
    /// What `open` says.
    pub fn events(&self) -> io::Result<OwnedFd> {
        self.open_file("cgroup.events", OFlags::RDONLY)
    }

    /// How many processes of the group the out-of-memory killer has taken.
    ///
    /// # Errors
    /// What the kernel says; zero without the memory controller.
    pub fn oom_kills(&self) -> io::Result<u64> {
        let text = self.read_if_there("memory.events")?;
        Ok(stats::flat_keyed(&text).get("oom_kill").copied().unwrap_or(0))
    }

    /// Pids (of the reader's pid namespace) in this group.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn processes(&self) -> io::Result<Vec<i32>> {
        Ok(self.read("cgroup.procs")?.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// What the group used.
    ///
    /// # Errors
    /// What the kernel says; files of controllers that are not enabled count as zero.
    pub fn stats(&self) -> io::Result<Stats> {
        Ok(Stats {
            memory_bytes: stats::bound(&self.read_if_there("memory.current")?).unwrap_or(0),
            memory_max_bytes: stats::bound(&self.read_if_there("memory.max")?),
            swap_bytes: stats::bound(&self.read_if_there("memory.swap.current")?).unwrap_or(0),
            memory: stats::flat_keyed(&self.read_if_there("memory.stat")?),
            memory_events: stats::flat_keyed(&self.read_if_there("memory.events")?),
            cpu: stats::flat_keyed(&self.read_if_there("cpu.stat")?),
            pids: stats::bound(&self.read_if_there("pids.current")?).unwrap_or(0),
            pids_max: stats::bound(&self.read_if_there("pids.max")?),
            io: stats::io(&self.read_if_there("io.stat")?),
        })
    }

    /// Removes the group and what the container made below it. All processes must be gone.
    ///
    /// # Errors
    /// `ResourceBusy` while a process (a zombie counts) is left. A group that is gone already is no error.
    pub fn remove(&self) -> io::Result<()> {
        match remove_below(self.dir.as_fd(), DEPTH_MAX) {
            Ok(()) | Err(Errno::NOENT | Errno::NODEV) => {}
            Err(error) => return Err(error.into()),
        }
        match rustix::fs::unlinkat(&self.parent, self.name.as_str(), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn event(&self, key: &str) -> io::Result<bool> {
        let events = stats::flat_keyed(&self.read("cgroup.events")?);
        Ok(events.get(key).is_some_and(|value| *value != 0))
    }

    fn write(&self, file: &str, value: &str) -> io::Result<()> {
        let file = self.open_file(file, OFlags::WRONLY)?;
        rustix::io::retry_on_intr(|| rustix::io::write(&file, value.as_bytes()))?;
        Ok(())
    }

    fn read_if_there(&self, file: &str) -> io::Result<String> {
        match self.read(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            other => other,
        }
    }

    fn read(&self, file: &str) -> io::Result<String> {
        let file = self.open_file(file, OFlags::RDONLY)?;
        let mut text = Vec::new();
        let mut chunk = [0; 4096];
        while text.len() < FILE_MAX {
            let length = rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut chunk))?;
            let Some(read) = chunk.get(..length).filter(|read| !read.is_empty()) else { break };
            text.extend_from_slice(read);
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    fn open_file(&self, file: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(rustix::fs::openat(&self.dir, file, flags, Mode::empty())?)
    }
}

fn open_dir(parent: BorrowedFd<'_>, name: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

fn remove_below(dir: BorrowedFd<'_>, depth: usize) -> rustix::io::Result<()> {
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_dir = entry.file_type() == rustix::fs::FileType::Directory;
        if !is_dir || name == c"." || name == c".." {
            continue;
        }
        if depth == 0 {
            return Err(Errno::LOOP);
        }
        let child = open_dir(dir, &name.to_string_lossy())?;
        remove_below(child.as_fd(), depth - 1)?;
        rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?;
    }
    Ok(())
}
