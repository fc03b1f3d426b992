//! One confined process: its start, its answer, its end.
//!
//! Standard input is the foreign data, standard output what is made of it, standard error
//! the socket for order and answer. Nothing else is inherited but, with the order, a
//! scratch file.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::thread::CapabilitySet;

use super::job::{Answer, Confinement, Job, MAX_LINE_BYTES, Order, Report, tamed};
use super::{UnpackError, Unpacker};

/// Between the last byte of input and the answer: writing names and inodes.
const TIME_TO_ANSWER: Duration = Duration::from_secs(600);
/// Between the last word and the end.
const TIME_TO_END: Duration = Duration::from_secs(2);

/// Who unpacks, on hosts where that can be chosen: the first user behind those of the VMs.
const UNPACK_UID: u32 = 1_065_536;

pub(super) struct Worker {
    body: Body,
    control: UnixStream,
}

enum Body {
    Process(Child),
    #[cfg(any(test, feature = "testing"))]
    Thread,
}

impl Worker {
    pub(super) fn start(
        unpacker: &Unpacker,
        job: Job,
        input: OwnedFd,
        output: OwnedFd,
        scratch: Option<&File>,
    ) -> Result<Worker, UnpackError> {
        let exchange = |action| move |source| UnpackError::Exchange { action, source };
        let (control, theirs) = UnixStream::pair().map_err(exchange("make a socket for"))?;
        let program = unpacker.program()?;
        let confinement = match program {
            None => Confinement::None,
            Some(_) if can_leave_the_host() => Confinement::Full { uid: UNPACK_UID },
            Some(_) => Confinement::Unprivileged,
        };
        let body = match program {
            Some(program) => spawn(&program, input, output, theirs)?,
            #[cfg(any(test, feature = "testing"))]
            None => {
                let files = super::worker::Files {
                    input: input.into(),
                    output: output.into(),
                    control: OwnedFd::from(theirs).into(),
                };
                std::thread::spawn(move || super::worker::serve(files));
                Body::Thread
            }
            #[cfg(not(any(test, feature = "testing")))]
            None => unreachable!("there is always a program outside tests"),
        };
        let mut worker = Worker { body, control };
        match worker.order(&Order { job, confinement }, scratch) {
            // It is gone already; how it ended comes out when it is asked.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            result => result.map_err(exchange("instruct"))?,
        }
        Ok(worker)
    }

    fn order(&mut self, order: &Order, scratch: Option<&File>) -> io::Result<()> {
        let mut line = serde_json::to_vec(order).expect("an order is plain data");
        line.push(b'\n');
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let files = scratch.map(|file| [file.as_fd()]);
        if let Some(files) = &files {
            ancillary.push(SendAncillaryMessage::ScmRights(files));
        }
        // A new socket takes a short message whole.
        sendmsg(&self.control, &[IoSlice::new(&line)], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Tells a converter that its input was whole, and which identity its image gets.
    pub(super) fn identify(&mut self, uuid: [u8; 16]) {
        // If nobody listens any more, the answer tells why.
        let _ = self.control.write_all(&uuid);
    }

    /// Waits for the answer; afterwards the process is gone.
    pub(super) fn finish(mut self) -> Result<Report, UnpackError> {
        let line = self.read_line()?;
        match serde_json::from_slice::<Answer>(&line) {
            Ok(answer) => {
                // It has nothing more to do, and must not do anything more.
                self.end(Duration::ZERO);
                answer_of(answer)
            }
            Err(_) => {
                let last_words = tamed(&String::from_utf8_lossy(&line));
                match self.end(TIME_TO_END) {
                    Some(status) if !status.success() => {
                        Err(UnpackError::Died(super::End::new(status, last_words)))
                    }
                    _ => Err(UnpackError::Answer),
                }
            }
        }
    }

    /// Up to a line's end, the end of the stream, or the longest line.
    fn read_line(&mut self) -> Result<Vec<u8>, UnpackError> {
        let failed = |source| UnpackError::Exchange { action: "hear", source };
        let begun = Instant::now();
        let mut line = Vec::new();
        let mut buffer = [0; 1024];
        while line.len() < MAX_LINE_BYTES && line.last() != Some(&b'\n') {
            let left = TIME_TO_ANSWER.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Err(UnpackError::Hung { seconds: TIME_TO_ANSWER.as_secs() });
            }
            self.control.set_read_timeout(Some(left)).map_err(failed)?;
            match self.control.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => line.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The socket of a process that died with something unread.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break,
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(line)
    }

    /// Lets the process end within `patience`, or ends it. Its status if it ended by itself.
    fn end(&mut self, patience: Duration) -> Option<ExitStatus> {
        #[allow(clippy::infallible_destructuring_match, reason = "tests have another case")]
        let child = match &mut self.body {
            Body::Process(child) => child,
            #[cfg(any(test, feature = "testing"))]
            Body::Thread => return None,
        };
        let begun = Instant::now();
        while begun.elapsed() < patience {
            if let Ok(Some(status)) = child.try_wait() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // Fail only for a process that has been waited for.
        let _ = child.kill();
        let _ = child.wait();
        None
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

fn spawn(
    program: &Path,
    input: OwnedFd,
    output: OwnedFd,
    control: UnixStream,
) -> Result<Body, UnpackError> {
    let child = Command::new(program)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(input))
        .stdout(Stdio::from(output))
        .stderr(Stdio::from(OwnedFd::from(control)))
        .spawn();
    match child {
        Ok(child) => Ok(Body::Process(child)),
        Err(source) => Err(UnpackError::Start { path: program.to_owned(), source }),
    }
}

fn answer_of(answer: Answer) -> Result<Report, UnpackError> {
    match answer {
        Answer::Done(report) => Ok(report),
        Answer::Refused(message) => Err(UnpackError::Refused { message: tamed(&message) }),
        Answer::Disk(number) => Err(UnpackError::Image(io::Error::from_raw_os_error(number))),
        Answer::Unconfined(message) => Err(UnpackError::Confine { message: tamed(&message) }),
    }
}

/// Whether this process has the rights by which another one can take leave of the host's
/// namespaces and users. Root in a container often has not.
fn can_leave_the_host() -> bool {
    let needed = CapabilitySet::SYS_ADMIN
        | CapabilitySet::SETUID
        | CapabilitySet::SETGID
        | CapabilitySet::SETPCAP;
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(needed))
}
