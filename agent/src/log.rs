//! Lines on the console. The host keeps the console's tail and shows it when a VM fails,
//! so what goes wrong unexpectedly says so here.

use std::{
    cell::Cell,
    fmt,
    io::Write,
    time::{Duration, Instant},
};

/// A container may provoke lines: this many at once, then one a second.
const BURST: u32 = 16;

thread_local! {
    static LIMIT: Cell<Option<(u32, Instant)>> = const { Cell::new(None) };
}

/// Prints `caisson-agent: <line>` on standard error unless too many lines came before.
pub fn line(message: fmt::Arguments<'_>) {
    let now = Instant::now();
    let (left, since) = LIMIT.get().unwrap_or((BURST, now));
    let (left, since) = refill(left, now.duration_since(since), since, now);
    LIMIT.set(Some((left.saturating_sub(1), since)));
    if left > 0 {
        // A console that cannot be written leaves nowhere to say so.
        let _ = writeln!(std::io::stderr(), "caisson-agent: {message}");
    }
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
