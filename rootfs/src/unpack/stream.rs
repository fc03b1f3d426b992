//! This process's ends of the pipes: a confined process that stops reading or writing is
//! noticed.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// How long a confined process may take to accept the next bytes, or to give some once it
/// has them all. Generous: it may wait for a slow disk.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// What a pipe holds, if the host allows as much: fewer switches between processes.
const PIPE_BYTES: usize = 1 << 20;

/// A pipe with large buffers: the end to read, the end to write.
pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = io::pipe()?;
    // Only a matter of speed.
    let _ = rustix::pipe::fcntl_setpipe_size(&writer, PIPE_BYTES);
    Ok((reader.into(), writer.into()))
}

/// Writes to a confined process.
pub(super) struct Feed(OwnedFd);

impl Feed {
    pub(super) fn new(writer: OwnedFd) -> io::Result<Feed> {
        // The reading end keeps its own flags: it is another description.
        let flags = rustix::fs::fcntl_getfl(&writer)?;
        rustix::fs::fcntl_setfl(&writer, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(Feed(writer))
    }
}

impl Write for Feed {
    /// `TimedOut` when nothing is taken for [`PATIENCE`], `BrokenPipe` when nobody reads.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(&self.0, bytes) {
                Ok(count) => return Ok(count),
                Err(Errno::AGAIN) => wait(self.0.as_fd(), PollFlags::OUT)?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads what a confined process writes.
pub(super) struct Drain<'a> {
    pub(super) reader: OwnedFd,
    /// Whether it has all its input, so that it must not make us wait.
    pub(super) is_fed: &'a std::sync::atomic::AtomicBool,
}

impl Read for Drain<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            // Ask again each while: the input may have ended in the meantime.
            let fed = self.is_fed.load(std::sync::atomic::Ordering::Relaxed);
            match wait(self.reader.as_fd(), PollFlags::IN) {
                Err(error) if error.kind() == io::ErrorKind::TimedOut && !fed => continue,
                Err(error) => return Err(error),
                Ok(()) => {}
            }
            match rustix::io::read(&self.reader, &mut *buffer) {
                Err(Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
    }
}

/// Waits for [`PATIENCE`] at most.
fn wait(fd: BorrowedFd<'_>, event: PollFlags) -> io::Result<()> {
    let timeout = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    loop {
        match poll(&mut [PollFd::from_borrowed_fd(fd, event)], Some(&timeout)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
