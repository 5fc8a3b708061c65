//! Shows long steps: a spinner with the time on a terminal, plain lines elsewhere (CI logs, pipes).

use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

/// How often the spinner turns.
const TICK: Duration = Duration::from_millis(120);

/// The longest sub-message beside a spinner, so that a line never wraps; unit: characters.
const MESSAGE_CHARACTERS: usize = 70;

/// One step under way. Dropping it without [`Step::done`] leaves no spinner behind.
pub(crate) struct Step {
    label: String,
    began: Instant,
    bar: Option<ProgressBar>,
}

impl Step {
    /// Announces a step, for example `kernel` or `root image`.
    pub(crate) fn start(label: impl Into<String>) -> Self {
        let label = label.into();
        let bar = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner:.cyan} {prefix} {wide_msg:.dim} {elapsed}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            let bar = ProgressBar::new_spinner().with_style(style).with_prefix(label.clone());
            bar.enable_steady_tick(TICK);
            bar
        });
        if bar.is_none() {
            eprintln!("· {label} …");
        }
        Self { label, began: Instant::now(), bar }
    }

    /// Shows what the step is at now; seen on a terminal only.
    pub(crate) fn message(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.trim().chars().take(MESSAGE_CHARACTERS).collect::<String>());
        }
    }

    /// Shows a stage of a step that takes minutes; where there is no terminal it is a line of its own.
    pub(crate) fn milestone(&self, text: &str) {
        match &self.bar {
            Some(_) => self.message(text),
            None => eprintln!("  {} {text}", self.label),
        }
    }

    /// Ends the step with what came of it and how long it took; returns the time.
    pub(crate) fn done(self, result: &str) -> Duration {
        let took = self.began.elapsed();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let separator = if result.is_empty() { "" } else { ": " };
        eprintln!("✓ {}{separator}{result} ({:.1} s)", self.label, took.as_secs_f64());
        took
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Bytes as people read them, in decimal megabytes or kilobytes.
pub(crate) fn size(bytes: u64) -> String {
    let tenths = |unit: u64| format!("{}.{}", bytes / unit, bytes % unit * 10 / unit);
    if bytes >= 1_000_000 { format!("{} MB", tenths(1_000_000)) } else { format!("{} kB", tenths(1_000)) }
}

/// The same as a number, for tables.
#[expect(clippy::cast_precision_loss, reason = "sizes of files and memory are far below 2^52 bytes")]
pub(crate) fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_are_decimal() {
        for (bytes, text) in
            [(0, "0.0 kB"), (999_999, "999.9 kB"), (1_000_000, "1.0 MB"), (44_950_000, "44.9 MB")]
        {
            assert_eq!(size(bytes), text);
        }
    }
}
