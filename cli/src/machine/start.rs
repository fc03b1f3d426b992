//! Starts the machine, once, whoever asks first.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IsTerminal, Write},
    os::{
        fd::AsRawFd,
        unix::{fs::OpenOptionsExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use caisson_agent_protocol::machine::{BootArguments, VERSION};
use caisson_shim::assets::{AssetError, Assets};
use nix::sys::signal::Signal;

use super::{
    arguments::StartArgs,
    control::{Control, ControlError},
    directory::{DirectoryError, MachineDirectory, open_private},
    disk::{self, DiskError},
    instance::{self, InstanceError, Process, Record},
    logs, qemu,
};
use crate::Globals;

/// From QEMU's start to the first answer. A busy host takes a multiple of the usual 4 s.
const READY_LIMIT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);
const CONSOLE_LINES: usize = 25;
const MIB: u64 = 1 << 20;
const LEAST_MEMORY: u64 = 512 * MIB;
const USUAL_MEMORY: u64 = 4096 * MIB;

const NOTICE: &str = "caisson: no usable KVM here, so containers run in an emulated host: for \
    development and tests, not for speed and not for hostile code (docs/machine.md)";

#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(transparent)]
    Instance(#[from] InstanceError),
    #[error(transparent)]
    Asset(#[from] AssetError),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(
        "the machine needs root: its emulator shares the host's files as they are; run caisson by sudo"
    )]
    NotRoot,
    #[error(
        "a machine runs with --root {running}, not {asked}; use that, another --state, or `caisson machine stop` first"
    )]
    OtherRoot { running: PathBuf, asked: PathBuf },
    #[error("the machine needs {LEAST_MEMORY} bytes of memory at least, {asked} are too few")]
    TooLittleMemory { asked: u64 },
    #[error(
        "the host has {available} bytes of memory available, the machine asks for {asked}; `--memory` sets less"
    )]
    HostMemory { available: u64, asked: u64 },
    #[error("start {}; install the Debian package qemu-system-x86", qemu::PROGRAM)]
    NoQemu(#[source] io::Error),
    #[error("start {}", qemu::PROGRAM)]
    Spawn(#[source] io::Error),
    #[error("the emulator has ended before the machine was ready ({status})\n{tail}")]
    Died { status: String, tail: String },
    #[error("the machine was not ready within {} s\n{tail}", READY_LIMIT.as_secs())]
    Late { tail: String },
    #[error("the running machine is of another version of caisson; `caisson machine stop` ends it")]
    OtherVersion,
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
    if !nix::unistd::geteuid().is_root() {
        return Err(StartError::NotRoot);
    }
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
    let mut record = Record {
        root: globals.root.clone(),
        // Counting, time stands still on one CPU while the other one waits for it.
        cpus: options.cpus.unwrap_or(if options.icount { 1 } else { 2 }),
        memory_bytes: memory(options.memory)?,
        icount: options.icount,
        started: since_epoch(),
        ready: false,
    };
    // A starter that was killed may have left an emulator that boots.
    let mut child = None;
    if !instance::is_running(directory)? {
        eprintln!("{NOTICE}");
        child = Some(launch(globals, options, directory, &record)?);
    }
    wait_until_ready(directory, child.as_mut())?;
    record.ready = true;
    Ok(record.write(directory)?)
}

/// Prepares the disk and starts QEMU in the background.
fn launch(
    globals: &Globals,
    options: &StartArgs,
    directory: &MachineDirectory,
    record: &Record,
) -> Result<Child, StartError> {
    let assets = Assets::locate()?.machine()?;
    // The machine mounts something of its own at both, so both must be there.
    disk::prepare(&directory.disk(), options.disk_size)?;
    record.write(directory)?;
    let plan = qemu::Plan {
        cpus: record.cpus,
        memory_bytes: record.memory_bytes,
        icount: record.icount,
        kernel: present(assets.join("kernel"))?,
        initramfs: present(assets.join("initramfs.cpio"))?,
        boot: BootArguments {
            root: globals.root.clone(),
            state: globals.state.clone(),
            modules: present(assets.join("modules/lib/modules"))?,
        },
        directory,
    };
    spawn(&plan, directory)
}

fn present(path: PathBuf) -> Result<PathBuf, AssetError> {
    match path.canonicalize() {
        Ok(path) => Ok(path),
        Err(_) => Err(AssetError::Missing { what: "a part of the machine", path }),
    }
}

fn spawn(plan: &qemu::Plan<'_>, directory: &MachineDirectory) -> Result<Child, StartError> {
    remove_old_sockets(&directory.ports());
    let log = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(directory.qemu_log())
        .map_err(StartError::Spawn)?;
    let alive = open_private(&directory.alive_lock())?;
    let mut command = Command::new(qemu::PROGRAM);
    command
        .args(plan.arguments())
        .current_dir(directory.ports())
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(StartError::Spawn)?)
        .stderr(log);
    // SAFETY: between fork and exec `prepare` makes only async-signal-safe calls, on a
    // descriptor that stays open until the command is dropped.
    unsafe { command.pre_exec(move || prepare(&alive)) };
    command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => StartError::NoQemu(error),
        _ => StartError::Spawn(error),
    })
}

