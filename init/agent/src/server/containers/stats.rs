//! Resource use of a container, once or every second.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use berth_api::docker::stats::{
    BlkioEntry, BlkioStats, CpuStats, CpuUsage, InterfaceStats, MemoryStats, PidsStats, Stats, Throttling,
};
use berth_runtime::cgroup::{Group, Stats as Account};
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::command::{State, View};
use crate::server::Api;
use crate::server::errors::ApiError;
use crate::server::images::blocking;
use crate::server::request::Request;
use crate::server::respond::{self, Pieces};
use crate::server::routes::Answer;
use crate::server::system::memory_total_bytes;
use crate::server::time::{self, NEVER};

/// Where containers' cgroups are.
const GROUPS: &str = "/sys/fs/cgroup/docker";
/// Time between records.
const PERIOD: Duration = Duration::from_secs(1);
/// Nanoseconds of a clock tick in `/proc/stat`: `USER_HZ` is 100 on every architecture we run on.
const TICK_NS: u64 = 10_000_000;

pub(crate) async fn stats(request: Request, name: &str) -> Answer {
    let stream = request.query.flag_or("stream", true);
    let one_shot = request.query.flag("one-shot");
    if stream && one_shot {
        return Err(ApiError::invalid("cannot have stream=true and one-shot=true"));
    }
    let view = request.api.owner.view(name).await?;
    let mut last = sample(&view).await?;
    if !stream {
        if one_shot || !is_running(&view) {
            return Ok(respond::ok(&last));
        }
        tokio::time::sleep(PERIOD).await;
        let view = request.api.owner.view(&view.id).await?;
        let now = sample(&view).await?;
        return Ok(respond::ok(&after(&last, now)));
    }
    let (sender, receiver) = mpsc::channel(1);
    let api = request.api.clone();
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(PERIOD);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        tick.tick().await;
        loop {
            if sender.send(json(&last)).await.is_err() {
                return;
            }
            tokio::select! {
                _ = tick.tick() => {}
                () = sender.closed() => return,
            }
            let Some(now) = next(&api, &view.id).await else { return };
            last = after(&last, now);
        }
    });
    Ok(respond::streamed(respond::JSON, Pieces::new(receiver, |line: Bytes| line)))
}

/// The next record; none once the container is gone.
async fn next(api: &Arc<Api>, id: &str) -> Option<Stats> {
    let view = api.owner.view(id).await.ok()?;
    sample(&view).await.ok()
}

