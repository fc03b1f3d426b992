//! Starts the VM's threads, each confined before it does anything else.

use std::{io, sync::mpsc, thread::JoinHandle};

use crate::seccomp::{Filter, SeccompError};

/// Enough for the deepest call of any thread; only what is touched costs memory.
const STACK_BYTES: usize = 256 << 10;

#[derive(Debug, thiserror::Error)]
pub enum ThreadError {
    #[error("start the thread {name:?}")]
    Start {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("confine the thread {name:?}")]
    Confine {
        name: String,
        #[source]
        source: SeccompError,
    },
    #[error("the thread {name:?} ended before it was confined")]
    Lost { name: String },
}

/// Runs `body` on a new thread of this name under `filter`; returns when the thread is
/// confined.
pub fn spawn_confined(
    name: &str,
    filter: &Filter,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, ThreadError> {
    let (confined, wait) = mpsc::sync_channel(1);
    let filter = filter.clone();
    let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES);
    let handle = thread
        .spawn(move || {
            let result = filter.install();
            let failed = result.is_err();
            // The receiver waits for exactly this message.
            let _ = confined.send(result);
            drop((confined, filter));
            if !failed {
                body();
            }
        })
        .map_err(|source| ThreadError::Start { name: name.to_owned(), source })?;
    match wait.recv() {
        Ok(Ok(())) => Ok(handle),
        Ok(Err(source)) => Err(ThreadError::Confine { name: name.to_owned(), source }),
        Err(_) => Err(ThreadError::Lost { name: name.to_owned() }),
    }
}
