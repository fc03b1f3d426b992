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

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::OpenOptionsExt, path::Path, time::Instant};

    use super::*;
    use crate::stdio::{StdioSpec, log_files};

    const LONG: Duration = Duration::from_secs(20);

    fn make_fifo(path: &Path) {
        let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: the path is a NUL-terminated string.
        assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    }

    /// A relay to `stdout` and the process's end of it.
    fn output_to(stdout: String) -> (Relays, UnixStream) {
        let spec = StdioSpec { stdout, ..Default::default() };
        let (ours, theirs) = UnixStream::pair().unwrap();
        let streams = Streams { stdout: Some(ours), ..Default::default() };
        (Relays::start(spec.open().unwrap(), streams), theirs)
    }

    fn fifo(directory: &tempfile::TempDir, name: &str) -> String {
        let path = directory.path().join(name);
        make_fifo(&path);
        path.to_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn a_slow_reader_gets_every_byte() {
        let directory = tempfile::tempdir().unwrap();
        let path = fifo(&directory, "out");
        let (relays, mut process) = output_to(path.clone());
        let reader = std::thread::spawn(move || {
            let mut file = fs::File::open(path).unwrap();
            let (mut all, mut buffer) = (Vec::new(), [0; 3000]);
            loop {
                match std::io::Read::read(&mut file, &mut buffer).unwrap() {
                    0 => return all,
                    count => all.extend_from_slice(&buffer[..count]),
                }
                if all.len() % 30_000 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        let sent: Vec<u8> = (0..4_000_000_u32).map(|at| (at / 7) as u8).collect();
        process.write_all(&sent).await.unwrap();
        drop(process);
        assert!(relays.drained(LONG, LONG).await);
        drop(relays);
        assert!(reader.join().unwrap() == sent, "the bytes are others");
    }

    #[tokio::test]
    async fn without_a_reader_the_process_waits_and_nothing_is_lost() {
        let directory = tempfile::tempdir().unwrap();
        let path = fifo(&directory, "out");
        let (relays, mut process) = output_to(path.clone());
        // What a FIFO, a socket and one buffer hold; far below what is offered.
        let endless = async {
            let mut written = 0_usize;
            loop {
                written += process.write(&[b'x'; 8192]).await.unwrap();
                assert!(written < 4 << 20, "nobody holds the process back");
            }
        };
        assert!(tokio::time::timeout(Duration::from_millis(500), endless).await.is_err());
        let before = Instant::now();
        let brief = Duration::from_millis(200);
        assert!(!relays.drained(brief, brief).await, "a stalled reader is given up on");
        assert!(before.elapsed() < Duration::from_secs(5));
        // A reader that comes after all finds what waits.
        let mut options = fs::OpenOptions::new();
        let mut late = options.read(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap();
        let mut byte = [0];
        std::io::Read::read_exact(&mut late, &mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }

    #[tokio::test]
    async fn a_stream_that_stays_open_is_not_waited_for_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("out");
        let (relays, mut process) = output_to(format!("file://{}", file.display()));
        process.write_all(b"said").await.unwrap();
        assert!(!relays.drained(Duration::from_millis(300), LONG).await);
        assert_eq!(fs::read(&file).unwrap(), b"said");
        process.write_all(b" more").await.unwrap();
        drop(process);
        assert!(relays.drained(LONG, LONG).await);
        assert_eq!(fs::read(&file).unwrap(), b"said more");
    }

    #[tokio::test]
    async fn both_outputs_share_one_log_and_its_rotations() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("log");
        let log = format!("json-file://{}?max-bytes=3000&max-files=100", file.display());
        let spec = StdioSpec { stdout: log.clone(), stderr: log, ..Default::default() };
        let (out, mut stdout) = UnixStream::pair().unwrap();
        let (err, mut stderr) = UnixStream::pair().unwrap();
        let streams = Streams { stdin: None, stdout: Some(out), stderr: Some(err) };
        let relays = Relays::start(spec.open().unwrap(), streams);
        for number in 0..200 {
            stdout.write_all(format!("out {number}\n").as_bytes()).await.unwrap();
            stderr.write_all(format!("err {number}\n").as_bytes()).await.unwrap();
        }
        drop((stdout, stderr));
        assert!(relays.drained(LONG, LONG).await);
        let files = log_files::oldest_first(&file).unwrap();
        assert!(files.len() > 5);
        let text: String = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
        let records: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for (stream, word) in [("stdout", "out"), ("stderr", "err")] {
            let lines = records.iter().filter(|record| record["stream"] == stream);
            let lines: String = lines.map(|record| record["log"].as_str().unwrap()).collect();
            let expected: String = (0..200).map(|number| format!("{word} {number}\n")).collect();
            assert_eq!(lines, expected);
        }
    }

    #[tokio::test]
    async fn a_process_that_stops_reading_frees_the_writer() {
        let directory = tempfile::tempdir().unwrap();
        let path = fifo(&directory, "in");
        let spec = StdioSpec { stdin: path.clone(), ..Default::default() };
        let (ours, process) = UnixStream::pair().unwrap();
        let streams = Streams { stdin: Some(ours), ..Default::default() };
        let _relays = Relays::start(spec.open().unwrap(), streams);
        let mut writer = fs::OpenOptions::new().write(true).open(path).unwrap();
        drop(process);
        let written = tokio::task::spawn_blocking(move || {
            let start = Instant::now();
            while start.elapsed() < LONG {
                if let Err(error) = std::io::Write::write_all(&mut writer, b"unread") {
                    return error.kind();
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            panic!("the writer goes on for ever");
        });
        assert_eq!(written.await.unwrap(), io::ErrorKind::BrokenPipe);
    }
}
