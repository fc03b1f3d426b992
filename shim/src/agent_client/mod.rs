//! The shim's end of the control channel to the agent.
//!
//! ```text
//!   call ──► request queue ──► writer task ──►┐
//!    ▲                                        │ control channel
//!    └─ oneshot by request id ── reader task ◄┘
//!                                  ├─ exits, to whoever expects that process's
//!                                  └─ OOM counts
//! ```
//!
//! The agent belongs to the guest and is not believed: frames are bounded, each call has
//! a deadline, and what nobody asked for is counted and dropped. Too much of that, or any
//! malformed frame, and the channel is *lost*: every call fails with the reason, and the
//! sandbox's owner ends the VM.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use caisson_agent_protocol::{
    AgentError, Call, Event, ExitStatus, FrameError, FromAgent, Outcome, PROTOCOL_VERSION, Ready,
    Request, frame,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout},
};

use crate::text;

/// The longest frame taken from an agent: a list of 32 768 pids is a quarter of it.
const MAX_FRAME_BYTES: usize = 1 << 20;

/// Replies to no call and exits of no process, within [`UNEXPECTED_WINDOW`], that make an
/// agent not worth listening to.
const MAX_UNEXPECTED: u32 = 1024;
const UNEXPECTED_WINDOW: Duration = Duration::from_secs(60);

/// Requests that may queue while the agent does not read.
const REQUEST_QUEUE: usize = 16;

/// How long the agent may take.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// Creating a container or a process and starting it.
    pub prepare: Duration,
    /// Every other call.
    pub call: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        // Generous, because an emulated host is 50 times slower than a real one.
        Self { prepare: Duration::from_secs(60), call: Duration::from_secs(20) }
    }
}

/// A call that has no value.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// The agent refused it.
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error("the agent did not answer {call} within {seconds} s")]
    Deadline { call: &'static str, seconds: u64 },
    #[error("the agent's answer to {call} is not what was asked for")]
    WrongOutcome { call: &'static str },
    #[error("the agent cannot be reached: {reason}")]
    Lost { reason: String },
    #[error("the request does not fit into a frame")]
    Request(#[source] Arc<FrameError>),
}

/// Why the agent never became ready.
#[derive(Debug, thiserror::Error)]
pub enum ReadyError {
    #[error("the agent's first message cannot be read")]
    Frame(#[source] FrameError),
    #[error("the agent closed the channel before it was ready")]
    Closed,
    #[error("the agent's first message is not that it is ready")]
    NotReady,
    #[error(
        "the agent speaks protocol {theirs}, this shim {PROTOCOL_VERSION}: the initramfs is of another version"
    )]
    Version { theirs: u32 },
}

/// A process's end, as the agent tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgentExit {
    pub status: ExitStatus,
    pub oom_killed: bool,
}

/// A container and, for an exec, its id.
type ProcessKey = (String, Option<String>);
type Reply = Result<Outcome, AgentError>;

/// A client that may be cloned and shared.
#[derive(Clone)]
pub struct AgentClient {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Vec<u8>>,
    deadlines: Deadlines,
}

struct Shared {
    next_id: AtomicU64,
    tables: Mutex<Tables>,
    /// Why the channel is lost, once it is.
    lost: watch::Sender<Option<String>>,
}

#[derive(Default)]
struct Tables {
    pending: HashMap<u64, oneshot::Sender<Reply>>,
    exits: HashMap<ProcessKey, oneshot::Sender<AgentExit>>,
    ooms: HashMap<String, watch::Sender<u64>>,
}

impl AgentClient {
    /// Takes over the channel once the agent has said that it is ready. The caller bounds
    /// the time.
    pub async fn accept(
        stream: UnixStream,
        deadlines: Deadlines,
    ) -> Result<(Self, Ready), ReadyError> {
        let (mut reader, writer) = stream.into_split();
        let first = read_frame(&mut reader, deadlines.prepare).await;
        let ready = match first.map_err(ReadyError::Frame)? {
            None => return Err(ReadyError::Closed),
            Some(FromAgent::Event(Event::Ready(ready))) => ready,
            Some(_) => return Err(ReadyError::NotReady),
        };
        if ready.protocol != PROTOCOL_VERSION {
            return Err(ReadyError::Version { theirs: ready.protocol });
        }
        let (requests, queue) = mpsc::channel(REQUEST_QUEUE);
        let shared = Arc::new(Shared {
            next_id: AtomicU64::new(1),
            tables: Mutex::default(),
            lost: watch::Sender::new(None),
        });
        tokio::spawn(write_requests(writer, queue, shared.clone()));
        tokio::spawn(read_messages(reader, deadlines.prepare, shared.clone()));
        Ok((Self { shared, requests, deadlines }, ready))
    }

