//! The containers of one shim: which there are, and that each operation on one happens
//! once, however many ask.
//!
//! A shim has one container and its VM today; nothing here would change for several in
//! one VM.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use caisson_failpoints::{hit, pass, steps};
use containerd_shim::protos::events::task::TaskCreate;
use tokio::sync::watch;

use crate::{
    container::{Container, CreateRequest},
    error::Error,
    events::EventSink,
    exit::Exit,
    network::publish::Port,
    plan,
    rootfs::Source,
    sandbox::{Cancelled, Launcher},
};

pub struct Service {
    launcher: Box<dyn Launcher>,
    rootfs: Source,
    events: EventSink,
    /// What leads from the host to containers on Caisson's bridge, where they are to be.
    bridge: Option<Vec<Port>>,
    containers: Mutex<Containers>,
}

struct Containers {
    slots: HashMap<String, Slot>,
    last_change: Instant,
    /// No more are taken.
    closed: bool,
}

enum Slot {
    Creating { cancel: watch::Sender<bool> },
    Ready(Arc<Container>),
}

impl Service {
    pub fn new(launcher: impl Launcher, rootfs: Source, events: EventSink) -> Arc<Self> {
        Self::with_bridge(launcher, rootfs, events, None)
    }

    /// Of containers that are on Caisson's bridge if their spec names no network namespace.
    pub fn with_bridge(
        launcher: impl Launcher,
        rootfs: Source,
        events: EventSink,
        bridge: Option<Vec<Port>>,
    ) -> Arc<Self> {
        let containers =
            Containers { slots: HashMap::new(), last_change: Instant::now(), closed: false };
        Arc::new(Self {
            launcher: Box::new(launcher),
            rootfs,
            events,
            bridge,
            containers: Mutex::new(containers),
        })
    }

    /// Creates a container and tells so with `event`, whose container fields are filled in.
    pub async fn create(
        &self,
        request: CreateRequest,
        event: TaskCreate,
    ) -> Result<Arc<Container>, Error> {
        let id = request.id.clone();
        plan::check_id("the container's id", &id)?;
        hit(&steps::SHIM_CREATE_RESERVE)
            .map_err(|source| Error::Io { action: "reserve the id", source })?;
        let cancelled = self.reserve(&id)?;
        let events = self.events.clone();
        let bridge = self.bridge.as_deref();
        let launcher = self.launcher.as_ref();
        let created =
            Container::create(request, launcher, &self.rootfs, bridge, events, cancelled).await;
        let mut containers = self.containers();
        containers.last_change = Instant::now();
        match created {
            Ok(container) => {
                container.publish_create(event);
                containers.slots.insert(id, Slot::Ready(container.clone()));
                Ok(container)
            }
            Err(error) => {
                containers.slots.remove(&id);
                Err(error)
            }
        }
    }

    pub fn get(&self, id: &str) -> Result<Arc<Container>, Error> {
        match self.containers().slots.get(id) {
            Some(Slot::Ready(container)) => Ok(container.clone()),
            _ => Err(not_found(id)),
        }
    }

    /// Sends a signal; a container that is being created is cancelled instead.
    pub async fn kill(
        &self,
        id: &str,
        exec: Option<&str>,
        signal: u32,
        all: bool,
    ) -> Result<(), Error> {
        if self.cancel(id) {
            return Ok(());
        }
        self.get(id)?.kill(exec, signal, all).await
    }

    /// Deletes an ended container, or one that was never started. Of several at once one
    /// succeeds; to the others it is not there.
    pub async fn delete(&self, id: &str) -> Result<(Arc<Container>, Exit), Error> {
        let container = self.get(id)?;
        let exit = container.delete().await?;
        pass(&steps::SHIM_DELETE_DONE);
        if !self.forget(&container) {
            return Err(not_found(id));
        }
        container.publish_delete(&exit);
        Ok((container, exit))
    }

    /// Lets the shim exit if nothing is left in it; with `now` ends what is left. Says
    /// whether it exits.
    pub async fn shutdown(&self, now: bool) -> bool {
        {
            let mut containers = self.containers();
            if !now && !containers.slots.is_empty() {
                return false;
            }
            containers.closed = true;
        }
        self.end_all("the shim is shutting down").await;
        true
    }

    /// Ends every VM, and every creation of one.
    async fn end_all(&self, reason: &str) {
        loop {
            let container = {
                let containers = self.containers();
                for slot in containers.slots.values() {
                    if let Slot::Creating { cancel } = slot {
                        cancel.send_replace(true);
                    }
                }
                containers.slots.values().find_map(|slot| match slot {
                    Slot::Ready(container) => Some(container.clone()),
                    Slot::Creating { .. } => None,
                })
            };
            match container {
                Some(container) => {
                    container.destroy(reason).await;
                    self.forget(&container);
                }
                None if self.containers().slots.is_empty() => return,
                // A cancelled creation cleans up and leaves.
                None => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            }
        }
    }

    /// Gives a creation up; false if there is none.
    pub fn cancel(&self, id: &str) -> bool {
        match self.containers().slots.get(id) {
            Some(Slot::Creating { cancel }) => {
                cancel.send_replace(true);
                true
            }
            _ => false,
        }
    }

    /// Since when nothing happens that somebody wanted; `None` if a container is being
    /// created, runs, or has run.
    pub fn idle_since(&self) -> Option<Instant> {
        let containers = self.containers();
        let idle = containers.slots.values().all(|slot| match slot {
            Slot::Creating { .. } => false,
            Slot::Ready(container) => container.is_unstarted(),
        });
        idle.then_some(containers.last_change)
    }

    fn reserve(&self, id: &str) -> Result<Cancelled, Error> {
        let mut containers = self.containers();
        if containers.closed {
            let state = "the shim is shutting down";
            return Err(Error::State { action: "create", id: id.to_owned(), state });
        }
        if containers.slots.contains_key(id) {
            return Err(Error::AlreadyExists { what: "container", id: id.to_owned() });
        }
        let (cancel, cancelled) = Cancelled::new();
        containers.slots.insert(id.to_owned(), Slot::Creating { cancel });
        Ok(cancelled)
    }

    /// Forgets this container; false if another did.
    fn forget(&self, container: &Arc<Container>) -> bool {
        let mut containers = self.containers();
        let same = matches!(
            containers.slots.get(&container.id),
            Some(Slot::Ready(present)) if Arc::ptr_eq(present, container)
        );
        if same {
            containers.slots.remove(&container.id);
            containers.last_change = Instant::now();
        }
        same
    }

    fn containers(&self) -> MutexGuard<'_, Containers> {
        // No code panics while it holds the table.
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_found(id: &str) -> Error {
    Error::NotFound { what: "container", id: id.to_owned() }
}