fn json(stats: &Stats) -> Bytes {
    let mut text = serde_json::to_vec(stats).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

fn after(last: &Stats, mut now: Stats) -> Stats {
    now.preread.clone_from(&last.read);
    now.precpu_stats = last.cpu_stats.clone();
    now
}

fn is_running(view: &View) -> bool {
    matches!(view.state, State::Running { .. })
}

/// One record. Of a container that does not run: names, and no numbers.
async fn sample(view: &Arc<View>) -> Result<Stats, ApiError> {
    let mut out = Stats {
        name: format!("/{}", view.name),
        id: view.id.clone(),
        read: NEVER.to_owned(),
        preread: NEVER.to_owned(),
        ..Stats::default()
    };
    let State::Running { pid, .. } = view.state else { return Ok(out) };
    let id = view.id.clone();
    let read = blocking(move || Reading::take(&id, pid)).await?;
    // A container that ended meanwhile has no group any more and is answered as one that does not run.
    if let Ok(reading) = read {
        reading.fill(&mut out);
        out.read = time::rfc3339_nano(time::now_ns());
    }
    Ok(out)
}

/// What the kernel tells.
struct Reading {
    account: Account,
    proc_stat: String,
    meminfo: String,
    net_dev: String,
}

impl Reading {
    fn take(id: &str, pid: i32) -> std::io::Result<Self> {
        let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
        let groups = rustix::fs::open(GROUPS, flags, rustix::fs::Mode::empty())?;
        Ok(Self {
            account: Group::open(groups.as_fd(), id)?.stats()?,
            proc_stat: std::fs::read_to_string("/proc/stat")?,
            meminfo: std::fs::read_to_string("/proc/meminfo")?,
            net_dev: std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default(),
        })
    }

    fn fill(&self, out: &mut Stats) {
        let account = &self.account;
        out.pids_stats = PidsStats { current: account.pids, limit: account.pids_max.unwrap_or(u64::MAX) };
        out.cpu_stats = self.processors();
        out.memory_stats = MemoryStats {
            usage: account.memory_bytes,
            stats: Some(account.memory.clone()),
            failcnt: 0,
            limit: account.memory_max_bytes.unwrap_or_else(|| memory_total_bytes(&self.meminfo)),
            max_usage: 0,
        };
        out.blkio_stats = self.devices();
        let interfaces = interfaces(&self.net_dev);
        out.networks = (!interfaces.is_empty()).then_some(interfaces);
    }

    fn processors(&self) -> CpuStats {
        let of = |key: &str| self.account.cpu.get(key).copied().unwrap_or(0);
        let micros = |key: &str| of(key).saturating_mul(1000);
        CpuStats {
            cpu_usage: CpuUsage {
                total_usage: micros("usage_usec"),
                percpu_usage: None,
                usage_in_kernelmode: micros("system_usec"),
                usage_in_usermode: micros("user_usec"),
            },
            system_cpu_usage: system_cpu_ns(&self.proc_stat),
            online_cpus: online_cpus(&self.proc_stat),
            throttling_data: Throttling {
                periods: of("nr_periods"),
                throttled_periods: of("nr_throttled"),
                throttled_time: micros("throttled_usec"),
            },
        }
    }

    fn devices(&self) -> BlkioStats {
        let entry = |io: &berth_runtime::cgroup::IoStats, op: &str, value| BlkioEntry {
            major: io.major.into(),
            minor: io.minor.into(),
            op: op.to_owned(),
            value,
        };
        let io = &self.account.io;
        let bytes =
            io.iter().flat_map(|io| [entry(io, "read", io.read_bytes), entry(io, "write", io.write_bytes)]);
        BlkioStats { io_service_bytes_recursive: Some(bytes.collect()), ..BlkioStats::default() }
    }
}

/// Time all processors spent on anything, idling included, nanoseconds: what shares are computed against.
fn system_cpu_ns(proc_stat: &str) -> u64 {
    let line = proc_stat.lines().find_map(|line| line.strip_prefix("cpu "));
    // Guest time is part of user time already, so only the first seven numbers count.
    let numbers = |rest: &str| {
        rest.split_ascii_whitespace().take(7).filter_map(|word| word.parse::<u64>().ok()).sum::<u64>()
    };
    let ticks = line.map_or(0, numbers);
    ticks.saturating_mul(TICK_NS)
}

fn online_cpus(proc_stat: &str) -> u32 {
    let is_cpu = |line: &&str| {
        line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    u32::try_from(proc_stat.lines().filter(is_cpu).count()).unwrap_or(u32::MAX)
}

/// `/proc/<pid>/net/dev` without the loopback interface.
fn interfaces(net_dev: &str) -> BTreeMap<String, InterfaceStats> {
    let line = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let name = name.trim();
        let numbers: Vec<u64> =
            numbers.split_ascii_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
        let at = |index: usize| numbers.get(index).copied().unwrap_or(0);
        let stats = InterfaceStats {
            rx_bytes: at(0),
            rx_packets: at(1),
            rx_errors: at(2),
            rx_dropped: at(3),
            tx_bytes: at(8),
            tx_packets: at(9),
            tx_errors: at(10),
            tx_dropped: at(11),
        };
        (name != "lo").then(|| (name.to_owned(), stats))
    };
    net_dev.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_texts_are_read() {
        let proc_stat =
            "cpu  100 0 50 1000 5 1 2 0 0 0\ncpu0 50 0 25 500 0 0 0 0 0 0\ncpu1 50 0 25 500 5 1 2\nintr 5\n";
        assert_eq!(system_cpu_ns(proc_stat), 1158 * TICK_NS);
        assert_eq!(online_cpus(proc_stat), 2);
        let net_dev = "Inter-|   Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 1086 9 0 0 0 0 \
                       0 0 126 3 0 0 0 0 0 0\n";
        let interfaces = interfaces(net_dev);
        assert_eq!(interfaces.len(), 1);
        assert_eq!((interfaces["eth0"].rx_bytes, interfaces["eth0"].tx_packets), (1086, 3));
    }
}
