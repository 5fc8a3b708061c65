//! Processes of a container, as `ps` would list them.

use std::os::fd::AsFd;

use berth_api::docker::containers::TopAnswer;
use berth_runtime::cgroup::Group;

use super::lifecycle;
use crate::command::State;
use crate::server::errors::{ApiError, chain};
use crate::server::images::blocking;
use crate::server::request::Request;
use crate::server::respond;
use crate::server::routes::Answer;
use crate::server::system::memory_total_bytes;
use crate::server::time;

/// Where containers' cgroups are.
const GROUPS: &str = "/sys/fs/cgroup/docker";
/// Clock ticks of a second in `/proc/<pid>/stat`.
const TICKS: u64 = 100;

const FULL: [&str; 8] = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"];
const USER: [&str; 11] =
    ["USER", "PID", "%CPU", "%MEM", "VSZ", "RSS", "TTY", "STAT", "START", "TIME", "COMMAND"];
const PLAIN: [&str; 4] = ["PID", "TTY", "TIME", "CMD"];

pub(crate) async fn top(request: Request, name: &str) -> Answer {
    let titles = titles(request.query.text("ps_args").unwrap_or("-ef"))?;
    let view = request.api.owner.view(name).await?;
    match view.state {
        State::Running { .. } => {}
        State::Restarting { .. } => {
            return Err(ApiError::conflict(format!(
                "Container {} is restarting, wait until the container is running",
                view.id
            )));
        }
        _ => return Err(lifecycle::not_running(&view.id)),
    }
    let id = view.id.clone();
    let processes = blocking(move || processes(&id)).await?;
    let processes =
        processes.map_err(|error| ApiError::failed(format!("cannot list processes: {}", chain(&error))))?;
    let meminfo = tokio::fs::read_to_string("/proc/meminfo").await.unwrap_or_default();
    let machine = Machine {
        boot_ns: time::now_ns().saturating_sub(uptime_ns()),
        memory_kib: memory_total_bytes(&meminfo) / 1024,
    };
    let row = |process: &Process| titles.iter().map(|title| process.column(title, machine)).collect();
    Ok(respond::ok(&TopAnswer {
        processes: processes.iter().map(row).collect(),
        titles: titles.iter().map(|title| (*title).to_owned()).collect(),
    }))
}

/// Columns for the arguments of `ps`: `-ef`, `aux` and their likes, or `-o` with a list.
fn titles(arguments: &str) -> Result<Vec<&'static str>, ApiError> {
    let words: Vec<&str> = arguments.split_ascii_whitespace().collect();
    if let Some(at) = words.iter().position(|word| word.trim_start_matches('-').starts_with('o')) {
        let own = words
            .get(at)
            .map(|word| word.trim_start_matches('-').trim_start_matches('o'))
            .unwrap_or_default();
        let list = if own.is_empty() { words.get(at + 1).copied().unwrap_or_default() } else { own };
        let columns = list.split(',').map(|column| {
            column_title(column.trim())
                .ok_or_else(|| ApiError::failed(format!("ps: unknown column {column:?}")))
        });
        let columns: Vec<_> = columns.collect::<Result<_, _>>()?;
        if !columns.contains(&"PID") {
            return Err(ApiError::failed("Couldn't find PID field in ps output"));
        }
        return Ok(columns);
    }
    let first = words.first().copied().unwrap_or_default();
    Ok(match first {
        word if word.contains('u') => USER.to_vec(),
        word if word.contains('f') || word.contains('F') => FULL.to_vec(),
        _ => PLAIN.to_vec(),
    })
}

fn column_title(name: &str) -> Option<&'static str> {
    Some(match name {
        "pid" => "PID",
        "ppid" => "PPID",
        "user" | "euser" | "ruser" => "USER",
        "uid" | "euid" => "UID",
        "comm" | "ucmd" => "COMMAND ",
        "args" | "cmd" | "command" => "COMMAND",
        "tty" | "tname" | "tt" => "TTY",
        "time" | "cputime" => "TIME",
        "etime" => "ELAPSED",
        "stime" | "start" | "lstart" => "STIME",
        "stat" | "s" | "state" => "STAT",
        "rss" => "RSS",
        "vsz" => "VSZ",
        "pcpu" | "%cpu" | "c" => "%CPU",
        "pmem" | "%mem" => "%MEM",
        _ => return None,
    })
}

/// What shares and start times are computed against.
#[derive(Clone, Copy, Debug)]
struct Machine {
    boot_ns: i64,
    memory_kib: u64,
}

/// A process as `/proc` tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    user: String,
    state: String,
    tty: String,
    cpu_ticks: u64,
    start_ticks: u64,
    vsz_kib: u64,
    rss_kib: u64,
    name: String,
    command: String,
}

