//! One session on a port: the handshake, then the process and its streams.

use std::{
    os::fd::BorrowedFd,
    path::Path,
    time::{Duration, Instant},
};

use caisson_agent_protocol::{
    ExitStatus,
    machine::{Frame, Hello, Stream, VERSION},
};

use super::{
    channel::{Channel, ChannelError},
    child::{self, ChildError},
    relay::{self, RelayError},
    workdir::{HostShare, WorkdirError},
};

/// How long a host may take from its first byte to `Go`.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long the last frames may take to leave.
const LAST_WORDS_MS: u16 = 10_000;

#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("talk to the host")]
    Channel(#[from] ChannelError),
    #[error("relay the session's streams")]
    Relay(#[from] RelayError),
}

/// Why a command cannot be started; the host shows it.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(
        "caisson is of another version than the running machine: `caisson machine stop` ends it, the next use starts the new one"
    )]
    Version,
    #[error(transparent)]
    Workdir(#[from] WorkdirError),
}

/// Serves the session whose `Hello` waits at `port`, to its end. Without `share` the
/// command runs where this process is. Returns at once if nobody is there.
///
/// `port` must not block. This process must have no other thread, and no other children.
pub(super) fn serve(port: BorrowedFd<'_>, share: Option<&HostShare>) -> Result<(), SessionError> {
    let mut channel = Channel::new(port);
    let Some((session, hello)) = shake_hands(&mut channel)? else { return Ok(()) };
    if let Err(refusal) = prepare(&hello, share) {
        let words = words(&refusal);
        channel.send(session, &Frame::Refused(words))?;
        return Ok(channel.drain(LAST_WORDS_MS)?);
    }
    match child::start(&hello) {
        Ok(child) => relay::run(&mut channel, session, child)?,
        Err(error) => report(&mut channel, session, &hello, &error)?,
    }
    match channel.drain(LAST_WORDS_MS) {
        Err(ChannelError::Closed) => Ok(()),
        other => Ok(other?),
    }
}

/// Answers `Hello` and waits for `Go` of the same session. `None`: nobody went on.
fn shake_hands(channel: &mut Channel<'_>) -> Result<Option<(u64, Box<Hello>)>, SessionError> {
    let deadline = Instant::now() + HANDSHAKE;
    let mut greeted: Option<(u64, Box<Hello>)> = None;
    while let Some(left) = deadline.checked_duration_since(Instant::now()) {
        let wait_ms = left.as_millis().min(10_000) as u16;
        let (session, frame) = match channel.receive_within(wait_ms) {
            Ok(Some(received)) => received,
            Ok(None) => continue,
            Err(ChannelError::Closed) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        match (frame, &greeted) {
            // A repetition: the answer is on its way.
            (Frame::Hello(_), Some((present, _))) if *present == session => {}
            (Frame::Hello(hello), _) => {
                channel.send(session, &Frame::Accepted)?;
                greeted = Some((session, hello));
            }
            (Frame::Go, Some((present, _))) if *present == session => return Ok(greeted),
            // What an earlier session left behind.
            _ => {}
        }
    }
    Ok(None)
}

fn prepare(hello: &Hello, share: Option<&HostShare>) -> Result<(), Refusal> {
    if hello.version != VERSION {
        return Err(Refusal::Version);
    }
    if let Some(share) = share {
        super::boot::set_clock(hello.time_ns);
        let shared = hello.shared.iter().map(|path| Path::new(path.as_os_str()));
        share.enter(Path::new(hello.cwd.as_os_str()), shared)?;
    }
    Ok(())
}

/// Tells why the command did not start, as its own output and exit code.
fn report(
    channel: &mut Channel<'_>,
    session: u64,
    hello: &Hello,
    error: &ChildError,
) -> Result<(), ChannelError> {
    let on_terminal = hello.terminal.is_some_and(|terminal| terminal.stderr);
    let stream = if on_terminal { Stream::Terminal } else { Stream::Stderr };
    let bytes = format!("caisson machine: {}\r\n", words(error));
    let bytes = if on_terminal { bytes } else { bytes.replace('\r', "") }.into_bytes();
    channel.send(session, &Frame::Output { stream, bytes })?;
    channel.send(session, &Frame::Exit(ExitStatus::Exited(error.exit_code())))
}

/// An error and its causes in one line.
pub(super) fn words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words.push_str(&format!(": {error}"));
        cause = error.source();
    }
    words
}
