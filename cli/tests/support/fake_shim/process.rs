//! One process and its streams.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::OpenOptionsExt,
            process::{CommandExt, ExitStatusExt},
        },
    },
    process::{Child, Command},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

use caisson_shim::{
    exit::Exit,
    kind::{ErrorKind, to_status},
    stdio::{Target, json_log::JsonLog},
};
use containerd_shim::protos::ttrpc;
use serde_json::Value;

/// The engine's ends, opened as the real shim opens them.
pub(crate) struct Stdio {
    stdin: Option<(File, Arc<Mutex<Option<File>>>)>,
    stdout: Option<Sink>,
    stderr: Option<Sink>,
}

enum Sink {
    Fifo(File),
    Log(JsonLog),
}

impl Stdio {
    pub(crate) fn open(stdin: &str, stdout: &str, stderr: &str) -> Self {
        let stdin = (!stdin.is_empty()).then(|| {
            let reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(stdin);
            let reader = reader.expect("a FIFO");
            let keep_open = OpenOptions::new().write(true).open(stdin).expect("a FIFO");
            // SAFETY: changes the flags of a file that is open.
            unsafe { libc::fcntl(reader.as_raw_fd(), libc::F_SETFL, 0) };
            (reader, Arc::new(Mutex::new(Some(keep_open))))
        });
        let shared = stdout == stderr;
        let stdout = Sink::open(stdout, "stdout");
        let stderr = match &stdout {
            Some(Sink::Log(log)) if shared => Some(Sink::Log(log.for_stream("stderr"))),
            _ => Sink::open(stderr, "stderr"),
        };
        Self { stdin, stdout, stderr }
    }
}

impl Sink {
    fn open(uri: &str, stream: &'static str) -> Option<Self> {
        match Target::parse(stream, uri).expect("a target") {
            None => None,
            Some(Target::JsonFile(path, rotation)) => {
                Some(Self::Log(JsonLog::open(&path, rotation, stream).expect("a log")))
            }
            Some(Target::Fifo(path) | Target::File(path)) => {
                let file = OpenOptions::new().read(true).write(true).open(path);
                Some(Self::Fifo(file.expect("a FIFO")))
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        match self {
            Self::Fifo(fifo) => fifo.write_all(bytes).expect("the FIFO takes it"),
            Self::Log(log) => log.push(bytes).expect("the log takes it"),
        }
    }

    fn finish(&mut self) {
        if let Self::Log(log) = self {
            log.finish().expect("the log takes it");
        }
    }
}

pub(crate) struct Process {
    spec: Value,
    stdio: Option<Stdio>,
    keep_stdin: Option<Arc<Mutex<Option<File>>>>,
    terminal: Option<OwnedFd>,
    pub(crate) pid: Option<u32>,
    pub(crate) exit: Option<Exit>,
}

/// What is waited for.
pub(crate) struct End {
    child: Child,
    outputs: Vec<JoinHandle<()>>,
}

impl Process {
    pub(crate) fn new(spec: Value, stdio: Stdio) -> Self {
        let keep_stdin = stdio.stdin.as_ref().map(|(_, keep)| keep.clone());
        Self { spec, stdio: Some(stdio), keep_stdin, terminal: None, pid: None, exit: None }
    }

    pub(crate) fn start(&mut self) -> ttrpc::Result<(u32, End)> {
        let again = || to_status(ErrorKind::FailedPrecondition, "started before".into());
        let stdio = self.stdio.take().ok_or_else(again)?;
        let words = |name: &str| -> Vec<String> {
            let list = self.spec[name].as_array().expect("a list").iter();
            list.map(|word| word.as_str().expect("a string").to_owned()).collect()
        };
        let args = words("args");
        let env = words("env");
        let mut command = Command::new(&args[0]);
        command.args(&args[1..]).env_clear();
        command.envs(env.iter().filter_map(|variable| variable.split_once('=')));
        command.current_dir(self.spec["cwd"].as_str().expect("a directory"));
        let started = match self.spec["terminal"] == true {
            true => self.with_terminal(command, stdio),
            false => with_pipes(command, stdio),
        };
        let end = started.map_err(|error| {
            let kind = match error.kind() {
                std::io::ErrorKind::NotFound => ErrorKind::CommandNotFound,
                _ => ErrorKind::CommandNotExecutable,
            };
            to_status(kind, format!("exec: {:?}: {error}", args[0]))
        })?;
        self.pid = Some(end.child.id());
        Ok((end.child.id(), end))
    }

    fn with_terminal(&mut self, mut command: Command, stdio: Stdio) -> std::io::Result<End> {
        let pty = nix::pty::openpty(None, None)?;
        let slave = || pty.slave.try_clone();
        command.stdin(slave()?).stdout(slave()?).stderr(slave()?);
        // SAFETY: setsid and ioctl are async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0);
                Ok(())
            });
        }
        let master = File::from(pty.master.try_clone()?);
        self.terminal = Some(pty.master);
        let size = &self.spec["consoleSize"];
        if let (Some(width), Some(height)) = (size["width"].as_u64(), size["height"].as_u64()) {
            self.resize(width as u16, height as u16);
        }
        let child = command.spawn()?;
        drop(command);
        drop(pty.slave);
        if let Some((fifo, _)) = stdio.stdin {
            relay(fifo, master.try_clone()?);
        }
        let outputs = stdio.stdout.map(|sink| output(master, sink)).into_iter().collect();
        Ok(End { child, outputs })
    }

    pub(crate) fn resize(&self, columns: u16, rows: u16) {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        if let Some(terminal) = &self.terminal {
            // SAFETY: TIOCSWINSZ reads one winsize.
            unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &size) };
        }
    }

    pub(crate) fn close_stdin(&self) {
        if let Some(keep) = &self.keep_stdin {
            keep.lock().expect("no panics").take();
        }
    }

    pub(crate) fn kill(&mut self, signal: i32) -> ttrpc::Result<()> {
        match self.pid {
            Some(pid) if self.exit.is_none() => {
                // SAFETY: signals the process group of this process's own child.
                unsafe { libc::kill(-(pid as i32), signal) };
                Ok(())
            }
            _ => Err(to_status(ErrorKind::NotFound, "process already finished".into())),
        }
    }
}

