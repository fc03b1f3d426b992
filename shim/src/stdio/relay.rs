//! The tasks that carry the bytes.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::{oneshot, watch},
    task::JoinHandle,
};

use super::{OpenStdio, target};

/// One buffer a stream.
const BUFFER_BYTES: usize = 32 << 10;

/// How often a drain looks whether bytes still move.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Connected streams of one process, as far as wanted.
#[derive(Debug, Default)]
pub struct Streams {
    pub stdin: Option<UnixStream>,
    pub stdout: Option<UnixStream>,
    pub stderr: Option<UnixStream>,
}

/// The running relays of one process. Dropping them stops them.
#[derive(Debug)]
pub struct Relays {
    close_stdin: Mutex<Option<oneshot::Sender<()>>>,
    stdin: Option<JoinHandle<()>>,
    outputs: Vec<Output>,
}

#[derive(Debug)]
struct Output {
    task: JoinHandle<()>,
    progress: Arc<Progress>,
    ended: watch::Receiver<bool>,
}

#[derive(Debug, Default)]
struct Progress {
    bytes: AtomicU64,
    /// Bytes were taken from the stream and wait for the reader.
    writing: AtomicBool,
}

impl Relays {
    /// Starts a relay for each stream.
    pub fn start(open: OpenStdio, streams: Streams) -> Self {
        let (close_stdin, closed) = oneshot::channel();
        let stdin = open
            .stdin
            .zip(streams.stdin)
            .map(|(fifo, stream)| tokio::spawn(relay_stdin(fifo, stream, closed)));
        let outputs =
            [("stdout", open.stdout, streams.stdout), ("stderr", open.stderr, streams.stderr)];
        let outputs = outputs
            .into_iter()
            .filter_map(|(name, sink, stream)| Some((name, sink?, stream?)))
            .map(|(name, sink, stream)| {
                let progress = Arc::new(Progress::default());
                let (end, ended) = watch::channel(false);
                let task = relay_output(name, stream, sink, progress.clone(), end);
                Output { task: tokio::spawn(task), progress, ended }
            })
            .collect();
        Self { close_stdin: Mutex::new(Some(close_stdin)), stdin, outputs }
    }

    /// Lets standard input end when its last writer has closed it.
    pub fn close_stdin(&self) {
        let sender = self.close_stdin.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(sender) = sender {
            // The relay may have ended before.
            let _ = sender.send(());
        }
    }

    /// Waits until the process's last output is delivered. Gives up, leaving the relays
    /// at work, when no byte has moved for `idle` (another process of the container holds
    /// the stream open) or, while a reader does not take what is there, for `stalled`.
    /// Says whether everything was delivered.
    pub async fn drained(&self, idle: Duration, stalled: Duration) -> bool {
        let mut all = true;
        for output in &self.outputs {
            all &= output.drained(idle, stalled).await;
        }
        all
    }
}

impl Output {
    async fn drained(&self, idle: Duration, stalled: Duration) -> bool {
        let mut ended = self.ended.clone();
        let mut seen = self.progress.bytes.load(Ordering::Relaxed);
        let mut still = Duration::ZERO;
        loop {
            // An error means that the relay is gone, which is an end too.
            let end = tokio::time::timeout(PROGRESS_INTERVAL, ended.wait_for(|&ended| ended));
            if end.await.is_ok() {
                return true;
            }
            let now = self.progress.bytes.load(Ordering::Relaxed);
            still = if now == seen { still + PROGRESS_INTERVAL } else { Duration::ZERO };
            seen = now;
            let limit = if self.progress.writing.load(Ordering::Relaxed) { stalled } else { idle };
            if still >= limit {
                return false;
            }
        }
    }
}

impl Drop for Relays {
    fn drop(&mut self) {
        for task in self.stdin.iter().chain(self.outputs.iter().map(|output| &output.task)) {
            task.abort();
        }
    }
}

async fn relay_stdin(fifo: target::Stdin, stream: UnixStream, mut closed: oneshot::Receiver<()>) {
    let target::Stdin { mut reader, keep_open } = fifo;
    let mut keep_open = Some(keep_open);
    let (mut from_guest, mut to_guest) = stream.into_split();
    let mut buffer = vec![0; BUFFER_BYTES];
    // The agent sends nothing here; an end is the process's end of reading.
    let mut unread = [0; 16];
    loop {
        let count = tokio::select! {
            read = reader.read(&mut buffer) => match read {
                Ok(count) if count > 0 => count,
                _ => break,
            },
            _ = &mut closed, if keep_open.is_some() => {
                keep_open = None;
                continue;
            }
            read = from_guest.read(&mut unread) => match read {
                Ok(count) if count > 0 => continue,
                _ => return,
            },
        };
        if to_guest.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    // The half-close follows the last byte; CloseStdin on the control channel could
    // overtake it.
    let _ = to_guest.shutdown().await;
    // The stream stays until the guest closes its half, lest it look reset.
    while matches!(from_guest.read(&mut unread).await, Ok(count) if count > 0) {}
}

async fn relay_output(
    name: &'static str,
    mut stream: UnixStream,
    mut sink: target::Sink,
    progress: Arc<Progress>,
    end: watch::Sender<bool>,
) {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut lost = Lost { name, bytes: 0 };
    loop {
        // A reset is how a stream of a VM that has died ends.
        let count = match stream.read(&mut buffer).await {
            Ok(count) if count > 0 => count,
            _ => break,
        };
        progress.writing.store(true, Ordering::Relaxed);
        lost.check(sink.write_all(&buffer[..count]).await, count);
        progress.writing.store(false, Ordering::Relaxed);
        progress.bytes.fetch_add(count as u64, Ordering::Relaxed);
    }
    lost.check(sink.finish(), 0);
    if lost.bytes > 0 {
        log::warn!("{} bytes of {name} could not be written and are lost", lost.bytes);
    }
    drop(sink);
    let _ = end.send(true);
}

/// Output that a full or broken disk did not take. The container goes on.
struct Lost {
    name: &'static str,
    bytes: u64,
}

impl Lost {
    fn check(&mut self, written: io::Result<()>, count: usize) {
        if let Err(error) = written {
            if self.bytes == 0 {
                log::warn!("write {}: {error}; output is dropped from here on", self.name);
            }
            self.bytes += count as u64;
        }
    }
}
