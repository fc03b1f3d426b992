//! virtio-rng, the host's entropy (virtio 1.2 §5.4).
//!
//! A guest seeds its own generator from a few bytes and needs no more; what one may draw
//! is limited, so that it cannot keep a CPU of the host busy.

use std::io;

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::{
    ActivateError, Activation, VirtioDevice, Worker,
    chain::Chain,
    device_queue::{Budget, DeviceQueue, QueueError, RING_FEATURES, single_queue},
    throttle::{RateLimiter, SharedLimiter, Throttle},
};
use crate::config::{Rate, RateLimit};

const QUEUE_SIZE: u16 = 16;

/// Most bytes for one request; the driver asks again for more.
const MAX_REQUEST_BYTES: usize = 4096;
/// What a guest may draw, in bytes.
const LIMIT: Rate = Rate { per_second: 256 << 10, burst: 64 << 10 };
/// What a request counts for at least, however small.
const MIN_COST_BYTES: usize = 64;
const BUDGET: Budget = Budget { chains: QUEUE_SIZE as usize, bytes: 1 << 20 };

/// The device as its transport sees it.
pub struct Rng {
    limiter: Option<SharedLimiter>,
}

impl Rng {
    pub fn new() -> Self {
        let limit = RateLimit { bandwidth: Some(LIMIT), operations: None };
        Self { limiter: RateLimiter::new(limit) }
    }
}

impl Default for Rng {
    fn default() -> Self {
        Self::new()
    }
}

impl VirtioDevice for Rng {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        RING_FEATURES
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        let throttle = Throttle::new(self.limiter.as_ref())?;
        Ok(Box::new(RngWorker { queue: single_queue(activation)?, throttle }))
    }
}

struct RngWorker {
    queue: DeviceQueue,
    throttle: Throttle,
}

impl MutEventSubscriber for RngWorker {
    fn init(&mut self, ops: &mut EventOps) {
        self.queue.register(ops);
        self.throttle.register(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if !self.throttle.on_event(events) {
            self.queue.on_event(events, ops);
        }
        self.throttle.serve(&mut self.queue, BUDGET, cost, fill);
        self.queue.signal();
    }
}

fn cost(chain: &Chain) -> usize {
    chain.writable.bytes().clamp(MIN_COST_BYTES, MAX_REQUEST_BYTES)
}

/// Writes random bytes to the chain's buffers, and returns how many.
fn fill(chain: &mut Chain) -> Result<u32, QueueError> {
    let wanted = chain.writable.bytes().min(MAX_REQUEST_BYTES);
    if wanted == 0 {
        return Err(QueueError::Layout);
    }
    let mut bytes = [0; MAX_REQUEST_BYTES];
    let got = random(&mut bytes[..wanted]).map_err(QueueError::Host)?;
    Ok(chain.writable.write(&bytes[..got]) as u32)
}

/// Fills `target` from the kernel's generator, or as much of it as one call does.
fn random(target: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes to `target`, which is as long as it is told.
    let got = unsafe { libc::getrandom(target.as_mut_ptr().cast(), target.len(), 0) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;
    use crate::virtio::testing::{
        Buffer::{Readable, Writable},
        DATA, Driver, RAM_END, Used,
    };

    /// What a limiter that was made then lets pass at most, of requests of so many bytes.
    fn most(since: Instant, bytes: usize) -> usize {
        let came_in = since.elapsed().as_secs_f64() * LIMIT.per_second as f64;
        (LIMIT.burst as usize + came_in as usize) / bytes
    }

    fn driver() -> Driver {
        Driver::new(&mut super::Rng::new())
    }

    #[test]
    fn buffers_are_filled_with_random_bytes() {
        let mut driver = driver();
        let used = driver.submit(0, &[Writable(DATA, 100), Writable(DATA + 200, 100)]);
        assert_eq!(used, [Used { head: 0, written: 200 }]);
        let (first, second) = (driver.read(DATA, 100), driver.read(DATA + 200, 100));
        assert_ne!(first, [0; 100]);
        assert_ne!(first, second);
        assert_eq!(driver.read(DATA + 100, 100), [0; 100]);
    }

    // Hostile case 26.

    #[test]
    fn a_huge_request_gets_a_little() {
        let mut driver = driver();
        let before = driver.snapshot();
        let used = driver.submit(0, &[Writable(DATA, 1 << 20)]);
        assert_eq!(used, [Used { head: 0, written: MAX_REQUEST_BYTES as u32 }]);
        let written = DATA..DATA + MAX_REQUEST_BYTES as u64;
        driver.assert_unchanged_except(&before, std::slice::from_ref(&written));
    }

    #[test]
    fn endless_requests_are_limited_and_go_on_when_time_has_passed() {
        let start = Instant::now();
        let mut driver = driver();
        let mut served = 0;
        for _ in 0..100 {
            served += driver.submit(0, &[Writable(DATA, 4096)]).len();
            if driver.queues[0].free_count() == 0 {
                break;
            }
        }
        let least = LIMIT.burst as usize / MAX_REQUEST_BYTES;
        assert!((least..=most(start, MAX_REQUEST_BYTES)).contains(&served), "{served}");
        // 4 KiB come in within 16 ms; the timer says so without a kick.
        assert_eq!(driver.run_for(1000), 1);
        assert!(!driver.queues[0].take_used().is_empty());
    }

    #[test]
    fn endless_small_requests_are_limited_too() {
        let start = Instant::now();
        let mut driver = driver();
        let mut served = 0;
        while driver.queues[0].free_count() > 0 && served < 10_000 {
            served += driver.submit(0, &[Writable(DATA, 1)]).len();
        }
        assert!(served <= most(start, MIN_COST_BYTES), "{served}");
    }

    #[test]
    fn a_reset_does_not_fill_the_bucket_again() {
        let start = Instant::now();
        let mut device = super::Rng::new();
        let mut driver = Driver::new(&mut device);
        let mut served = 0;
        for _ in 0..100 {
            driver.reset();
            driver.activate(&mut device);
            served += driver.submit(0, &[Writable(DATA, 4096)]).len();
        }
        let least = LIMIT.burst as usize / MAX_REQUEST_BYTES;
        assert!((least..=most(start, MAX_REQUEST_BYTES)).contains(&served), "{served}");
    }

    #[test]
    fn a_readable_buffer_latches_the_queue() {
        let mut driver = driver();
        assert_eq!(driver.submit(0, &[Readable(DATA, 100)]), []);
        assert!(driver.interrupt.is_reset_needed());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn only_writable_buffers_change(
            buffers in prop::collection::vec((DATA..RAM_END + 100, 0_u32..5000), 1..8),
        ) {
            let mut driver = driver();
            let before = driver.snapshot();
            let ranges: Vec<_> =
                buffers.iter().map(|(start, bytes)| *start..start + u64::from(*bytes)).collect();
            let buffers: Vec<_> =
                buffers.iter().map(|(start, bytes)| Writable(*start, *bytes)).collect();
            driver.submit(0, &buffers);
            driver.assert_unchanged_except(&before, &ranges);
        }
    }
}