fn with_pipes(mut command: Command, stdio: Stdio) -> std::io::Result<End> {
    let piped = |wanted: bool| match wanted {
        true => std::process::Stdio::piped(),
        false => std::process::Stdio::null(),
    };
    command.process_group(0);
    command.stdin(piped(stdio.stdin.is_some()));
    command.stdout(piped(stdio.stdout.is_some())).stderr(piped(stdio.stderr.is_some()));
    let mut child = command.spawn()?;
    if let (Some((fifo, _)), Some(stdin)) = (stdio.stdin, child.stdin.take()) {
        relay(fifo, File::from(OwnedFd::from(stdin)));
    }
    let mut outputs = Vec::new();
    if let (Some(pipe), Some(sink)) = (child.stdout.take(), stdio.stdout) {
        outputs.push(output(File::from(OwnedFd::from(pipe)), sink));
    }
    if let (Some(pipe), Some(sink)) = (child.stderr.take(), stdio.stderr) {
        outputs.push(output(File::from(OwnedFd::from(pipe)), sink));
    }
    Ok(End { child, outputs })
}

fn relay(mut from: File, mut to: File) {
    thread::spawn(move || std::io::copy(&mut from, &mut to));
}

fn output(mut from: File, mut sink: Sink) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        // A terminal that hung up is an error, and an end.
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            sink.write(&buffer[..count]);
        }
        sink.finish();
    })
}

impl End {
    pub(crate) fn wait(mut self) -> Exit {
        let status = self.child.wait().expect("a child");
        for output in self.outputs {
            output.join().expect("no panics");
        }
        let code =
            status.code().unwrap_or_else(|| 128 + status.signal().expect("ended by a signal"));
        Exit::now(code as u8)
    }
}
