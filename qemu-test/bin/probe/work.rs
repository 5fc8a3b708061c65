//! Verbs that do something: print, wait, use memory, die.

use nix::sys::signal::{SigSet, Signal};
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;
/// Smallest page; touching one byte of each makes memory resident.
const PAGE_BYTES: usize = 4096;

fn failed(what: &str) -> impl FnOnce(io::Error) -> String {
    move |error| format!("{what}: {error}")
}

pub(crate) fn print(text: &str) -> Result<u8, String> {
    writeln!(io::stdout(), "{text}").map_err(failed("printing"))?;
    Ok(0)
}

pub(crate) fn complain(text: &str) -> Result<u8, String> {
    writeln!(io::stderr(), "{text}").map_err(failed("printing"))?;
    Ok(0)
}

pub(crate) fn sleep(seconds: u64) -> u8 {
    thread::sleep(Duration::from_secs(seconds));
    0
}

/// Prints `line 1` … `line N`, one each interval.
pub(crate) fn lines(count: u64, interval_ms: u64) -> Result<u8, String> {
    for number in 1..=count {
        print(&format!("line {number}"))?;
        thread::sleep(Duration::from_millis(interval_ms));
    }
    Ok(0)
}

/// Dies by a signal, as a program with a bug does.
pub(crate) fn crash() -> Result<u8, String> {
    nix::sys::signal::raise(Signal::SIGSEGV).map_err(|error| error.to_string())?;
    Err(String::from("survived SIGSEGV"))
}

/// Prints the name of each signal that comes, until SIGTERM.
pub(crate) fn signals() -> Result<u8, String> {
    let set = SigSet::all();
    set.thread_block().map_err(|error| error.to_string())?;
    print("waiting for signals")?;
    loop {
        let signal = set.wait().map_err(|error| error.to_string())?;
        print(signal.as_str())?;
        if signal == Signal::SIGTERM {
            return Ok(0);
        }
    }
}

pub(crate) fn echo_stdin() -> Result<u8, String> {
    io::copy(&mut io::stdin(), &mut io::stdout()).map_err(failed("copying"))?;
    Ok(0)
}

/// Takes memory page by page, says so, and holds it until killed.
pub(crate) fn allocate(mib: u64) -> Result<u8, String> {
    let bytes = usize::try_from(mib).map_err(|error| error.to_string())? * MIB;
    let mut memory = vec![0_u8; bytes];
    for page in memory.chunks_mut(PAGE_BYTES) {
        page.fill(1);
    }
    print(&format!("holding {mib} MiB"))?;
    loop {
        thread::park();
        std::hint::black_box(&memory);
    }
}

pub(crate) fn spin(seconds: u64) -> u8 {
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        std::hint::spin_loop();
    }
    0
}

/// Starts sleeping children until N run or the kernel refuses; prints how many.
pub(crate) fn fork(count: u64) -> Result<u8, String> {
    let program = std::env::current_exe().map_err(failed("finding myself"))?;
    let mut children = Vec::new();
    for _ in 0..count {
        match Command::new(&program).args(["sleep", "3600"]).spawn() {
            Ok(child) => children.push(child),
            Err(error) => {
                print(&format!("refused: {error}"))?;
                break;
            }
        }
    }
    print(&format!("{} children", children.len()))?;
    for child in &mut children {
        child.kill().and_then(|()| child.wait()).map_err(failed("ending a child"))?;
    }
    Ok(0)
}

/// Writes a file of that size and syncs it.
pub(crate) fn fill(path: &str, mib: u64) -> Result<u8, String> {
    let mut file = fs::File::create(path).map_err(failed(path))?;
    let block = vec![0x5a; MIB];
    for _ in 0..mib {
        file.write_all(&block).map_err(failed(path))?;
    }
    file.sync_all().map_err(failed(path))?;
    print(&format!("wrote {mib} MiB"))
}

pub(crate) fn write(path: &str, text: &str) -> Result<u8, String> {
    fs::write(path, text).map_err(failed(path))?;
    Ok(0)
}

pub(crate) fn append(path: &str, text: &str) -> Result<u8, String> {
    let mut file = OpenOptions::new().append(true).create(true).open(path).map_err(failed(path))?;
    writeln!(file, "{text}").map_err(failed(path))?;
    let mut all = String::new();
    fs::File::open(path).and_then(|mut file| file.read_to_string(&mut all)).map_err(failed(path))?;
    print(all.trim_end())
}
