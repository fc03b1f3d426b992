//! Copies this process's input to a process in a container.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::PathBuf,
    sync::mpsc::Sender,
    thread,
};

use caisson_shim::client::ShimClient;

use super::{
    AttachError,
    detach_keys::{DetachKeys, Matcher, Typed},
    fifo,
    session::Event,
};

const BUFFER_BYTES: usize = 32 << 10;

/// Where input goes, and what ends it.
pub struct InputCopy {
    /// The process's FIFO, which the shim has open.
    pub fifo: PathBuf,
    pub client: ShimClient,
    pub exec: Option<String>,
    /// Only for a terminal.
    pub detach_keys: Option<DetachKeys>,
}

impl InputCopy {
    /// Copies on a thread that nobody joins: a read from a terminal cannot be broken off.
    pub fn spawn(self, events: Sender<Event>) -> Result<(), AttachError> {
        let to = fifo::open_input(&self.fifo)?;
        let copy = move || {
            let from = super::output::own_stream(io::stdin());
            let copied = from.map(|from| copy_input(from, to, self.detach_keys));
            if let Some(Ok(true)) = copied {
                // The receiver is gone when the process has ended.
                let _ = events.send(Event::Detached);
                return;
            }
            // The FIFO is closed by now; this lets the shim pass its end on.
            if let Err(error) = self.client.close_stdin(self.exec.as_deref()) {
                tracing::debug!(%error, "close standard input");
            }
        };
        thread::Builder::new()
            .name("stdin".into())
            .spawn(copy)
            .map(drop)
            .map_err(|source| AttachError::Thread { what: "stdin", source })
    }
}

/// Until either side ends; whether the detach keys were typed.
fn copy_input(mut from: File, mut to: File, keys: Option<DetachKeys>) -> io::Result<bool> {
    let mut matcher = keys.map(Matcher::new);
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait_readable(&from)?;
                continue;
            }
            // A terminal that hung up.
            Err(_) => break,
        };
        let Some(matcher) = &mut matcher else {
            to.write_all(&buffer[..count])?;
            continue;
        };
        match matcher.push(&buffer[..count]) {
            Typed::Input(input) => to.write_all(&input)?,
            Typed::Detach(input) => {
                to.write_all(&input)?;
                return Ok(true);
            }
        }
    }
    if let Some(matcher) = &mut matcher {
        to.write_all(&matcher.finish())?;
    }
    Ok(false)
}

fn wait_readable(file: &File) -> io::Result<()> {
    use std::os::fd::AsFd;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
    super::output::retry(|| poll(&mut fds, PollTimeout::NONE)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copied(input: &[u8], keys: Option<&str>) -> (bool, Vec<u8>) {
        let root = tempfile::tempdir().unwrap();
        let (from, to) = (root.path().join("from"), root.path().join("to"));
        std::fs::write(&from, input).unwrap();
        let keys = keys.map(|keys| DetachKeys::parse(keys).unwrap());
        let detached =
            copy_input(File::open(&from).unwrap(), File::create(&to).unwrap(), keys).unwrap();
        (detached, std::fs::read(&to).unwrap())
    }

    #[test]
    fn input_is_passed_on_and_keys_detach_only_at_a_terminal() {
        let typed = b"ls\n\x10\x11more";
        assert_eq!(copied(typed, None), (false, typed.to_vec()));
        assert_eq!(copied(typed, Some(DetachKeys::DEFAULT)), (true, b"ls\n".to_vec()));
        assert_eq!(copied(b"end\x10", Some(DetachKeys::DEFAULT)), (false, b"end\x10".to_vec()));
    }
}
