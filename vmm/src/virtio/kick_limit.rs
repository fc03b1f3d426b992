//! How often a driver may wake a worker for nothing.
//!
//! A guest can notify a queue in a tight loop without making anything available. Each
//! notification costs the guest an exit and the I/O thread a wake-up; after a run of
//! useless ones the thread does not listen for a while.

use std::time::Duration;

/// Useless notifications in a row after which a queue is muted. A driver that keeps the
/// rules of notification suppression sends a few at most.
const MAX_IDLE_KICKS: u32 = 64;
/// How long it is muted: what it then makes available waits at most this long.
pub const MUTE: Duration = Duration::from_millis(5);

/// Counts the notifications of one queue.
#[derive(Debug, Default)]
pub struct KickLimit {
    idle_kicks: u32,
    /// Whether a chain was taken since the last notification.
    useful: bool,
}

impl KickLimit {
    /// A chain was taken.
    pub fn note_use(&mut self) {
        self.useful = true;
    }

    /// The queue was notified. Returns whether to stop listening for [`MUTE`].
    #[must_use]
    pub fn on_kick(&mut self) -> bool {
        self.idle_kicks = if std::mem::take(&mut self.useful) { 0 } else { self.idle_kicks + 1 };
        let mute = self.idle_kicks > MAX_IDLE_KICKS;
        if mute {
            self.idle_kicks = 0;
        }
        mute
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_useless_kicks_mutes_the_queue() {
        let mut limit = KickLimit::default();
        let muted = (0..MAX_IDLE_KICKS * 10).filter(|_| limit.on_kick()).count();
        assert_eq!(muted, 9);
    }

    #[test]
    fn a_useful_kick_forgives_the_useless_ones() {
        let mut limit = KickLimit::default();
        for n in 0..MAX_IDLE_KICKS * 10 {
            if n % MAX_IDLE_KICKS == 0 {
                limit.note_use();
            }
            assert!(!limit.on_kick());
        }
    }
}