    /// Makes a call and waits for its outcome.
    pub async fn call(&self, call: Call) -> Result<Outcome, CallError> {
        let name = name_of(&call);
        let limit = match call {
            Call::CreateContainer(_)
            | Call::CreateExec { .. }
            | Call::CreateTool { .. }
            | Call::Start { .. } => self.deadlines.prepare,
            _ => self.deadlines.call,
        };
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let bytes = frame::encode(&Request { id, call })
            .map_err(|error| CallError::Request(Arc::new(error)))?;
        let (sender, reply) = oneshot::channel();
        self.shared.tables().pending.insert(id, sender);
        let _pending = Pending { shared: &self.shared, id };
        let answer = async {
            if self.requests.send(bytes).await.is_err() {
                return Err(self.lost_error());
            }
            // A channel that was lost before the insertion cleared the table too early.
            if self.shared.lost.borrow().is_some() {
                return Err(self.lost_error());
            }
            match reply.await {
                Ok(result) => result.map_err(|error| CallError::Agent(bounded(error))),
                Err(_) => Err(self.lost_error()),
            }
        };
        match timeout(limit, answer).await {
            Ok(result) => result,
            Err(_) => Err(CallError::Deadline { call: name, seconds: limit.as_secs() }),
        }
    }

    /// Makes a call whose only good outcome is [`Outcome::Done`].
    pub async fn call_done(&self, call: Call) -> Result<(), CallError> {
        let name = name_of(&call);
        match self.call(call).await? {
            Outcome::Done => Ok(()),
            _ => Err(CallError::WrongOutcome { call: name }),
        }
    }

    /// From now on, the exit of this process is wanted. Dropping the receiver gives up.
    pub fn expect_exit(&self, container: &str, exec: Option<&str>) -> oneshot::Receiver<AgentExit> {
        let (sender, receiver) = oneshot::channel();
        let key = (container.to_owned(), exec.map(str::to_owned));
        let mut tables = self.shared.tables();
        // Kept small: those who gave up are forgotten.
        tables.exits.retain(|_, sender| !sender.is_closed());
        if self.shared.lost.borrow().is_none() {
            tables.exits.insert(key, sender);
        }
        receiver
    }

    /// How often the OOM killer has struck in the container; coalesced.
    pub fn watch_oom(&self, container: &str) -> watch::Receiver<u64> {
        let mut tables = self.shared.tables();
        let sender =
            tables.ooms.entry(container.to_owned()).or_insert_with(|| watch::Sender::new(0));
        sender.subscribe()
    }

    /// Resolves with the reason once the channel is lost.
    pub async fn lost(&self) -> String {
        let mut lost = self.shared.lost.subscribe();
        let reason = lost.wait_for(Option::is_some).await;
        reason.ok().and_then(|reason| reason.clone()).expect("a lost channel has a reason")
    }

    /// Gives the agent up: whatever waits for it fails with this reason.
    pub fn abandon(&self, reason: &str) {
        self.shared.lose(reason.to_owned());
    }

    fn lost_error(&self) -> CallError {
        let reason = self.shared.lost.borrow().clone();
        CallError::Lost { reason: reason.unwrap_or_else(|| "its channel is closed".to_owned()) }
    }
}

/// Forgets a request when its caller stops waiting.
struct Pending<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.shared.tables().pending.remove(&self.id);
    }
}

impl Shared {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        // No code panics while it holds the tables; a poisoned lock is still whole.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lose(&self, reason: String) {
        let first = self.lost.send_if_modified(|lost| {
            let first = lost.is_none();
            lost.get_or_insert(reason);
            first
        });
        if first {
            // Dropping the senders wakes everyone who waits.
            *self.tables() = Tables::default();
        }
    }

    /// Hands a message to whoever waits for it; false if nobody does.
    fn deliver(&self, message: FromAgent) -> bool {
        let mut tables = self.tables();
        match message {
            FromAgent::Reply { id, result } => match tables.pending.remove(&id) {
                Some(caller) => caller.send(result).is_ok(),
                None => false,
            },
            FromAgent::Event(Event::ProcessExited { container, exec, status, oom_killed }) => {
                match tables.exits.remove(&(container, exec)) {
                    Some(waiter) => waiter.send(AgentExit { status, oom_killed }).is_ok(),
                    None => false,
                }
            }
            FromAgent::Event(Event::OutOfMemory { container }) => {
                match tables.ooms.get(&container) {
                    Some(count) => count.send_modify(|count| *count = count.wrapping_add(1)),
                    None => return false,
                }
                // Unasked, and a guest can provoke any number.
                false
            }
            FromAgent::Event(Event::Ready(_)) => false,
        }
    }
}

