//! virtio-rng, the host's entropy (virtio 1.2 §5.4).
//!
//! A guest seeds its own generator from a few bytes and needs no more; what one may draw
//! is limited, so that it cannot keep a CPU of the host busy.

use std::{io, time::Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use vmm_sys_util::timerfd::TimerFd;

use super::{
    ActivateError, Activation, VirtioDevice, Worker,
    chain::Chain,
    device_queue::{DeviceQueue, QueueError, RING_FEATURES, single_queue},
    token_bucket::TokenBucket,
};

const QUEUE_SIZE: u16 = 16;

/// Most bytes for one request; the driver asks again for more.
const MAX_REQUEST_BYTES: usize = 4096;
/// Most bytes in a burst and in a second.
const BURST_BYTES: u64 = 64 << 10;
const BYTES_PER_SECOND: u32 = 256 << 10;
/// What a request costs at least, however small.
const MIN_COST_BYTES: u64 = 64;

/// The device as its transport sees it.
#[derive(Default)]
pub struct Rng;

impl Rng {
    pub fn new() -> Self {
        Self
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
        let timer = TimerFd::new().map_err(|error| ActivateError::Descriptor(error.into()))?;
        Ok(Box::new(RngWorker {
            queue: single_queue(activation)?,
            bucket: TokenBucket::new(BURST_BYTES, BYTES_PER_SECOND, Instant::now()),
            timer,
        }))
    }
}

struct RngWorker {
    queue: DeviceQueue,
    bucket: TokenBucket,
    /// Runs while requests wait for the bucket.
    timer: TimerFd,
}

impl MutEventSubscriber for RngWorker {
    fn init(&mut self, ops: &mut EventOps) {
        self.queue.register(ops);
        // Edge-triggered, so that the timer need not be read.
        ops.add(Events::new(&self.timer, EventSet::IN | EventSet::EDGE_TRIGGERED))
            .expect("the timer is new");
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        self.queue.on_event(events, ops);
        self.serve(Instant::now());
    }
}

impl RngWorker {
    /// Fills the driver's buffers while the bucket allows it.
    fn serve(&mut self, now: Instant) {
        loop {
            let wait = self.bucket.wait_for(MAX_REQUEST_BYTES as u64, now);
            if !wait.is_zero() {
                // Notifications stay off meanwhile. With a timer that was made and a
                // duration above zero it cannot fail.
                let _ = self.timer.reset(wait, None);
                break;
            }
            let Some(mut chain) = self.queue.pop() else {
                if self.queue.enable_notifications() {
                    continue;
                }
                break;
            };
            match fill(&mut chain) {
                Ok(bytes) => {
                    self.bucket.take(u64::from(bytes).max(MIN_COST_BYTES), now);
                    self.queue.complete(chain, bytes);
                }
                Err(error) => self.queue.fail(error),
            }
        }
        self.queue.signal();
    }
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
    use proptest::prelude::*;

    use super::*;
    use crate::virtio::testing::{
        Buffer::{Readable, Writable},
        DATA, Driver, RAM_END, Used,
    };

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
        let mut driver = driver();
        let mut served = 0;
        for _ in 0..100 {
            served += driver.submit(0, &[Writable(DATA, 4096)]).len();
            if driver.queues[0].free_count() == 0 {
                break;
            }
        }
        let limit = BURST_BYTES as usize / MAX_REQUEST_BYTES;
        assert!((limit..limit + 4).contains(&served), "{served}");
        // 4 KiB come in within 16 ms; the timer says so without a kick.
        assert_eq!(driver.run_for(1000), 1);
        assert!(!driver.queues[0].take_used().is_empty());
    }

    #[test]
    fn endless_small_requests_are_limited_too() {
        let mut driver = driver();
        let mut served = 0;
        while driver.queues[0].free_count() > 0 && served < 10_000 {
            served += driver.submit(0, &[Writable(DATA, 1)]).len();
        }
        assert!(served < 2 * (BURST_BYTES / MIN_COST_BYTES) as usize, "{served}");
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
