//! `exec`: a further process in a running container.

use std::{
    fs,
    io::IsTerminal,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use caisson_shim::client::{ShimClient, Stdio};
use clap::Args;

use super::run::signaled;
use crate::{
    attach::{
        AttachError,
        detach_keys::DetachKeys,
        session::{Attachment, Event, Session},
        signals::Policy,
        tty,
    },
    engine::{Engine, EngineError, make_fifo},
    failure::{BROKEN_PIPE, CommandResult, Failure},
    globals::Globals,
    names,
    options::environment,
    records::Container,
    spec::{self, ExecOptions},
};

#[derive(Args, Clone, Debug)]
pub struct ExecArgs {
    /// Detached mode: run command in the background
    #[arg(short, long)]
    pub detach: bool,

    /// Override the key sequence for detaching a container
    #[arg(long, value_name = "string")]
    pub detach_keys: Option<String>,

    /// Set environment variables
    #[arg(short, long, value_name = "list")]
    pub env: Vec<String>,

    /// Read in a file of environment variables
    #[arg(long, value_name = "list")]
    pub env_file: Vec<PathBuf>,

    /// Keep STDIN open even if not attached
    #[arg(short, long)]
    pub interactive: bool,

    /// Give extended privileges to the command
    #[arg(long)]
    pub privileged: bool,

    /// Allocate a pseudo-TTY
    #[arg(short, long)]
    pub tty: bool,

    /// Username or UID (format: "<name|uid>[:<group|gid>]")
    #[arg(short, long, value_name = "string")]
    pub user: Option<String>,

    /// Working directory inside the container
    #[arg(short, long, value_name = "string")]
    pub workdir: Option<String>,

    #[arg(value_name = "CONTAINER", required = true, num_args = 1.., trailing_var_arg = true, hide = true)]
    pub words: Vec<String>,
}

pub(super) fn exec(globals: &Globals, args: &ExecArgs) -> CommandResult {
    exec_it(globals, args).map_err(Failure::of_exec)
}

fn exec_it(globals: &Globals, args: &ExecArgs) -> CommandResult {
    let [name, command @ ..] = args.words.as_slice() else {
        return Err(Failure::message("missing argument: CONTAINER"));
    };
    if command.is_empty() {
        return Err(Failure::message("missing argument: COMMAND"));
    }
    if args.tty && args.interactive && !args.detach && !std::io::stdin().is_terminal() {
        return Err(AttachError::NotATerminal.into());
    }
    let engine = Engine::open(globals)?;
    let container = engine.records.find(name)?;
    if container.paused {
        return Err(EngineError::Paused { name: container.name }.into());
    }
    let client = engine.connect_running(&container)?;
    let config = container
        .config
        .as_ref()
        .ok_or_else(|| EngineError::Damaged { name: container.name.clone() })?;
    let caller = |variable: &str| std::env::var(variable).ok();
    let options = ExecOptions {
        args: command.to_vec(),
        env: environment::from_flags(&args.env_file, &args.env, &caller)?,
        user: args.user.clone(),
        working_dir: args.workdir.clone(),
        tty: args.tty,
        privileged: args.privileged,
        console: if args.detach { None } else { tty::size() },
    };
    let process = spec::exec_process(config, &container.id, &options)?;
    let id = names::new_id()?;
    let exec = Exec { engine: &engine, container: &container, client, id, args };
    match args.detach {
        true => exec.detached(&process),
        false => exec.attached(&process),
    }
}

/// One process to be run in a container.
struct Exec<'a> {
    engine: &'a Engine,
    container: &'a Container,
    client: ShimClient,
    id: String,
    args: &'a ExecArgs,
}

