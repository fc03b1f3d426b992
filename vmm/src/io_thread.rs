//! A thread that serves the workers of virtio devices, one event at a time.

use std::sync::{Arc, Mutex};

use event_manager::{EventManager, RemoteEndpoint, SubscriberId};

use crate::virtio::Worker;

/// Events taken from the kernel in one call; more only wait for the next.
const EVENTS_AT_ONCE: usize = 32;

/// The loop of the thread; [`IoLoop::run`] never returns while it works.
pub struct IoLoop(EventManager<Box<dyn Worker>>);

impl IoLoop {
    pub fn new() -> Result<Self, event_manager::Error> {
        EventManager::new_with_capacity(EVENTS_AT_ONCE).map(Self)
    }

    /// What gives the loop workers from other threads.
    pub fn handle(&self) -> IoHandle {
        IoHandle(self.0.remote_endpoint())
    }

    /// Serves workers until waiting fails, and tells why.
    pub fn run(mut self) -> event_manager::Error {
        loop {
            if let Err(error) = self.0.run() {
                return error;
            }
        }
    }
}

#[derive(Clone)]
pub struct IoHandle(RemoteEndpoint<Box<dyn Worker>>);

impl IoHandle {
    /// Hands `worker` to the loop, without waiting for it.
    pub fn start(&self, worker: Box<dyn Worker>) -> Result<RunningWorker, event_manager::Error> {
        let id = Arc::new(Mutex::new(None));
        let filled = id.clone();
        self.0.fire(move |ops| {
            let subscriber = ops.add_subscriber(worker);
            *filled.lock().expect("nothing panics while it holds the id") = Some(subscriber);
        })?;
        Ok(RunningWorker { endpoint: self.0.clone(), id })
    }
}

/// A worker in a loop. Dropping this takes it out, and waits until it is dropped: then
/// none of its requests is in flight any more.
///
/// Must not be dropped by the loop's own thread, which would wait for itself; the
/// transport drops it, on a vCPU's thread.
pub struct RunningWorker {
    endpoint: RemoteEndpoint<Box<dyn Worker>>,
    /// Filled by the loop when it takes the worker. Requests to a loop are served in
    /// order, so it is filled before the request to stop is served.
    id: Arc<Mutex<Option<SubscriberId>>>,
}

impl Drop for RunningWorker {
    fn drop(&mut self) {
        let id = self.id.clone();
        // If the loop is gone, so are its workers.
        let _ = self.endpoint.call_blocking(move |ops| -> Result<(), event_manager::Error> {
            let id = id.lock().expect("nothing panics while it holds the id").take();
            if let Some(id) = id {
                drop(ops.remove_subscriber(id)?);
            }
            Ok(())
        });
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;

    /// Tells when it is served and when it is dropped.
    struct Echo(Arc<EventFd>, mpsc::Sender<&'static str>);

    impl MutEventSubscriber for Echo {
        fn process(&mut self, _events: Events, _ops: &mut EventOps) {
            self.0.read().unwrap();
            self.1.send("served").unwrap();
        }
        fn init(&mut self, ops: &mut EventOps) {
            ops.add(Events::new(&self.0, EventSet::IN)).unwrap();
        }
    }

    impl Drop for Echo {
        fn drop(&mut self) {
            self.1.send("dropped").unwrap();
        }
    }

    #[test]
    fn a_worker_is_served_until_it_is_stopped_and_can_be_started_again() {
        let io = IoLoop::new().unwrap();
        let handle = io.handle();
        thread::spawn(move || io.run());
        let notify = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let (sender, receiver) = mpsc::channel();
        for _ in 0..2 {
            let worker = Box::new(Echo(notify.clone(), sender.clone()));
            let running = handle.start(worker).unwrap();
            notify.write(1).unwrap();
            assert_eq!(receiver.recv().unwrap(), "served");
            drop(running);
            assert_eq!(receiver.try_recv().unwrap(), "dropped", "the drop waits for it");
        }
        notify.write(1).unwrap();
        assert!(receiver.try_recv().is_err());
    }
}
