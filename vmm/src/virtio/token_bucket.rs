//! How much of something may be used, on average and in a burst.
//!
//! Tokens come in at a constant rate and are taken before they are used, by reservation:
//! whoever takes some is told how long to wait for them, and the next has to wait for
//! those that come in after that. So a few users share one bucket fairly, each with one
//! request that waits.
//!
//! What is larger than the bucket waits until it is full, and leaves a debt.

use std::time::Duration;

use crate::config::Rate;

/// Wide enough that no number of tokens at any rate overflows it.
type Nanos = i128;

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// Longer than anyone waits; a timer can be set to it.
const MAX_WAIT: Duration = Duration::from_secs(1 << 30);

#[derive(Debug)]
pub struct TokenBucket {
    rate: Rate,
    /// When the bucket was, or will be, empty: it has what has come in since.
    empty_at: Nanos,
    /// The clock's latest reading, for it must not seem to go back.
    now: Nanos,
}

impl TokenBucket {
    /// A full bucket. A rate of 0 is taken for 1.
    pub fn new(rate: Rate, now: Duration) -> Self {
        let now = nanos(now);
        let mut bucket = Self { rate, empty_at: now, now };
        bucket.empty_at = now.saturating_sub(bucket.time_of(rate.burst));
        bucket
    }

    /// Takes `tokens`, which may be used when the returned time has passed. `now` is read
    /// from a clock that does not stop.
    pub fn take(&mut self, tokens: u64, now: Duration) -> Duration {
        self.now = self.now.max(nanos(now));
        let full_bucket = self.time_of(self.rate.burst);
        // What has come in to a full bucket is lost.
        let empty_at = self.empty_at.max(self.now.saturating_sub(full_bucket));
        let cost = self.time_of(tokens);
        self.empty_at = empty_at.saturating_add(cost);
        let there_at = empty_at.saturating_add(cost.min(full_bucket));
        let wait = u64::try_from(there_at.saturating_sub(self.now).max(0)).unwrap_or(u64::MAX);
        Duration::from_nanos(wait).min(MAX_WAIT)
    }

    /// In which so many come in, rounded up: no rounding is to the guest's advantage.
    fn time_of(&self, tokens: u64) -> Nanos {
        let time = u128::from(tokens) * NANOS_PER_SECOND;
        // At most 2^64 * 10^9.
        time.div_ceil(u128::from(self.rate.per_second.max(1))) as Nanos
    }
}

/// At most 2^64 seconds, which is less than 2^94 nanoseconds.
fn nanos(time: Duration) -> Nanos {
    time.as_nanos() as Nanos
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn bucket(burst: u64) -> TokenBucket {
        TokenBucket::new(Rate { per_second: 1000, burst }, Duration::ZERO)
    }

    #[test]
    fn a_burst_is_followed_by_the_rate() {
        let mut bucket = bucket(10);
        assert_eq!(bucket.take(10, Duration::ZERO), Duration::ZERO);
        assert_eq!(bucket.take(1, Duration::ZERO), MS);
        assert_eq!(bucket.take(5, 2 * MS), 4 * MS);
        assert_eq!(bucket.take(1, 10 * MS), Duration::ZERO);
    }

    #[test]
    fn it_never_holds_more_than_its_burst() {
        let mut bucket = bucket(10);
        assert_eq!(bucket.take(10, 1000 * MS), Duration::ZERO);
        assert_eq!(bucket.take(1, 1000 * MS), MS);
    }

    #[test]
    fn what_is_larger_than_the_burst_passes_and_is_made_up_for() {
        let mut bucket = bucket(10);
        assert_eq!(bucket.take(100, Duration::ZERO), Duration::ZERO);
        assert_eq!(bucket.take(1, Duration::ZERO), 91 * MS);
    }

    #[test]
    fn a_clock_that_jumps_back_does_no_harm() {
        let mut bucket = bucket(10);
        bucket.take(10, Duration::from_secs(3600));
        assert_eq!(bucket.take(1, Duration::ZERO), MS, "neither an hour nor nothing");
        assert_eq!(bucket.take(1, Duration::from_secs(3600)), 2 * MS);
    }

    #[test]
    fn two_users_of_one_bucket_take_turns() {
        let mut bucket = bucket(1);
        bucket.take(1, Duration::ZERO);
        // (user, when its request may go); each asks again as soon as it went.
        let mut waiting =
            [(0, bucket.take(1, Duration::ZERO)), (1, bucket.take(1, Duration::ZERO))];
        let mut went = [0, 0];
        for _ in 0..100 {
            waiting.sort_by_key(|(_, at)| *at);
            let (user, now) = waiting[0];
            went[user] += 1;
            waiting[0].1 = now + bucket.take(1, now);
        }
        assert_eq!(went, [50, 50]);
    }

    fn any_rate() -> impl Strategy<Value = Rate> {
        let edge = || prop_oneof![0_u64..5, 1_u64..10_000, any::<u64>(), Just(u64::MAX)];
        (edge(), edge()).prop_map(|(per_second, burst)| Rate { per_second, burst })
    }

    proptest! {
        /// Each request goes when its wait is over, whatever the pauses between them.
        #[test]
        fn what_passes_is_at_most_the_burst_and_the_rate(
            per_second in 1_u64..5_000_000_000,
            burst in 1_u64..1 << 40,
            requests in prop::collection::vec((0_u64..1 << 33, 0_u64..10_000_000_000), 1..50),
        ) {
            let rate = Rate { per_second, burst };
            let mut bucket = TokenBucket::new(rate, Duration::ZERO);
            let (mut now, mut passed) = (Duration::ZERO, 0_u128);
            for (tokens, pause) in requests {
                now += Duration::from_nanos(pause);
                let wait = bucket.take(tokens, now);
                now += wait;
                passed += u128::from(tokens);
                let came_in = now.as_nanos() * u128::from(per_second) / 1_000_000_000;
                let larger = u128::from(tokens.saturating_sub(burst));
                prop_assert!(passed <= came_in + u128::from(burst) + larger);
            }
        }

        /// And not much less: a request only waits for what the requests before it took.
        #[test]
        fn nobody_waits_longer_than_the_rate_needs(
            per_second in 1_u64..1_000_000_000,
            burst in 1_u64..1 << 40,
            requests in prop::collection::vec(0_u64..1 << 33, 1..50),
        ) {
            let rate = Rate { per_second, burst };
            let mut bucket = TokenBucket::new(rate, Duration::ZERO);
            let mut taken = 0_u128;
            for tokens in requests {
                taken += u128::from(tokens);
                let wait = bucket.take(tokens, Duration::ZERO);
                let needed = taken * 1_000_000_000 / u128::from(per_second);
                // Each is rounded up to a nanosecond.
                prop_assert!(wait.as_nanos() <= needed + 50);
            }
        }

        #[test]
        fn nothing_overflows_and_every_wait_fits_a_timer(
            rate in any_rate(),
            requests in prop::collection::vec((any::<u64>(), any::<u64>(), 0_u32..1_000_000_000), 0..50),
        ) {
            let mut bucket = TokenBucket::new(rate, Duration::MAX);
            for (tokens, secs, nanos) in requests {
                prop_assert!(bucket.take(tokens, Duration::new(secs, nanos)) <= MAX_WAIT);
            }
        }
    }
}