async fn write_requests(
    mut writer: OwnedWriteHalf,
    mut queue: mpsc::Receiver<Vec<u8>>,
    shared: Arc<Shared>,
) {
    let mut lost = shared.lost.subscribe();
    loop {
        let bytes = tokio::select! {
            bytes = queue.recv() => bytes,
            _ = lost.wait_for(Option::is_some) => None,
        };
        let Some(bytes) = bytes else { return };
        if let Err(error) = writer.write_all(&bytes).await {
            shared.lose(format!("write to its channel: {error}"));
            return;
        }
    }
}

async fn read_messages(mut reader: OwnedReadHalf, limit: Duration, shared: Arc<Shared>) {
    let mut window = Instant::now();
    let mut unexpected = 0;
    let reason = loop {
        let message = match read_frame(&mut reader, limit).await {
            Ok(Some(message)) => message,
            Ok(None) => break "its channel ended".to_owned(),
            Err(FrameError::Io(error)) => break format!("read from its channel: {error}"),
            Err(error) => break error.to_string(),
        };
        if shared.deliver(message) {
            continue;
        }
        if window.elapsed() > UNEXPECTED_WINDOW {
            window = Instant::now();
            unexpected = 0;
        }
        unexpected += 1;
        if unexpected == 1 {
            log::info!("dropped a message from the agent that nobody waits for");
        }
        if unexpected > MAX_UNEXPECTED {
            break format!("it sent over {MAX_UNEXPECTED} messages that nobody waits for");
        }
    };
    shared.lose(reason);
}

/// Reads one frame; `None` if the channel ended cleanly before it. Memory grows with what
/// has arrived, not with what the length promises, and a frame that was begun must be
/// whole within `limit`: nobody waits for an agent that sends a byte a minute.
async fn read_frame(
    reader: &mut (impl AsyncRead + Unpin),
    limit: Duration,
) -> Result<Option<FromAgent>, FrameError> {
    let mut first = [0];
    if reader.read(&mut first).await.map_err(FrameError::Io)? == 0 {
        return Ok(None);
    }
    match timeout(limit, read_rest(reader, first[0])).await {
        Ok(message) => message.map(Some),
        Err(_) => {
            let seconds = limit.as_secs();
            let late = format!("a message was begun and not finished within {seconds} s");
            Err(FrameError::Io(io::Error::new(io::ErrorKind::TimedOut, late)))
        }
    }
}

/// Reads what follows the first byte of a frame.
async fn read_rest(
    reader: &mut (impl AsyncRead + Unpin),
    first: u8,
) -> Result<FromAgent, FrameError> {
    let mut header = [first, 0, 0, 0];
    reader.read_exact(&mut header[1..]).await.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => FrameError::Truncated,
        _ => FrameError::Io(error),
    })?;
    let length = frame::payload_length(header)?;
    if length > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong { length });
    }
    let mut payload = Vec::new();
    reader.take(length as u64).read_to_end(&mut payload).await.map_err(FrameError::Io)?;
    if payload.len() < length {
        return Err(FrameError::Truncated);
    }
    frame::decode(&payload)
}

/// The agent's words, inert and not endless.
fn bounded(error: AgentError) -> AgentError {
    const MAX_CHARS: usize = 4096;
    let message = text::inert(error.message.as_bytes()).chars().take(MAX_CHARS).collect();
    AgentError { kind: error.kind, message }
}

pub(crate) fn name_of(call: &Call) -> &'static str {
    match call {
        Call::CreateContainer(_) => "CreateContainer",
        Call::CreateExec { .. } => "CreateExec",
        Call::CreateTool { .. } => "CreateTool",
        Call::Start { .. } => "Start",
        Call::Signal { .. } => "Signal",
        Call::Resize { .. } => "Resize",
        Call::CloseStdin { .. } => "CloseStdin",
        Call::Pids { .. } => "Pids",
        Call::Stats { .. } => "Stats",
        Call::Update { .. } => "Update",
        Call::Pause { .. } => "Pause",
        Call::Resume { .. } => "Resume",
        Call::Delete { .. } => "Delete",
        Call::Shutdown => "Shutdown",
    }
}

#[cfg(test)]
mod tests;
