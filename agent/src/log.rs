//! Lines on the console. The host keeps the console's tail and shows it when a VM fails,
//! so what goes wrong unexpectedly says so here.
//!
//! They go through the kernel's log, which writes to the serial port before it returns: a
//! line written to the terminal itself would be lost in its buffer when the VM ends next.

use std::{
    cell::Cell,
    fmt,
    fs::OpenOptions,
    io::Write,
    time::{Duration, Instant},
};

/// A container may provoke lines: this many at once, then one a second.
const BURST: u32 = 16;

thread_local! {
    static LIMIT: Cell<Option<(u32, Instant)>> = const { Cell::new(None) };
}

/// Prints `caisson-agent: <line>` on the console unless too many lines came before.
pub fn line(message: fmt::Arguments<'_>) {
    let now = Instant::now();
    let (left, since) = LIMIT.get().unwrap_or((BURST, now));
    let (left, since) = refill(left, now.duration_since(since), since, now);
    LIMIT.set(Some((left.saturating_sub(1), since)));
    if left > 0 {
        write(&format!("caisson-agent: {message}\n"));
    }
}

/// To the kernel's log at a level that even a quiet console shows, or, where there is none
/// as in tests, to standard error.
fn write(line: &str) {
    let kernel_log = match std::process::id() {
        1 => OpenOptions::new().write(true).open("/dev/kmsg"),
        _ => Err(std::io::ErrorKind::Unsupported.into()),
    };
    // A console that cannot be written leaves nowhere to say so.
    let _ = match kernel_log {
        Ok(mut log) => log.write_all(format!("<2>{line}").as_bytes()),
        Err(_) => std::io::stderr().write_all(line.as_bytes()),
    };
}

fn refill(left: u32, elapsed: Duration, since: Instant, now: Instant) -> (u32, Instant) {
    match u32::try_from(elapsed.as_secs()).unwrap_or(BURST) {
        0 => (left, since),
        seconds => (left.saturating_add(seconds).min(BURST), now),
    }
}

/// Logs one line to the console; rate-limited.
#[macro_export]
macro_rules! log {
    ($($message:tt)*) => { $crate::log::line(format_args!($($message)*)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_comes_back_with_time_but_never_beyond_the_burst() {
        let start = Instant::now();
        assert_eq!(refill(0, Duration::from_millis(900), start, start).0, 0);
        assert_eq!(refill(0, Duration::from_secs(2), start, start).0, 2);
        assert_eq!(refill(3, Duration::from_secs(1 << 40), start, start).0, BURST);
    }
}
