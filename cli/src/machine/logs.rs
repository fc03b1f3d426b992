//! `caisson machine logs`: the machine's console.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};

use super::{arguments::LogsArgs, directory::MachineDirectory, instance::Process, stop};
use crate::Globals;

/// No more than this is read of a log to show its end.
const MOST_BYTES: u64 = 1 << 20;
const FOLLOW: Duration = Duration::from_millis(200);

pub(super) fn command(globals: &Globals, options: &LogsArgs) -> anyhow::Result<ExitCode> {
    let directory = MachineDirectory::new(globals);
    for path in [directory.qemu_log(), directory.console()] {
        match last_lines(&path, options.tail) {
            Ok(lines) => lines.iter().for_each(|line| println!("{line}")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(anyhow::anyhow!("read {}: {error}", path.display())),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows the console as it grows, until the machine ends, and ends it on Ctrl-C.
pub(super) fn follow(directory: &MachineDirectory) -> anyhow::Result<()> {
    let asked_to_end: SigSet =
        [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    asked_to_end.thread_block()?;
    let asked =
        SignalFd::with_flags(&asked_to_end, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let mut console = File::open(directory.console())?;
    while let Some(process) = Process::find(directory)? {
        copy_inert(&mut console)?;
        if asked.read_signal()?.is_some() {
            stop::stop(directory, false)?;
        }
        process.wait(FOLLOW);
    }
    copy_inert(&mut console)
}

fn copy_inert(console: &mut File) -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    console.read_to_end(&mut bytes)?;
    let text: String = String::from_utf8_lossy(&bytes).chars().map(inert).collect();
    let mut out = io::stdout().lock();
    Ok(out.write_all(text.as_bytes()).and_then(|()| out.flush())?)
}

/// The last lines of a log, without control characters.
pub(super) fn last_lines(path: &Path, most: usize) -> io::Result<Vec<String>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MOST_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(MOST_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let from = lines.len().saturating_sub(most);
    Ok(lines[from..].iter().map(|line| line.trim_end().chars().map(inert).collect()).collect())
}

/// What comes from the machine shall not steer the terminal.
fn inert(character: char) -> char {
    match character {
        '\n' | '\t' => character,
        '\r' => ' ',
        character if character.is_control() => '\u{fffd}',
        character => character,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_shown_without_its_escapes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        std::fs::write(&path, b"one\r\n\ntwo \x1b[31m\nthree\xff\n").unwrap();
        assert_eq!(last_lines(&path, 2).unwrap(), ["two \u{fffd}[31m", "three\u{fffd}"]);
        assert_eq!(last_lines(&path, 9).unwrap().len(), 3);
    }

    #[test]
    fn a_huge_log_costs_no_more_than_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        let file = File::create(&path).unwrap();
        file.set_len(1 << 40).unwrap();
        assert!(last_lines(&path, 5).unwrap().len() <= 1);
    }
}
