//! Keeps a device's worker to its rate limit without dropping anything and without
//! keeping its thread busy.
//!
//! ```text
//!         admitted                     not yet
//! pop ──────────────► handle    pop ───────────► held ── timer ──► handle
//! ```
//!
//! While a request is held the worker takes no other one from that queue; the thread's
//! other workers go on. What was used up stays so when the driver resets the device.

use std::{
    os::fd::AsRawFd,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use event_manager::{EventOps, EventSet, Events};
use vmm_sys_util::timerfd::TimerFd;

use super::{
    ActivateError,
    chain::Chain,
    device_queue::{Budget, DeviceQueue, QueueError},
    token_bucket::TokenBucket,
};
use crate::config::RateLimit;

/// The state of a limit. Its owner outlives activations; several devices may share it.
#[derive(Debug)]
pub struct RateLimiter {
    start: Instant,
    bandwidth: Option<TokenBucket>,
    operations: Option<TokenBucket>,
}

/// A lock, though only one thread at a time uses it: the device and its worker are on
/// different ones.
pub type SharedLimiter = Arc<Mutex<RateLimiter>>;

impl RateLimiter {
    /// `None` if nothing is limited.
    pub fn new(limit: RateLimit) -> Option<SharedLimiter> {
        if limit == RateLimit::default() {
            return None;
        }
        let bucket = |rate| TokenBucket::new(rate, Duration::ZERO);
        Some(Arc::new(Mutex::new(Self {
            start: Instant::now(),
            bandwidth: limit.bandwidth.map(bucket),
            operations: limit.operations.map(bucket),
        })))
    }

    /// Takes one operation of so many bytes, which may begin after the returned time.
    fn take(&mut self, bytes: u64) -> Duration {
        let now = self.start.elapsed();
        let wait = |bucket: &mut Option<TokenBucket>, tokens| {
            bucket.as_mut().map_or(Duration::ZERO, |bucket| bucket.take(tokens, now))
        };
        wait(&mut self.bandwidth, bytes).max(wait(&mut self.operations, 1))
    }
}

/// Lets one thing at a time pass, when its time has come.
#[derive(Debug)]
pub struct Gate(Option<Limited>);

#[derive(Debug)]
struct Limited {
    limiter: SharedLimiter,
    timer: TimerFd,
    is_waiting: bool,
}

impl Gate {
    /// Without a limiter it is always open.
    pub fn new(limiter: Option<&SharedLimiter>) -> Result<Self, ActivateError> {
        let Some(limiter) = limiter else { return Ok(Self(None)) };
        let timer = TimerFd::new().map_err(|error| ActivateError::Descriptor(error.into()))?;
        Ok(Self(Some(Limited { limiter: Arc::clone(limiter), timer, is_waiting: false })))
    }

    pub fn register(&self, ops: &mut EventOps) {
        if let Some(limited) = &self.0 {
            // Edge-triggered, so that the timer need not be read.
            ops.add(Events::new(&limited.timer, EventSet::IN | EventSet::EDGE_TRIGGERED))
                .expect("the timer is new");
        }
    }

    /// Takes in an event, if it is the end of the wait.
    pub fn on_event(&mut self, events: Events) -> bool {
        match &mut self.0 {
            Some(limited) if limited.timer.as_raw_fd() == events.fd() => {
                limited.is_waiting = false;
                true
            }
            _ => false,
        }
    }

    /// Whether something was not let pass yet.
    pub fn is_waiting(&self) -> bool {
        self.0.as_ref().is_some_and(|limited| limited.is_waiting)
    }

    /// Whether an operation of so many bytes may begin now; else it may when the wait that
    /// begins here is over, and nothing else may be asked for before.
    pub fn admit(&mut self, bytes: usize) -> bool {
        let Some(limited) = &mut self.0 else { return true };
        // A limiter is whole whenever it is unlocked.
        let mut limiter = limited.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = limiter.take(bytes as u64);
        // A timer that was made, and a time that is above zero and not too long: it cannot
        // fail; and if it did, the request would not be lost.
        limited.is_waiting = !wait.is_zero() && limited.timer.reset(wait, None).is_ok();
        !limited.is_waiting
    }
}

/// A gate before a queue.
pub struct Throttle {
    gate: Gate,
    /// The chain that waits.
    held: Option<Chain>,
}

impl Throttle {
    pub fn new(limiter: Option<&SharedLimiter>) -> Result<Self, ActivateError> {
        Ok(Self { gate: Gate::new(limiter)?, held: None })
    }

    pub fn register(&self, ops: &mut EventOps) {
        self.gate.register(ops);
    }

    pub fn on_event(&mut self, events: Events) -> bool {
        self.gate.on_event(events)
    }

    /// [`DeviceQueue::serve`] within the limit. `cost` is the number of bytes that a chain
    /// counts for.
    pub fn serve(
        &mut self,
        queue: &mut DeviceQueue,
        mut budget: Budget,
        cost: impl Fn(&Chain) -> usize,
        mut handle: impl FnMut(&mut Chain) -> Result<u32, QueueError>,
    ) {
        queue.disable_notifications();
        loop {
            while budget.is_left()
                && let Some(mut chain) = self.next(queue, &cost)
            {
                budget.spend(chain.bytes());
                match handle(&mut chain) {
                    Ok(written) => queue.complete(chain, written),
                    Err(error) => queue.fail(error),
                }
            }
            if self.gate.is_waiting() {
                // The timer wakes the worker; notifications stay off until then.
                break;
            }
            if !budget.is_left() {
                queue.wake_self();
                break;
            }
            if !queue.enable_notifications() {
                break;
            }
        }
    }

    /// The next chain whose time has come.
    fn next(&mut self, queue: &mut DeviceQueue, cost: impl Fn(&Chain) -> usize) -> Option<Chain> {
        if self.gate.is_waiting() {
            return None;
        }
        if let Some(chain) = self.held.take() {
            return Some(chain);
        }
        let chain = queue.pop()?;
        if self.gate.admit(cost(&chain)) {
            return Some(chain);
        }
        self.held = Some(chain);
        None
    }
}
