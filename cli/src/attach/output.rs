//! Copies a process's output to where this process's goes.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    sync::mpsc::Sender,
    thread::{self, JoinHandle},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{AttachError, fifo::OutputFifo, log_writer::LogWriter, session::Event};

const BUFFER_BYTES: usize = 64 << 10;

/// After the process has ended: how long to wait for a last byte that the shim says is
/// delivered, in milliseconds. The FIFO normally ends at once.
const LAST_BYTE_MS: u16 = 300;

/// Where a stream goes.
pub struct Sink {
    /// This process's stream, or none if nobody looks.
    pub file: Option<File>,
    pub log: Option<LogWriter>,
}

/// A thread that copies one stream.
pub struct OutputCopy {
    thread: JoinHandle<()>,
    /// Closed to say that the process has ended.
    running: OwnedFd,
}

impl OutputCopy {
    /// Copies `fifo` into `sink`. Says [`Event::OutputClosed`] if the stream is closed on
    /// the other side.
    pub fn spawn(
        what: &'static str,
        fifo: OutputFifo,
        sink: Sink,
        events: Sender<Event>,
    ) -> Result<Self, AttachError> {
        let (ended, running) = pipe()?;
        let copy = move || {
            // The receiver may be gone, and whoever cares with it.
            let closed = || drop(events.send(Event::OutputClosed));
            if let Err(error) = copy_output(&fifo.reader, sink, &ended, closed) {
                tracing::warn!(%error, "read {what}");
            }
        };
        let thread = thread::Builder::new()
            .name(what.to_owned())
            .spawn(copy)
            .map_err(|source| AttachError::Thread { what, source })?;
        Ok(Self { thread, running })
    }

    /// The process has ended: returns when all of its output is written.
    pub fn finish(self) {
        drop(self.running);
        // A panic there has been printed; the output is lost as far as it went.
        let _ = self.thread.join();
    }
}

/// Until the FIFO ends, or the process has ended and nothing more comes. What cannot be
/// written is `closed`, once, and then thrown away: the shim must not wait for a reader.
fn copy_output(
    mut fifo: &File,
    mut sink: Sink,
    ended: &OwnedFd,
    closed: impl Fn(),
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut first = true;
    loop {
        match fifo.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                if std::mem::take(&mut first) {
                    caisson_shim::stages::stamp("cli", "first_byte");
                }
                if sink.write(&buffer[..count]).is_err() {
                    sink.file = None;
                    closed();
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if !wait_for_more(fifo.as_fd(), ended)? {
                    break;
                }
            }
            Err(error) => return Err(error),
        }
    }
    sink.finish();
    Ok(())
}

/// Whether there is something to read (or an end to be seen).
fn wait_for_more(fifo: BorrowedFd<'_>, ended: &OwnedFd) -> io::Result<bool> {
    let mut fds =
        [PollFd::new(fifo, PollFlags::POLLIN), PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
    retry(|| poll(&mut fds, PollTimeout::NONE))?;
    if fds[0].any().unwrap_or(false) {
        return Ok(true);
    }
    let mut only = [PollFd::new(fifo, PollFlags::POLLIN)];
    Ok(retry(|| poll(&mut only, PollTimeout::from(LAST_BYTE_MS)))? > 0)
}

impl Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(log) = &mut self.log {
            log.push(bytes);
        }
        match &self.file {
            Some(file) => write_all(file, bytes),
            None => Ok(()),
        }
    }

    fn finish(&mut self) {
        if let Some(log) = &mut self.log {
            log.finish();
        }
    }
}

/// Writes all of it, waiting where a terminal shared with others is non-blocking.
pub fn write_all(mut file: &File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
                retry(|| poll(&mut fds, PollTimeout::NONE))?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A file of its own on standard output or error; `None` where it is closed.
pub fn own_stream(stream: impl AsRawFd) -> Option<File> {
    // SAFETY: the descriptor is only used within this block, where it is open or not;
    // duplicating one that is not fails.
    let borrowed = unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) };
    borrowed.try_clone_to_owned().ok().map(File::from)
}

pub(super) fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(nix::errno::Errno::EINTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd), AttachError> {
    let mut fds = [0; 2];
    // SAFETY: `fds` has room for the two descriptors that pipe2 writes.
    if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
        return Err(AttachError::Pipe(io::Error::last_os_error()));
    }
    // SAFETY: pipe2 has just made both, and nobody else owns them.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::engine::make_fifo;

    struct Pipes {
        _root: tempfile::TempDir,
        fifo: OutputFifo,
        shim: File,
        output: std::path::PathBuf,
    }

    fn pipes() -> Pipes {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("stdout");
        make_fifo(&path).unwrap();
        let mut fifo = OutputFifo::open(&path).unwrap();
        let shim = File::options().read(true).write(true).open(&path).unwrap();
        fifo.opened_by_shim();
        let output = root.path().join("output");
        Pipes { fifo, shim, output, _root: root }
    }

    #[test]
    fn everything_arrives_though_the_fifo_never_ends() {
        let mut pipes = pipes();
        let sink = Sink { file: Some(File::create(&pipes.output).unwrap()), log: None };
        let (events, received) = mpsc::channel();
        let copy = OutputCopy::spawn("stdout", pipes.fifo, sink, events).unwrap();
        let bytes = vec![b'x'; 300_000];
        pipes.shim.write_all(&bytes).unwrap();
        copy.finish();
        assert_eq!(std::fs::read(&pipes.output).unwrap(), bytes);
        assert!(received.try_recv().is_err());
    }

    #[test]
    fn a_reader_that_went_away_is_told() {
        let mut pipes = pipes();
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let sink = Sink { file: Some(File::from(writer)), log: None };
        let (events, received) = mpsc::channel();
        let copy = OutputCopy::spawn("stdout", pipes.fifo, sink, events).unwrap();
        pipes.shim.write_all(b"text").unwrap();
        assert!(matches!(received.recv().unwrap(), Event::OutputClosed));
        // More than the FIFO holds.
        pipes.shim.write_all(&vec![b'x'; 300_000]).unwrap();
        copy.finish();
        assert!(received.try_recv().is_err());
    }
}
