//! The threads that move a session's bytes: one that reads standard input, one for each
//! output, so that a reader that stands still holds up its own stream only.

use std::{
    io,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        mpsc::{self, Receiver},
    },
    thread::{self, JoinHandle},
};

use caisson_agent_protocol::machine::{Frame, MAX_DATA_BYTES, Stream, WINDOW_BYTES};

use super::connection::Sender;

/// How much of standard input may be sent.
#[derive(Clone)]
pub(super) struct InputCredit(Arc<(Mutex<Credit>, Condvar)>);

struct Credit {
    bytes: usize,
    closed: bool,
}

impl InputCredit {
    pub(super) fn new() -> Self {
        let credit = Credit { bytes: WINDOW_BYTES as usize, closed: false };
        Self(Arc::new((Mutex::new(credit), Condvar::new())))
    }

    pub(super) fn grant(&self, bytes: u32) {
        self.change(|credit| {
            credit.bytes = (credit.bytes + bytes as usize).min(WINDOW_BYTES as usize);
        });
    }

    /// Nobody reads the input any more.
    pub(super) fn close(&self) {
        self.change(|credit| credit.closed = true);
    }

    fn change(&self, change: impl FnOnce(&mut Credit)) {
        change(&mut self.0.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.0.1.notify_all();
    }

    /// Waits until something may be sent; `None` when nothing may any more.
    fn available(&self) -> Option<usize> {
        let guard = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let credit = self
            .0
            .1
            .wait_while(guard, |credit| !credit.closed && credit.bytes == 0)
            .unwrap_or_else(PoisonError::into_inner);
        (!credit.closed).then_some(credit.bytes)
    }

    fn spend(&self, bytes: usize) {
        self.change(|credit| credit.bytes = credit.bytes.saturating_sub(bytes));
    }
}

/// Reads standard input and sends it. The thread may stay in its read when the session
/// ends, so nobody waits for it.
pub(super) fn spawn_input(sender: Sender, credit: InputCredit) -> io::Result<()> {
    thread::Builder::new().name("machine-stdin".into()).spawn(move || {
        let mut buffer = vec![0; MAX_DATA_BYTES];
        while let Some(most) = credit.available() {
            let most = most.min(buffer.len());
            let count = match read_fd(0, &mut buffer[..most]) {
                Ok(0) | Err(_) => break,
                Ok(count) => count,
            };
            credit.spend(count);
            if sender.send(&Frame::Stdin(buffer[..count].to_vec())).is_err() {
                return;
            }
        }
        // Without a connection the receiving side reports it.
        let _ = sender.send(&Frame::StdinEnd);
    })?;
    Ok(())
}

/// One of this process's outputs, fed by the session.
pub(super) struct Output {
    queue: mpsc::Sender<Vec<u8>>,
    thread: JoinHandle<()>,
}

impl Output {
    /// Shows `stream` on the file descriptor `fd`. What waits is bounded by the credit.
    pub(super) fn spawn(stream: Stream, fd: i32, sender: Sender) -> io::Result<Self> {
        let (queue, waiting) = mpsc::channel();
        let name = format!("machine-out{}", stream as u8);
        let thread = thread::Builder::new()
            .name(name)
            .spawn(move || show_all(stream, fd, &sender, &waiting))?;
        Ok(Self { queue, thread })
    }

    pub(super) fn show(&self, bytes: Vec<u8>) {
        // The thread ends only when this sender does, or when nobody reads the output.
        let _ = self.queue.send(bytes);
    }

    /// Waits until all is written.
    pub(super) fn finish(self) {
        drop(self.queue);
        let _ = self.thread.join();
    }
}

fn show_all(stream: Stream, fd: i32, sender: &Sender, waiting: &Receiver<Vec<u8>>) {
    while let Ok(bytes) = waiting.recv() {
        if write_all_fd(fd, &bytes).is_err() {
            // The command gets to know it as it would here: by SIGPIPE.
            let _ = sender.send(&Frame::OutputClosed(stream));
            return;
        }
        let _ = sender.send(&Frame::Credit { stream, bytes: bytes.len() as u32 });
    }
}

/// One read, waiting also where the file is set not to: it may be shared with others, so
/// its mode is theirs.
fn read_fd(fd: i32, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        // SAFETY: read writes at most the buffer's length into the buffer.
        let count = unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) };
        if count >= 0 {
            return Ok(count as usize);
        }
        retry_later(fd, libc::POLLIN)?;
    }
}

fn write_all_fd(fd: i32, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        // SAFETY: write reads at most the slice's length from the slice.
        let count = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
        match count {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            1.. => bytes = &bytes[count as usize..],
            _ => retry_later(fd, libc::POLLOUT)?,
        }
    }
    Ok(())
}

/// After a failed call: waits if it only came too early, else returns its error.
fn retry_later(fd: i32, events: libc::c_short) -> io::Result<()> {
    let error = io::Error::last_os_error();
    match error.kind() {
        io::ErrorKind::Interrupted => Ok(()),
        io::ErrorKind::WouldBlock => {
            let mut ready = libc::pollfd { fd, events, revents: 0 };
            // SAFETY: poll reads and writes the one pollfd that it is given.
            unsafe { libc::poll(&mut ready, 1, -1) };
            Ok(())
        }
        _ => Err(error),
    }
}
