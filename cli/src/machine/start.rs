//! Starts the machine, once, whoever asks first.

use std::{
    fs,
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::{Child, ExitCode},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::sys::signal::Signal;

use super::{
    arguments::StartArgs,
    control::{Control, ControlError},
    directory::{DirectoryError, MachineDirectory},
    instance::{self, InstanceError, Process, Record},
    launch::{self, LaunchError},
    logs,
    memory::{self, MemoryError},
};
use crate::Globals;

/// From QEMU's start to the first answer. A busy host takes a multiple of the usual 4 s.
const READY_LIMIT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);
const CONSOLE_LINES: usize = 25;

const NOTICE: &str = "caisson: emulating a host to run containers in: for development and tests, \
    not for speed and not for hostile code";

#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(transparent)]
    Instance(#[from] InstanceError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(
        "a machine runs with --root {running}, not {asked}; use that, another --state, or `caisson \
         machine stop` first"
    )]
    OtherRoot { running: PathBuf, asked: PathBuf },
    #[error("wait for the emulator")]
    Wait(#[source] io::Error),
    #[error("the emulator has ended before the machine was ready ({status})\n{tail}")]
    Died { status: String, tail: String },
    #[error("the machine was not ready within {} s\n{tail}", READY_LIMIT.as_secs())]
    Late { tail: String },
}

/// `caisson machine start`
pub(super) fn command(globals: &Globals, options: &StartArgs) -> anyhow::Result<ExitCode> {
    let directory = MachineDirectory::new(globals);
    let began = Instant::now();
    match ensure_running(globals, options)? {
        Outcome::WasRunning => eprintln!("the machine runs already"),
        Outcome::Started => {
            eprintln!("the machine is ready after {:.1} s", began.elapsed().as_secs_f32());
        }
    }
    if options.foreground {
        logs::follow(&directory)?;
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    WasRunning,
    Started,
}

/// Returns when a machine with this `--root` answers. Of several callers at a time one
/// starts it and the others wait.
pub(super) fn ensure_running(
    globals: &Globals,
    options: &StartArgs,
) -> Result<Outcome, StartError> {
    let directory = MachineDirectory::new(globals);
    if is_ready(&directory, globals)? {
        return Ok(Outcome::WasRunning);
    }
    directory.create()?;
    let _lock = directory.lock_changes()?;
    if is_ready(&directory, globals)? {
        return Ok(Outcome::WasRunning);
    }
    start(globals, options, &directory)?;
    Ok(Outcome::Started)
}

/// Whether a machine runs and has answered its starter.
fn is_ready(directory: &MachineDirectory, globals: &Globals) -> Result<bool, StartError> {
    if !instance::is_running(directory)? {
        return Ok(false);
    }
    match Record::read(directory)? {
        Some(record) if record.root != globals.root => {
            Err(StartError::OtherRoot { running: record.root, asked: globals.root.clone() })
        }
        Some(record) => Ok(record.ready),
        None => Ok(false),
    }
}

fn start(
    globals: &Globals,
    options: &StartArgs,
    directory: &MachineDirectory,
) -> Result<(), StartError> {
    let mut child = None;
    // A starter that was killed may have left an emulator that boots, and its record.
    let left =
        Record::read(directory)?.filter(|_| instance::is_running(directory).unwrap_or(false));
    let mut record = match left {
        Some(record) => record,
        None => {
            let record = new_record(globals, options)?;
            child = Some(launch::launch(globals, options.disk_size, directory, &record)?);
            eprintln!("{NOTICE}");
            record
        }
    };
    wait_until_ready(directory, child.as_mut())?;
    record.ready = true;
    Ok(record.write(directory)?)
}

fn new_record(globals: &Globals, options: &StartArgs) -> Result<Record, StartError> {
    Ok(Record {
        root: globals.root.clone(),
        // Counting, time stands still on one CPU while the other one waits for it.
        cpus: options.cpus.unwrap_or(if options.icount { 1 } else { 2 }),
        memory_bytes: memory::decide(options.memory)?,
        icount: options.icount,
        started: since_epoch(),
        ready: false,
    })
}

fn wait_until_ready(
    directory: &MachineDirectory,
    mut child: Option<&mut Child>,
) -> Result<(), StartError> {
    let began = Instant::now();
    let mut progress = Progress::new();
    let mut control = None;
    let result = loop {
        match try_query(directory, &mut control) {
            Ok(true) => break Ok(()),
            // Not listening yet, or gone, which the next lines tell apart.
            Ok(false) | Err(ControlError::Connection(_)) => {}
            Err(error) => break Err(error.into()),
        }
        if let Some(status) = ended(directory, child.as_deref_mut())? {
            break Err(StartError::Died { status, tail: tail(directory) });
        }
        if began.elapsed() > READY_LIMIT {
            break Err(StartError::Late { tail: tail(directory) });
        }
        progress.tick(began.elapsed());
        std::thread::sleep(POLL);
    };
    progress.clear();
    if result.is_err() {
        // Half a machine is of no use, and would stand in the way of the next start.
        if let Some(process) = Process::find(directory)? {
            process.signal(Signal::SIGKILL)?;
            process.wait(Duration::from_secs(5));
        }
        let _ = fs::remove_file(directory.record());
    }
    result
}

/// Whether the machine answers. The query is sent once for each connection and
/// waits in the socket until the machine's init reads it.
fn try_query(
    directory: &MachineDirectory,
    control: &mut Option<Control>,
) -> Result<bool, ControlError> {
    if control.is_none() {
        let opened = Control::open(directory)?;
        opened.query()?;
        *control = Some(opened);
    }
    let answer = control.as_mut().map(|control| control.answer(POLL)).transpose();
    if answer.is_err() {
        *control = None;
    }
    Ok(answer?.flatten().is_some())
}

/// How the emulator has ended, if it has.
fn ended(
    directory: &MachineDirectory,
    child: Option<&mut Child>,
) -> Result<Option<String>, StartError> {
    match child {
        Some(child) => {
            let status = child.try_wait().map_err(StartError::Wait)?;
            Ok(status.map(|status| status.to_string()))
        }
        None if instance::is_running(directory)? => Ok(None),
        None => Ok(Some("its starter has gone".into())),
    }
}

fn tail(directory: &MachineDirectory) -> String {
    let mut tail = String::new();
    for path in [directory.qemu_log(), directory.console()] {
        for line in logs::last_lines(&path, CONSOLE_LINES).unwrap_or_default() {
            tail.push_str(&format!("  | {line}\n"));
        }
    }
    tail.trim_end().into()
}

fn since_epoch() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A line on the terminal that says how long the start takes.
struct Progress {
    shown: bool,
}

impl Progress {
    fn new() -> Self {
        Self { shown: false }
    }

    fn tick(&mut self, elapsed: Duration) {
        let mut stderr = io::stderr();
        if stderr.is_terminal() {
            self.shown = true;
            let _ = write!(stderr, "\rstarting the machine … {:.1} s ", elapsed.as_secs_f32());
        }
    }

    fn clear(&self) {
        if self.shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
