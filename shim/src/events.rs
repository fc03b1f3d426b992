//! What containerd is told, in the order in which it expects to hear it.
//!
//! `TaskCreate`, `TaskStart`, (`TaskExecAdded`, `TaskExecStarted`, `TaskExit` of execs),
//! `TaskExit`, `TaskDelete`. One queue keeps the order; without containerd it has no end.

use containerd_shim::{
    event::Event,
    protos::protobuf::{MessageField, well_known_types::timestamp::Timestamp},
};
use tokio::sync::mpsc;

use crate::exit::Exit;

pub type BoxedEvent = Box<dyn Event + Send + Sync>;

/// Where events go.
#[derive(Clone, Default)]
pub struct EventSink(Option<mpsc::UnboundedSender<BoxedEvent>>);

impl EventSink {
    /// A sink and the receiver of what is put into it. The events are as many as API calls
    /// and coalesced OOM notices, so the queue stays short.
    pub fn channel() -> (Self, mpsc::UnboundedReceiver<BoxedEvent>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(Some(sender)), receiver)
    }

    /// Nobody listens.
    pub fn none() -> Self {
        Self(None)
    }

    pub fn publish(&self, event: impl Event + Send + Sync) {
        if let Some(sender) = &self.0 {
            // A receiver that is gone no longer wants to know.
            let _ = sender.send(Box::new(event));
        }
    }
}

/// The time of an exit as the Task API carries it.
pub fn exited_at(exit: &Exit) -> MessageField<Timestamp> {
    MessageField::some(Timestamp {
        seconds: i64::try_from(exit.at_unix_nanos / 1_000_000_000).unwrap_or(i64::MAX),
        nanos: i32::try_from(exit.at_unix_nanos % 1_000_000_000).unwrap_or(0),
        ..Default::default()
    })
}
