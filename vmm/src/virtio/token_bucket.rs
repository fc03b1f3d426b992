//! How much of something may be used, on average and in a burst.

use std::time::{Duration, Instant};

/// Fills up at a constant rate; what is taken must be in it.
#[derive(Debug)]
pub struct TokenBucket {
    capacity: u64,
    /// Time in which one token comes in.
    interval: Duration,
    /// When the bucket would have been empty, had nothing been taken since: it holds the
    /// tokens from then on.
    empty_since: Instant,
}

impl TokenBucket {
    /// A full bucket of `capacity` that takes in `per_second` (not 0, at most 10^9).
    pub fn new(capacity: u64, per_second: u32, now: Instant) -> Self {
        let interval = Duration::from_secs(1) / per_second.max(1);
        let mut bucket = Self { capacity, interval, empty_since: now };
        bucket.empty_since = now.checked_sub(bucket.time_of(capacity)).unwrap_or(now);
        bucket
    }

    /// How long until there are `tokens`, at most the capacity; zero if there are now.
    pub fn wait_for(&self, tokens: u64, now: Instant) -> Duration {
        let enough = self.empty_since + self.time_of(tokens.min(self.capacity));
        enough.saturating_duration_since(now)
    }

    /// Takes `tokens`, at most what there are.
    pub fn take(&mut self, tokens: u64, now: Instant) {
        let full_since = now.checked_sub(self.time_of(self.capacity)).unwrap_or(self.empty_since);
        self.empty_since = self.empty_since.max(full_since);
        self.empty_since = (self.empty_since + self.time_of(tokens.min(self.capacity))).min(now);
    }

    fn time_of(&self, tokens: u64) -> Duration {
        self.interval.saturating_mul(u32::try_from(tokens).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_burst_is_followed_by_the_rate() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(10, 1000, start);
        assert_eq!(bucket.wait_for(10, start), Duration::ZERO);
        bucket.take(10, start);
        assert_eq!(bucket.wait_for(1, start), MS);
        assert_eq!(bucket.wait_for(5, start + 2 * MS), 3 * MS);
        bucket.take(2, start + 2 * MS);
        assert_eq!(bucket.wait_for(1, start + 2 * MS), MS);
    }

    #[test]
    fn it_never_holds_more_than_its_capacity() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(10, 1000, start);
        let later = start + 1000 * MS;
        bucket.take(10, later);
        assert_eq!(bucket.wait_for(1, later), MS);
        assert_eq!(bucket.wait_for(1_000_000, later), 10 * MS, "more than ever fit");
    }
}
