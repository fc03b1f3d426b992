//! The verbs.

mod create;
mod delete;
mod events;
mod exec;
mod features;
mod kill;
mod list;
mod ps;
mod run;
mod spec;
mod start;
pub(crate) mod update;

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use crate::{
    args::{Command, Globals},
    container::Container,
    error::{RuntimeError, io_error},
    keeper, state,
};

/// The exit code, or what failed.
pub(crate) type CommandResult = Result<u8, RuntimeError>;

pub(crate) fn dispatch(globals: &Globals, command: &Command) -> CommandResult {
    let root = globals.root.as_path();
    match command {
        Command::Create(args) => create::create(root, args),
        Command::Start(args) => start::start(root, &args.id),
        Command::Run(args) => run::run(root, args),
        Command::State(args) => print_state(root, &args.id),
        Command::Kill(args) => kill::kill(root, args),
        Command::Delete(args) => delete::delete(root, args),
        Command::Exec(args) => exec::exec(root, args),
        Command::Ps(args) => ps::ps(root, args),
        Command::List(args) => list::list(root, args),
        Command::Pause(args) => {
            Container::load(root, &args.id)?.connect_alive()?.pause()?;
            Ok(0)
        }
        Command::Resume(args) => {
            Container::load(root, &args.id)?.connect_alive()?.resume()?;
            Ok(0)
        }
        Command::Update(args) => update::update(root, args),
        Command::Events(args) => events::events(root, args),
        Command::Features => print(&features::json()),
        Command::Spec(args) => spec::write(&args.bundle),
        Command::Keep(args) => Ok(keeper::keep(root, args)),
    }
}

fn print_state(root: &Path, id: &str) -> CommandResult {
    let container = Container::load(root, id)?;
    let status = container.status();
    let state = state::value(&container, status, container.pid(status));
    print(&format!("{state:#}"))
}

/// Prints a line; a reader that has seen enough is no error.
fn print(text: &str) -> CommandResult {
    let _ = writeln!(io::stdout(), "{text}");
    Ok(0)
}

/// Writes a process's number, whole or not at all, as whoever waits for the file reads it
/// at once.
fn write_pid_file(path: &Path, pid: u32) -> Result<(), RuntimeError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let new = path.with_file_name(format!(".{name}.new"));
    fs::write(&new, pid.to_string())
        .and_then(|()| fs::rename(&new, path))
        .map_err(io_error("write", path))
}

/// Descriptors cannot be passed into a VM.
fn check_preserved(fds: u32) -> Result<(), RuntimeError> {
    match fds {
        0 => Ok(()),
        _ => Err(RuntimeError::Usage(format!(
            "--preserve-fds {fds}: files of the host cannot be passed into a VM"
        ))),
    }
}

/// runc's rule: a terminal needs someone to take it, and nobody takes what there is not.
fn check_console(
    terminal: bool,
    detached: bool,
    socket: Option<&Path>,
) -> Result<(), RuntimeError> {
    let problem = match (terminal, detached, socket) {
        (true, true, None) => {
            "the process has a terminal, and --console-socket does not say who takes it"
        }
        (false, _, Some(_)) => "--console-socket is given, and the process has no terminal",
        (true, false, Some(_)) => {
            "--console-socket is given, and the terminal is this one; use --detach"
        }
        _ => return Ok(()),
    };
    Err(RuntimeError::Usage(problem.to_owned()))
}
