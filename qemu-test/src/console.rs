//! The guest's serial console: every line kept in memory and in a file, and waited for under a deadline.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// More than this much console means a guest in a loop; the rest goes to the file only. Unit: lines.
const LINES_MAX: usize = 200_000;

/// The kernel's last words: nothing waited for can come after them.
const PANIC: &str = "Kernel panic - not syncing";

/// How many lines an error shows.
const SHOWN_LINES: usize = 25;

/// A console being read. Clones read the same one.
#[derive(Clone)]
pub struct Console {
    shared: Arc<Shared>,
}

struct Shared {
    lines: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Default)]
struct Lines {
    all: Vec<Line>,
    closed: bool,
}

/// One console line.
#[derive(Debug, Clone)]
pub struct Line {
    /// Its text without line end and control characters.
    pub text: String,
    /// When it came.
    pub at: Instant,
}

impl Line {
    /// The kernel's own time stamp, when the line has one.
    pub fn kernel_time(&self) -> Option<Duration> {
        let (stamp, _) = self.text.strip_prefix('[')?.split_once(']')?;
        let seconds: f64 = stamp.trim().parse().ok()?;
        Duration::try_from_secs_f64(seconds).ok()
    }
}

impl Console {
    /// Reads `stream` until it ends, copying everything to `file`, and to the terminal when `echo` is set.
    pub fn read(stream: impl Read + Send + 'static, file: &Path, echo: bool) -> Result<Self> {
        let mut copy = File::create(file).with_context(|| format!("making {}", file.display()))?;
        let shared = Arc::new(Shared { lines: Mutex::default(), changed: Condvar::new() });
        let console = Self { shared };
        let reader = console.clone();
        thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                // The file is a help for people; the lines in memory are what counts.
                let _ = copy.write_all(&line).and_then(|()| copy.write_all(b"\n"));
                let text = clean(&line);
                if echo {
                    println!("{text}");
                }
                reader.add(text);
            }
            reader.lock().closed = true;
            reader.shared.changed.notify_all();
        });
        Ok(console)
    }

    fn add(&self, text: String) {
        let mut lines = self.lock();
        if lines.all.len() < LINES_MAX {
            lines.all.push(Line { text, at: Instant::now() });
        }
        drop(lines);
        self.shared.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.shared.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many lines there are now; a place to wait from.
    pub fn mark(&self) -> usize {
        self.lock().all.len()
    }

    /// Every line so far.
    pub fn lines(&self) -> Vec<Line> {
        self.lock().all.clone()
    }

    /// Waits for a line that contains `needle`, looking at lines from `mark` on. A panic or the console's end is an
    /// error at once.
    pub fn wait_for(&self, mark: usize, needle: &str, within: Duration) -> Result<Line> {
        let deadline = Instant::now() + within;
        let mut seen = mark;
        let mut lines = self.lock();
        loop {
            for line in lines.all.iter().skip(seen) {
                if line.text.contains(needle) {
                    return Ok(line.clone());
                }
                if line.text.contains(PANIC) {
                    bail!("the guest's kernel panicked before «{needle}»:\n{}", tail(&lines.all));
                }
            }
            seen = lines.all.len().max(mark);
            if lines.closed {
                bail!("the console ended before «{needle}»:\n{}", tail(&lines.all));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("no «{needle}» on the console within {within:?}:\n{}", tail(&lines.all));
            }
            lines = self.shared.changed.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The line of a number, as soon as there is one.
    pub fn next_line(&self, number: usize, deadline: Instant) -> Result<Line> {
        let mut lines = self.lock();
        loop {
            if let Some(line) = lines.all.get(number) {
                return Ok(line.clone());
            }
            if lines.closed {
                bail!("the console ended at line {number}:\n{}", tail(&lines.all));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("no line {number} on the console in time:\n{}", tail(&lines.all));
            }
            lines = self.shared.changed.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The first line so far that contains `needle`.
    pub fn find(&self, needle: &str) -> Option<Line> {
        self.lock().all.iter().find(|line| line.text.contains(needle)).cloned()
    }
}

fn tail(lines: &[Line]) -> String {
    let shown = lines.iter().skip(lines.len().saturating_sub(SHOWN_LINES));
    shown.map(|line| format!("  {}", line.text)).collect::<Vec<_>>().join("\n")
}

fn clean(line: &[u8]) -> String {
    String::from_utf8_lossy(line).chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::Console;
    use std::io::Cursor;
    use std::time::Duration;

    fn console(text: &'static str) -> Console {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        Console::read(Cursor::new(text), file.path(), false).expect("console")
    }

    #[test]
    fn lines_are_found_with_their_kernel_time() {
        let line = console("[    1.250000] init: stage2\r\nrest")
            .wait_for(0, "stage2", Duration::from_secs(5))
            .expect("line");
        assert_eq!(line.kernel_time(), Some(Duration::from_millis(1250)));
    }

    #[test]
    fn the_end_of_the_console_and_a_panic_are_errors_before_the_deadline() {
        for (text, reason) in
            [("a\nb\n", "the console ended"), ("[ 1.0] Kernel panic - not syncing: x\nnever\n", "panicked")]
        {
            let error = console(text).wait_for(0, "never", Duration::from_secs(5)).expect_err("no such line");
            assert!(error.to_string().contains(reason), "{error}");
        }
    }

    #[test]
    fn a_mark_hides_earlier_lines() {
        let console = console("one\ntwo\n");
        console.wait_for(0, "two", Duration::from_secs(5)).expect("line");
        assert!(console.wait_for(1, "one", Duration::from_millis(10)).is_err());
    }
}