impl Exec<'_> {
    fn detached(&self, process: &oci_spec::runtime::Process) -> CommandResult {
        let stdio = Stdio { terminal: self.args.tty, ..Stdio::default() };
        self.client.exec(&self.id, process, &stdio)?;
        let started = self.client.start(Some(&self.id));
        if started.is_err() {
            self.delete();
        }
        started?;
        Ok(ExitCode::SUCCESS)
    }

    fn attached(&self, process: &oci_spec::runtime::Process) -> CommandResult {
        let directory =
            self.engine.globals.bundle_dir(&self.container.id).join(format!("exec-{}", self.id));
        let result = self.in_directory(&directory, process);
        // The bundle's removal takes what stays.
        if let Err(error) = fs::remove_dir_all(&directory) {
            tracing::debug!(%error, "remove {}", directory.display());
        }
        result
    }

    fn in_directory(
        &self,
        directory: &Path,
        process: &oci_spec::runtime::Process,
    ) -> CommandResult {
        let mut session = Session::new(self.attachment()?)?;
        let stdio = self.stdio(directory)?;
        session.open(&stdio)?;
        self.client.exec(&self.id, process, &stdio)?;
        let result = self.run(&mut session);
        session.finish();
        if !matches!(result, Ok(Left::Running(_))) {
            self.delete();
        }
        match result? {
            Left::Running(code) => Ok(code),
            Left::Ended(code) => Ok(ExitCode::from(code)),
            Left::OutputClosed => Err(Failure::quiet(BROKEN_PIPE)),
        }
    }

    fn run(&self, session: &mut Session) -> Result<Left, Failure> {
        session.copy_output()?;
        self.client.start(Some(&self.id))?;
        let (waiting, id) = (self.client.clone(), self.id.clone());
        let waiter = session.run(&self.client, move || waiting.wait(Some(&id)))?;
        let mut output_closed = false;
        loop {
            match session.next_event(None) {
                None | Some(Event::Exited) => break,
                Some(Event::OutputClosed) => {
                    output_closed = true;
                    let _ = self.client.kill(Some(&self.id), nix::libc::SIGKILL as u32, false);
                }
                Some(Event::Detached) => return Ok(Left::Running(ExitCode::SUCCESS)),
                Some(Event::Terminated(signal)) => {
                    return Ok(Left::Running(ExitCode::from(signaled(signal))));
                }
            }
        }
        let exit =
            waiter.join().map_err(|_| Failure::message("the thread that waits failed"))??;
        Ok(if output_closed { Left::OutputClosed } else { Left::Ended(exit.code) })
    }

    fn attachment(&self) -> Result<Attachment, Failure> {
        let keys = self.args.detach_keys.as_deref().unwrap_or(DetachKeys::DEFAULT);
        let keys = DetachKeys::parse(keys)?;
        let (stdin, terminal) = (self.args.interactive, self.args.tty);
        Ok(Attachment {
            stdin,
            terminal,
            signals: Policy { proxy: true, terminal, exec: Some(self.id.clone()) },
            detach_keys: (stdin && terminal).then_some(keys),
            log: None,
        })
    }

    fn stdio(&self, directory: &Path) -> Result<Stdio, Failure> {
        fs::DirBuilder::new().mode(0o700).create(directory).map_err(|source| EngineError::Io {
            action: "create",
            path: directory.to_owned(),
            source,
        })?;
        let fifo = |name: &str, wanted: bool| -> Result<String, Failure> {
            if !wanted {
                return Ok(String::new());
            }
            let path = directory.join(name);
            make_fifo(&path)?;
            Ok(path.to_string_lossy().into_owned())
        };
        let terminal = self.args.tty;
        Ok(Stdio {
            stdin: fifo("stdin", self.args.interactive)?,
            stdout: fifo("stdout", true)?,
            stderr: fifo("stderr", !terminal)?,
            terminal,
        })
    }

    fn delete(&self) {
        if let Err(error) = self.client.delete(Some(&self.id)) {
            tracing::debug!(%error, "delete exec {}", self.id);
        }
    }
}

/// How the command left the process.
enum Left {
    Ended(u8),
    OutputClosed,
    /// Still running, with this exit code of the command.
    Running(ExitCode),
}
