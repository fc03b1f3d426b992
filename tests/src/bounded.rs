//! Commands that end: by themselves, or when their time is over.

use std::{
    io::Write,
    process::{Command, Output, Stdio},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// How long the streams of a killed command may stay open: others may hold them.
const AFTER_THE_END: Duration = Duration::from_secs(10);

/// The end of a command.
pub(crate) struct Ended {
    pub(crate) output: Output,
    /// Its time was over, and it was killed.
    pub(crate) killed: bool,
}

/// Runs `command` with this input; kills it after `limit`.
pub(crate) fn run(command: &mut Command, input: &[u8], limit: Duration) -> Result<Ended, String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("start {command:?}: {error}"))?;
    let pid = Pid::from_raw(child.id() as i32);
    let mut stdin = child.stdin.take();
    let input = input.to_vec();
    // A program that does not read leaves the pipe broken: that is its business.
    thread::spawn(move || stdin.as_mut().map(|stdin| stdin.write_all(&input)));
    let (ended, end) = channel();
    thread::spawn(move || ended.send(child.wait_with_output()));
    let (waited, killed) = match end.recv_timeout(limit) {
        Err(RecvTimeoutError::Timeout) => {
            // A child that ends in this very moment leaves its number unused for long.
            let killed = kill(pid, Signal::SIGKILL).is_ok();
            (end.recv_timeout(AFTER_THE_END), killed)
        }
        waited => (waited, false),
    };
    let output = waited.map_err(|_| {
        format!("{command:?}: killed after {limit:?}, and somebody holds its output open")
    })?;
    output
        .map(|output| Ended { output, killed })
        .map_err(|error| format!("wait for {command:?}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit_ms: u64) -> Result<Ended, String> {
        let limit = Duration::from_millis(limit_ms);
        run(Command::new("sh").args(["-c", script]), b"in", limit)
    }

    #[test]
    fn a_command_that_ends_has_its_output() {
        let ended = shell("cat; echo err >&2; exit 3", 60_000).unwrap();
        assert_eq!((ended.killed, ended.output.status.code()), (false, Some(3)));
        assert_eq!(
            (&ended.output.stdout[..], &ended.output.stderr[..]),
            (&b"in"[..], &b"err\n"[..])
        );
        // More than pipes hold.
        let large = shell("head -c 1000000 /dev/zero", 60_000).unwrap();
        assert_eq!(large.output.stdout.len(), 1_000_000);
    }

    #[test]
    fn one_that_does_not_is_killed() {
        let ended = shell("echo some; exec sleep 600", 500).unwrap();
        assert!(ended.killed && ended.output.status.code().is_none());
        assert_eq!(ended.output.stdout, b"some\n");
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let missing = run(&mut Command::new("/nonexistent"), b"", Duration::from_secs(1));
        assert!(missing.err().unwrap().contains("/nonexistent"));
    }
}
