//! `logs`: what a container has written, and what it writes.

mod reader;

use std::{
    collections::VecDeque,
    io::{self, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::Duration,
};

use clap::Args;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};

pub(super) use self::reader::Log;
use self::reader::Record;
use crate::{
    engine::Engine,
    failure::{CommandResult, Failure},
    format::{
        moment,
        units::{self, UnixNanos},
    },
    globals::Globals,
    records::{Container, State},
};

#[derive(Args, Clone, Debug)]
pub struct LogsArgs {
    /// Follow log output
    #[arg(short, long)]
    pub follow: bool,

    /// Show logs since timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)
    #[arg(long, value_name = "string")]
    pub since: Option<String>,

    /// Number of lines to show from the end of the logs
    #[arg(short = 'n', long, value_name = "string", default_value = "all")]
    pub tail: String,

    /// Show timestamps
    #[arg(short, long)]
    pub timestamps: bool,

    /// Show logs before a timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)
    #[arg(long, value_name = "string")]
    pub until: Option<String>,

    #[arg(value_name = "CONTAINER", hide = true)]
    pub container: String,
}

#[derive(Debug, thiserror::Error)]
enum LogsError {
    #[error("container {0} keeps no logs: it was made with --log-driver none")]
    NotKept(String),
    #[error("watch {path}")]
    Watch { path: PathBuf, source: nix::errno::Errno },
}

/// Which records to show, and how.
pub(super) struct Selection {
    since: Option<UnixNanos>,
    until: Option<UnixNanos>,
    tail: Option<usize>,
    timestamps: bool,
}

pub(super) fn logs(globals: &Globals, args: &LogsArgs) -> CommandResult {
    let now = units::now();
    let time =
        |text: &Option<String>| text.as_deref().map(|text| moment::parse(text, now)).transpose();
    let selection = Selection {
        since: time(&args.since)?,
        until: time(&args.until)?,
        // Anything but a number is all, as in Docker.
        tail: args.tail.parse().ok(),
        timestamps: args.timestamps,
    };
    let engine = Engine::open(globals)?;
    let container = engine.records.find(&args.container)?;
    if container.config.as_ref().is_some_and(|config| !config.keeps_logs()) {
        return Err(LogsError::NotKept(container.name).into());
    }
    let Some(mut log) = Log::open(&engine.log_path(&container.id))? else {
        return Ok(ExitCode::SUCCESS);
    };
    show(&mut log, &selection)?;
    if args.follow && container.state == State::Running {
        follow(&engine, &container, &mut log, &Selection { tail: None, ..selection })?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows the records that are there and selected.
fn show(log: &mut Log, selection: &Selection) -> Result<(), Failure> {
    let Some(tail) = selection.tail else {
        while let Some(record) = log.next()? {
            print(&record, selection)?;
        }
        return Ok(());
    };
    let mut last = VecDeque::new();
    while let Some(record) = log.next()? {
        if selection.includes(&record) {
            last.push_back(record);
            if last.len() > tail {
                last.pop_front();
            }
        }
    }
    last.iter().try_for_each(|record| print(record, selection))
}

impl Selection {
    /// What is logged from now on.
    pub(super) fn new_output() -> Self {
        Self { since: None, until: None, tail: None, timestamps: false }
    }

    fn includes(&self, record: &Record) -> bool {
        if self.since.is_none() && self.until.is_none() {
            return true;
        }
        let Some(time) = units::parse_rfc3339(&record.time) else { return true };
        self.since.is_none_or(|since| time >= since) && self.until.is_none_or(|until| time <= until)
    }
}

/// To the stream it came by. The container's own escape sequences are its business, as
/// when it runs attached.
fn print(record: &Record, selection: &Selection) -> Result<(), Failure> {
    if !selection.includes(record) {
        return Ok(());
    }
    let time = if selection.timestamps { format!("{} ", record.time) } else { String::new() };
    let text = format!("{time}{}", record.log);
    match record.stream.as_str() {
        "stderr" => io::stderr().write_all(text.as_bytes())?,
        _ => {
            let mut stdout = io::stdout();
            stdout.write_all(text.as_bytes())?;
            stdout.flush()?;
        }
    }
    Ok(())
}

/// Shows what is added until the container has ended.
pub(super) fn follow(
    engine: &Engine,
    container: &Container,
    log: &mut Log,
    selection: &Selection,
) -> Result<(), Failure> {
    let path = log.path().to_owned();
    let failed = |source| LogsError::Watch { path: path.clone(), source };
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(failed)?;
    // A rotation makes a new file.
    let directory = path.parent().unwrap_or(Path::new("/"));
    inotify.add_watch(directory, AddWatchFlags::IN_CREATE).map_err(failed)?;
    let (ended, running) = std::io::pipe()?;
    match engine.connect(container) {
        Ok(client) => {
            // Closes its end of the pipe when the container has ended.
            thread::spawn(move || {
                let _running = running;
                client.wait(None)
            });
        }
        Err(_) => drop(running),
    }
    loop {
        match inotify.add_watch(&path, AddWatchFlags::IN_MODIFY) {
            // Within a rotation; the new file is an event of its directory.
            Ok(_) | Err(nix::errno::Errno::ENOENT) => {}
            Err(source) => return Err(failed(source).into()),
        }
        // After the watch: what is written from now on is an event.
        show(log, selection)?;
        let mut fds = [
            PollFd::new(inotify.as_fd(), PollFlags::POLLIN),
            PollFd::new(ended.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => other?,
        };
        let has_ended = fds[1].any().unwrap_or(true);
        // Many changes are one reason to look.
        while inotify.read_events().is_ok_and(|events| !events.is_empty()) {}
        if has_ended {
            // The last output is written before the wait returns; a relay of this program's
            // own may be a moment behind.
            thread::sleep(Duration::from_millis(50));
            return show(log, selection);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_select() {
        let record =
            |time: &str| Record { log: String::new(), stream: String::new(), time: time.into() };
        let selection =
            Selection { since: Some(5), until: Some(1_000_000_000), tail: None, timestamps: false };
        assert!(selection.includes(&record("1970-01-01T00:00:00.5Z")));
        assert!(!selection.includes(&record("1970-01-01T00:00:00Z")));
        assert!(!selection.includes(&record("1970-01-01T00:00:02Z")));
    }
}