/// In the child, before it becomes QEMU: leaves the terminal, takes the lock that tells
/// that it lives, and writes its number there.
fn prepare(alive: &File) -> io::Result<()> {
    let fd = alive.as_raw_fd();
    // SAFETY: plain system calls on an open descriptor; `number` outlives the write, and
    // `files` the setrlimit.
    unsafe {
        if libc::setsid() < 0 || libc::flock(fd, libc::LOCK_EX | libc::LOCK_NB) < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut number = [0_u8; 12];
        let digits = decimal(libc::getpid() as u32, &mut number);
        if libc::ftruncate(fd, 0) < 0
            || libc::pwrite(fd, digits.as_ptr().cast(), digits.len(), 0) < 0
            || libc::fcntl(fd, libc::F_SETFD, 0) < 0
        {
            return Err(io::Error::last_os_error());
        }
        // Each file that is open in the machine is one in QEMU.
        let mut files = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut files) == 0 {
            files.rlim_cur = files.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &files);
        }
    }
    Ok(())
}

/// The decimal digits of `number`, without allocation.
fn decimal(mut number: u32, buffer: &mut [u8; 12]) -> &[u8] {
    let mut start = buffer.len();
    loop {
        start -= 1;
        buffer[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &buffer[start..];
        }
    }
}

fn remove_old_sockets(ports: &Path) {
    let Ok(entries) = fs::read_dir(ports) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.extension().is_some_and(|extension| extension == "sock") {
            // One that stays makes QEMU fail, which then is reported.
            let _ = fs::remove_file(path);
        }
    }
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
            Ok(Some(version)) if version == VERSION => break Ok(()),
            Ok(Some(_)) => break Err(StartError::OtherVersion),
            // Not listening yet, or gone, which the next lines tell apart.
            Ok(None) | Err(ControlError::Connection(_)) => {}
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

/// The machine's version, once it answers. The query is sent once for each connection and
/// waits in the socket until the machine's init reads it.
fn try_query(
    directory: &MachineDirectory,
    control: &mut Option<Control>,
) -> Result<Option<u32>, ControlError> {
    if control.is_none() {
        let opened = Control::open(directory)?;
        opened.query()?;
        *control = Some(opened);
    }
    let answer = control.as_mut().map(|control| control.answer(POLL)).transpose();
    if answer.is_err() {
        *control = None;
    }
    Ok(answer?.flatten().map(|ready| ready.version))
}

/// How the emulator has ended, if it has.
fn ended(
    directory: &MachineDirectory,
    child: Option<&mut Child>,
) -> Result<Option<String>, StartError> {
    match child {
        Some(child) => {
            let status = child.try_wait().map_err(StartError::Spawn)?;
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

fn memory(asked: Option<u64>) -> Result<u64, StartError> {
    let host = host_memory("MemTotal:").unwrap_or(u64::MAX);
    let asked = asked.unwrap_or(USUAL_MEMORY.min(host / 2)) & !(MIB - 1);
    if asked < LEAST_MEMORY {
        return Err(StartError::TooLittleMemory { asked });
    }
    let available = host_memory("MemAvailable:").unwrap_or(u64::MAX);
    if available < asked / 4 || host < asked {
        return Err(StartError::HostMemory { available, asked });
    }
    Ok(asked)
}

fn host_memory(field: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with(field))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_of_the_number() {
        for number in [0, 7, 10, 4_194_304, u32::MAX] {
            assert_eq!(decimal(number, &mut [0; 12]), number.to_string().as_bytes());
        }
    }

    #[test]
    fn memory_has_a_lower_and_an_upper_bound() {
        assert!(matches!(memory(Some(1 << 20)), Err(StartError::TooLittleMemory { .. })));
        assert!(matches!(memory(Some(1 << 60)), Err(StartError::HostMemory { .. })));
    }
}
