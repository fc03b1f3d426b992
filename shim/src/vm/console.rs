//! What the guest writes on its serial console: the last of it for error messages, and more
//! of it in the bundle's `console.log` and `console.log.1`.

use std::{
    collections::VecDeque,
    fs,
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{io::AsyncReadExt, net::unix::pipe};

use crate::{
    stdio::{
        log_files,
        rotating_file::{RotatingFile, Rotation},
    },
    text,
};

/// What is kept for messages.
const RING_BYTES: usize = 32 << 10;
/// What an error message quotes.
const TAIL_BYTES: usize = 4096;
const TAIL_LINES: usize = 25;
/// What is kept on disk: the end, in two files.
const LOG: Rotation = Rotation { max_bytes: Some(512 << 10), max_files: 2 };
const LOG_MODE: u32 = 0o600;

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

/// Reads a pipe until it ends, into `ring` and into `log`.
pub(super) async fn drain(mut pipe: pipe::Receiver, ring: Ring, mut log: Option<RotatingFile>) {
    let mut buffer = vec![0; 4096];
    let mut burst = 0;
    while let Ok(count) = pipe.read(&mut buffer).await {
        if count == 0 {
            return;
        }
        ring.push(&buffer[..count]);
        if let Some(file) = &mut log
            && file.append(&buffer[..count]).is_err()
        {
            // A full disk; the ring still has the end.
            log = None;
        }
        burst += count;
        if burst >= BURST_BYTES {
            burst = 0;
            tokio::time::sleep(BURST_PAUSE).await;
        }
    }
}

/// A new console log. Without one the console is still there for messages.
pub(super) fn open_log(path: &Path) -> Option<RotatingFile> {
    let open = || {
        for file in log_files::oldest_first(path)? {
            fs::remove_file(file)?;
        }
        RotatingFile::open(path, LOG, LOG_MODE)
    };
    open().inspect_err(|error| log::warn!("open {}: {error}", path.display())).ok()
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
    use std::{fs::File, io::Write};

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
    async fn the_log_is_bounded_and_keeps_the_end() {
        const SENT_BYTES: usize = (1 << 20) + (300 << 10);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        // Of a VM before.
        std::fs::write(log_files::numbered(&path, 1), "old").unwrap();
        let (reader, writer) = pipe_for_child().unwrap();
        let writer = std::thread::spawn(move || {
            let mut file = File::from(writer);
            for _ in 0..SENT_BYTES / 1024 {
                file.write_all(&[b'a'; 1024]).unwrap();
            }
            file.write_all(b"\nend\n").unwrap();
        });
        let ring = Ring::default();
        drain(reader, ring.clone(), open_log(&path)).await;
        writer.join().unwrap();
        let files = log_files::oldest_first(&path).unwrap();
        let text: String =
            files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
        assert!((512 << 10..=1 << 20).contains(&text.len()), "{}", text.len());
        assert!(text.ends_with("a\nend\n") && !text.contains("old"));
        assert!(ring.tail().ends_with("end"));
    }
}
