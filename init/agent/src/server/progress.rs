//! Lines of progress streams: one JSON object each, as the reference engine words them.

use berth_api::docker::images::{ErrorDetail, Progress as Line};
use bytes::Bytes;

use super::respond::json_line;

/// Lines on their way to the client; steps beyond are left out, the last lines never.
pub(crate) const LINES_IN_FLIGHT: usize = 256;

/// The line that ends a stream of something that failed.
pub(crate) fn failure(message: &str) -> Bytes {
    json_line(&Line {
        error_detail: Some(ErrorDetail { code: 0, message: message.to_owned() }),
        error: message.to_owned(),
        ..Line::default()
    })
}

/// `[====>      ]  1.2MB/3.4MB`, for clients that print it as it is.
pub(crate) fn bar(current: u64, total: u64) -> String {
    const WIDTH: u64 = 50;
    if total == 0 {
        return human_size(current);
    }
    let done = (current.min(total) * WIDTH / total).min(WIDTH);
    let fill = usize::try_from(done).unwrap_or(0);
    let rest = usize::try_from(WIDTH - done).unwrap_or(0);
    let head = if done < WIDTH { ">" } else { "" };
    let blanks = " ".repeat(rest.saturating_sub(1));
    format!("[{}{head}{blanks}] {:>8}/{}", "=".repeat(fill), human_size(current), human_size(total))
}

/// Four digits and a decimal unit, as the reference engine writes sizes.
fn human_size(bytes: u64) -> String {
    #[allow(clippy::cast_precision_loss, reason = "shown with four digits")]
    let mut value = bytes as f64;
    let mut units = ["B", "kB", "MB", "GB", "TB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    for next in units {
        if value < 1000.0 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    let digits = match value {
        value if value < 10.0 => 3,
        value if value < 100.0 => 2,
        value if value < 1000.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_look_like_dockers() {
        assert_eq!(bar(0, 3_370_000), format!("[>{}]       0B/3.37MB", " ".repeat(49)));
        assert_eq!(bar(10, 10), format!("[{}]      10B/10B", "=".repeat(50)));
        assert_eq!(human_size(1_234_567), "1.235MB");
        assert_eq!(human_size(999), "999B");
    }
}
