//! `export`: a container's file system as a tar archive.

use std::{
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use caisson_agent_protocol::Tool;
use clap::Args;

use super::{
    beside_machine::run_in_machine,
    tool::run_tool,
    whole_file::{ToTerminal, WriteFailed, write_whole},
};
use crate::{
    engine::Engine,
    failure::{CommandResult, Failure},
    globals::Globals,
};

#[derive(Args, Clone, Debug)]
pub struct ExportArgs {
    /// Write to a file, instead of STDOUT
    #[arg(short, long, value_name = "string")]
    pub output: Option<PathBuf>,

    #[arg(value_name = "CONTAINER", required = true, hide = true)]
    pub container: String,
}

pub(super) fn export(globals: &Globals, args: &ExportArgs) -> CommandResult {
    if args.output.is_none() && io::stdout().is_terminal() {
        return Err(ToTerminal.into());
    }
    let engine = Engine::open(globals)?;
    let container = engine.records.find(&args.container)?;
    let to = |mut file: &mut dyn Write, path: &Path| {
        run_tool(&engine, &container, &Tool::Export, None, |output| {
            let copied = io::copy(output, &mut file).and_then(|_| file.flush());
            Ok(copied.map_err(|source| WriteFailed { path: path.to_owned(), source })?)
        })?;
        Ok(ExitCode::SUCCESS)
    };
    match &args.output {
        None => to(&mut io::stdout(), Path::new("standard output")),
        Some(path) => write_whole(path, |mut file| to(&mut file, path)),
    }
}

/// On a host whose containers are in the machine: the archive comes by standard output, as
/// the machine may write only where this command was called.
pub(super) fn export_from_machine(globals: &Globals, args: &ExportArgs) -> Option<CommandResult> {
    let path = args.output.as_ref()?;
    let command = ["export".into(), "--".into(), args.container.clone().into()];
    Some(write_whole(path, |file| {
        let output = file.try_clone()?.into();
        match run_in_machine(globals, &command, None, output)? {
            0 => Ok(ExitCode::SUCCESS),
            // It has said why.
            code => Err(Failure::quiet(code)),
        }
    }))
}
