//! Adjusting the clock (clock_adjtime(2)).

use std::io;
use std::time::Duration;

/// Lets the real-time clock run a little faster (or slower, when `backwards`) until it has made up `offset`. The
/// kernel changes it by 500 µs a second; anything above half a second is better stepped.
pub fn slew(offset: Duration, backwards: bool) -> io::Result<()> {
    let micros = libc::c_long::try_from(offset.as_micros())
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: timex is made of integers, for which all zeros is a value.
    let mut request: libc::timex = unsafe { std::mem::zeroed() };
    request.modes = libc::ADJ_OFFSET_SINGLESHOT;
    request.offset = if backwards { -micros } else { micros };
    // SAFETY: request is a valid timex for the whole call.
    let outcome = unsafe { libc::clock_adjtime(libc::CLOCK_REALTIME, &raw mut request) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
