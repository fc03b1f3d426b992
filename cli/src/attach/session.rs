//! A container started with this process attached to it, until it ends or is left.

use std::{
    path::{Path, PathBuf},
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::Duration,
};

use caisson_shim::client::{ShimClient, Stdio};

use super::{
    AttachError,
    detach_keys::DetachKeys,
    fifo::OutputFifo,
    input::InputCopy,
    log_writer::Log,
    output::{OutputCopy, Sink, own_stream},
    signals::{Policy, SignalHandling},
    tty::RawMode,
};
use crate::engine::{EngineError, LogTarget, Startup};

/// What happens while a process runs.
#[derive(Debug)]
pub enum Event {
    /// The wait for it has returned.
    Exited,
    /// The detach keys were typed.
    Detached,
    /// This process was told to end.
    Terminated(i32),
    /// Nobody reads this process's output any more.
    OutputClosed,
}

/// What to attach, and how.
#[derive(Clone, Debug, Default)]
pub struct Attachment {
    /// Pass standard input on.
    pub stdin: bool,
    pub terminal: bool,
    pub signals: Policy,
    pub detach_keys: Option<DetachKeys>,
    /// Where to keep the output too.
    pub log: Option<LogTarget>,
}

/// The attachment at work.
pub struct Session {
    attachment: Attachment,
    pub signals: SignalHandling,
    events: Sender<Event>,
    received: Receiver<Event>,
    /// From `prepare` on, until the shim has opened them.
    fifos: Vec<(&'static str, OutputFifo)>,
    stdin: Option<PathBuf>,
    outputs: Vec<OutputCopy>,
    raw: Option<RawMode>,
}

impl Session {
    /// Takes signals over at once: from here on an interrupt ends what is being made.
    pub fn new(attachment: Attachment) -> Result<Self, AttachError> {
        let (events, received) = mpsc::channel();
        let signals = SignalHandling::start(attachment.signals.clone(), events.clone())?;
        let (fifos, outputs) = (Vec::new(), Vec::new());
        Ok(Self { attachment, signals, events, received, fifos, stdin: None, outputs, raw: None })
    }

    /// Opens the FIFOs before anything runs.
    pub fn open(&mut self, stdio: &Stdio) -> Result<(), AttachError> {
        for (name, path) in [("stdout", &stdio.stdout), ("stderr", &stdio.stderr)] {
            // A log's URI is no path.
            if path.starts_with('/') {
                self.fifos.push((name, OutputFifo::open(Path::new(path))?));
            }
        }
        self.stdin = (!stdio.stdin.is_empty()).then(|| PathBuf::from(&stdio.stdin));
        Ok(())
    }

    /// Passes input to this FIFO, which a shim has open.
    pub fn use_input(&mut self, fifo: PathBuf) {
        self.stdin = Some(fifo);
    }

    /// Begins to copy output; the shim has opened the FIFOs.
    pub fn copy_output(&mut self) -> Result<(), AttachError> {
        if self.attachment.terminal && self.attachment.stdin {
            self.raw = Some(RawMode::enter()?);
        }
        let mut log = self.attachment.log.clone().map(Log::new);
        for (name, mut fifo) in self.fifos.drain(..) {
            fifo.opened_by_shim();
            let file = match name {
                "stdout" => own_stream(std::io::stdout()),
                _ => own_stream(std::io::stderr()),
            };
            let log = log.as_mut().map(|log| log.writer(name)).transpose()?;
            let sink = Sink { file, log };
            self.outputs.push(OutputCopy::spawn(name, fifo, sink, self.events.clone())?);
        }
        Ok(())
    }

    /// The process runs: passes input and signals on, and `wait`s for it on a thread.
    pub fn run<T: Send + 'static>(
        &mut self,
        client: &ShimClient,
        wait: impl FnOnce() -> T + Send + 'static,
    ) -> Result<thread::JoinHandle<T>, AttachError> {
        self.signals.running(client, self.attachment.signals.exec.as_deref());
        if self.attachment.terminal
            && let Some((columns, rows)) = super::tty::size()
        {
            // It may have changed while the VM booted.
            let resized = client.resize(self.attachment.signals.exec.as_deref(), columns, rows);
            if let Err(error) = resized {
                tracing::debug!(%error, "resize");
            }
        }
        if let (true, Some(fifo)) = (self.attachment.stdin, self.stdin.take()) {
            let input = InputCopy {
                fifo,
                client: client.clone(),
                exec: self.attachment.signals.exec.clone(),
                detach_keys: self.attachment.detach_keys.clone(),
            };
            input.spawn(self.events.clone())?;
        }
        let events = self.events.clone();
        let waiter = move || {
            let ended = wait();
            let _ = events.send(Event::Exited);
            ended
        };
        thread::Builder::new()
            .name("wait".into())
            .spawn(waiter)
            .map_err(|source| AttachError::Thread { what: "the wait", source })
    }

    /// The next thing that happens; `None` if nothing does for so long.
    pub fn next_event(&self, patience: Option<Duration>) -> Option<Event> {
        // The session itself holds a sender, so that waiting for ever ends with an event.
        match patience {
            Some(patience) => self.received.recv_timeout(patience).ok(),
            None => self.received.recv().ok(),
        }
    }

    /// The process has ended: writes its last output and gives the terminal back.
    pub fn finish(&mut self) {
        self.signals.over();
        self.outputs.drain(..).for_each(OutputCopy::finish);
        self.raw = None;
    }
}

impl Startup for Session {
    fn prepare(&mut self, stdio: &Stdio) -> Result<(), EngineError> {
        match self.signals.interrupted() {
            Some(_) => Err(EngineError::Interrupted),
            None => Ok(self.open(stdio)?),
        }
    }

    fn spawned(&mut self, client: &ShimClient) -> Result<(), EngineError> {
        if self.signals.booting(client) { Ok(()) } else { Err(EngineError::Interrupted) }
    }

    fn created(&mut self) -> Result<(), EngineError> {
        self.signals.starting();
        Ok(self.copy_output()?)
    }
}
