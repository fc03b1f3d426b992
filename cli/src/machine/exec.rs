//! `caisson machine exec`: any command in the machine.

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
};

use anyhow::bail;

use super::{
    arguments::{ExecArgs, StartArgs},
    directory::MachineDirectory,
    session::{self, Request},
    start,
};
use crate::Globals;

pub(super) fn command(globals: &Globals, options: &ExecArgs) -> anyhow::Result<ExitCode> {
    if options.tty && options.interactive && !io::stdin().is_terminal() {
        bail!("the input device is not a TTY");
    }
    start::ensure_running(globals, &StartArgs::default())?;
    let request = Request {
        argv: options.command.clone(),
        env: options.env.clone(),
        workdir: options.workdir.clone(),
        shared: Vec::new(),
        force_terminal: options.tty,
        input: true,
    };
    let status = session::run(&MachineDirectory::new(globals), request)?;
    Ok(ExitCode::from(status.code()))
}