impl Process {
    fn read(pid: i32) -> Option<Self> {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
        let mut process = Self::parse(pid, &read("stat")?)?;
        let status = read("status")?;
        let id_of = |line: &str| line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok();
        let host_id = status.lines().find_map(|line| line.strip_prefix("Uid:")).and_then(id_of).unwrap_or(0);
        let id = inside(host_id, &read("uid_map").unwrap_or_default());
        process.user = if id == 0 { "root".to_owned() } else { id.to_string() };
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = command
            .split(|byte| *byte == 0)
            .filter(|word| !word.is_empty())
            .map(String::from_utf8_lossy)
            .collect();
        process.command = if words.is_empty() { format!("[{}]", process.name) } else { words.join(" ") };
        Some(process)
    }

    /// Parses `/proc/<pid>/stat`; the name in it may hold blanks and brackets.
    fn parse(pid: i32, stat: &str) -> Option<Self> {
        let (before, after) = stat.rsplit_once(')')?;
        let name = before.split_once('(')?.1.to_owned();
        let fields: Vec<&str> = after.split_ascii_whitespace().collect();
        let number =
            |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
        let tty = number(4);
        Some(Self {
            pid,
            parent: fields.get(1)?.parse().ok()?,
            state: (*fields.first()?).to_owned(),
            tty: if tty == 0 {
                "?".to_owned()
            } else {
                format!("pts/{}", (tty & 0xff) | (tty >> 12 & 0xfff00))
            },
            cpu_ticks: number(11) + number(12),
            start_ticks: number(19),
            vsz_kib: number(20) / 1024,
            rss_kib: number(21) * 4,
            name,
            ..Self::default()
        })
    }

    fn column(&self, title: &str, machine: Machine) -> String {
        let seconds = self.cpu_ticks / TICKS;
        let started_ns = machine
            .boot_ns
            .saturating_add(i64::try_from(self.start_ticks * (1_000_000_000 / TICKS)).unwrap_or(0));
        let age = u64::try_from(time::now_ns().saturating_sub(started_ns) / 1_000_000_000).unwrap_or(0);
        let clock = |s: u64| format!("{:02}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
        match title {
            "UID" | "USER" => self.user.clone(),
            "PID" => self.pid.to_string(),
            "PPID" => self.parent.to_string(),
            "C" | "%CPU" => (seconds * 100 / age.max(1)).to_string(),
            "STIME" | "START" => time::rfc3339(started_ns).get(11..16).unwrap_or_default().to_owned(),
            "TTY" => self.tty.clone(),
            "TIME" => clock(seconds),
            "ELAPSED" => clock(age),
            "STAT" => self.state.clone(),
            "VSZ" => self.vsz_kib.to_string(),
            "RSS" => self.rss_kib.to_string(),
            "%MEM" => {
                let tenths = self.rss_kib * 1000 / machine.memory_kib.max(1);
                format!("{}.{}", tenths / 10, tenths % 10)
            }
            "COMMAND " => self.name.clone(),
            _ => self.command.clone(),
        }
    }
}

/// The id inside a user namespace for a host id.
fn inside(host_id: u64, uid_map: &str) -> u64 {
    let find = |line: &str| {
        let numbers: Vec<u64> = line.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [first, outside, count] = *numbers.as_slice() else { return None };
        let offset = host_id.checked_sub(outside)?;
        (offset < count).then_some(first + offset)
    };
    uid_map.lines().find_map(find).unwrap_or(host_id)
}

fn processes(id: &str) -> std::io::Result<Vec<Process>> {
    let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let groups = rustix::fs::open(GROUPS, flags, rustix::fs::Mode::empty())?;
    let mut pids = Group::open(groups.as_fd(), id)?.processes()?;
    pids.sort_unstable();
    // One that ended meanwhile is left out.
    Ok(pids.into_iter().filter_map(Process::read).collect())
}

fn uptime_ns() -> i64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_follow_the_arguments_of_ps() {
        assert_eq!(titles("-ef").unwrap(), FULL);
        assert_eq!(titles("aux").unwrap(), USER);
        assert_eq!(titles("-o pid,comm").unwrap(), ["PID", "COMMAND "]);
        assert_eq!(titles("-opid,args").unwrap(), ["PID", "COMMAND"]);
        assert_eq!(titles("-o comm").unwrap_err().message, "Couldn't find PID field in ps output");
    }

    #[test]
    fn a_stat_line_is_read_whatever_the_name_holds() {
        let line = "7 (a) b) S 1 7 7 34816 7 0 0 0 0 0 150 50 0 0 20 0 1 0 5000 4096000 25 0";
        let process = Process::parse(7, line).unwrap();
        let machine = Machine { boot_ns: 0, memory_kib: 1000 };
        assert_eq!((process.name.as_str(), process.parent, process.cpu_ticks), ("a) b", 1, 200));
        assert_eq!((process.tty.as_str(), process.vsz_kib, process.rss_kib), ("pts/0", 4000, 100));
        assert_eq!(process.column("TIME", machine), "00:00:02");
        assert_eq!(process.column("%MEM", machine), "10.0");
        assert_eq!(inside(165_536, "         0     165536      65536\n"), 0);
        assert_eq!(inside(5, ""), 5);
    }
}
