//! What the guest writes on its serial console: the last of it for error messages, the
//! first of it in the bundle's `console.log`.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::Write,
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{io::AsyncReadExt, net::unix::pipe};

use crate::text;

/// What is kept for messages.
const RING_BYTES: usize = 32 << 10;
/// What an error message quotes.
const TAIL_BYTES: usize = 4096;
const TAIL_LINES: usize = 25;
/// What is kept on disk.
const LOG_BYTES: usize = 1 << 20;

/// A guest that floods its console is read at this pace at most; its vCPU waits.
const BURST_BYTES: usize = 64 << 10;
const BURST_PAUSE: Duration = Duration::from_millis(100);

/// The last bytes that came through a pipe.
#[derive(Clone, Debug, Default)]
pub(super) struct Ring(Arc<Mutex<VecDeque<u8>>>);

impl Ring {
    pub(super) fn push(&self, bytes: &[u8]) {
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = &bytes[bytes.len().saturating_sub(RING_BYTES)..];
        let excess = (ring.len() + bytes.len()).saturating_sub(RING_BYTES);
        ring.drain(..excess);
        ring.extend(bytes);
    }

    /// The last lines, safe to print; empty if there are none.
    pub(super) fn tail(&self) -> String {
        let ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let skipped = ring.len().saturating_sub(TAIL_BYTES);
        let bytes: Vec<u8> = ring.iter().skip(skipped).copied().collect();
        let text = text::inert(&bytes);
        let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

/// Reads a pipe until it ends, into `ring` and, as far as it goes, into the file `log`.
pub(super) async fn drain(mut pipe: pipe::Receiver, ring: Ring, log: Option<File>) {
    let (mut log, mut room) = (log, LOG_BYTES);
    let mut buffer = vec![0; 4096];
    let mut burst = 0;
    while let Ok(count) = pipe.read(&mut buffer).await {
        if count == 0 {
            return;
        }
        ring.push(&buffer[..count]);
        let logged = count.min(room);
        if let Some(file) = &mut log
            && file.write_all(&buffer[..logged]).is_err()
        {
            // A full disk; the ring still has the end.
            log = None;
        }
        room -= logged;
        burst += count;
        if burst >= BURST_BYTES {
            burst = 0;
            tokio::time::sleep(BURST_PAUSE).await;
        }
    }
}

/// A new console log. Without one the console is still there for messages.
pub(super) fn open_log(path: &Path) -> Option<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    options.open(path).inspect_err(|error| log::warn!("open {}: {error}", path.display())).ok()
}

/// A pipe whose reading end is asynchronous and whose writing end is for a child.
pub(super) fn pipe_for_child() -> std::io::Result<(pipe::Receiver, OwnedFd)> {
    let (reader, writer) = std::io::pipe()?;
    let reader = pipe::Receiver::from_owned_fd(nonblocking(reader.into())?)?;
    Ok((reader, writer.into()))
}

fn nonblocking(fd: OwnedFd) -> std::io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open; the call takes numbers only.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_end() {
        let ring = Ring::default();
        for number in 0..20_000 {
            ring.push(format!("line {number}\n").as_bytes());
        }
        assert!(ring.0.lock().unwrap().len() <= RING_BYTES);
        let tail = ring.tail();
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(tail.ends_with("line 19999"));
        ring.push(&vec![b'x'; RING_BYTES * 2]);
        assert_eq!(ring.0.lock().unwrap().len(), RING_BYTES);
    }

    #[tokio::test]
    async fn the_log_is_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        let (reader, writer) = pipe_for_child().unwrap();
        let writer = std::thread::spawn(move || {
            let mut file = File::from(writer);
            for _ in 0..(LOG_BYTES + (64 << 10)) / 1024 {
                file.write_all(&[b'a'; 1024]).unwrap();
            }
            file.write_all(b"\nend\n").unwrap();
        });
        let ring = Ring::default();
        drain(reader, ring.clone(), open_log(&path)).await;
        writer.join().unwrap();
        assert_eq!(std::fs::metadata(path).unwrap().len(), LOG_BYTES as u64);
        assert!(ring.tail().ends_with("end"));
    }
}
