//! Carries this very command into the machine.

use std::{env, ffi::OsString, path::PathBuf, process::ExitCode};

use anyhow::{Context, bail};

use super::{
    arguments::StartArgs,
    directory::MachineDirectory,
    session::{self, Request},
    start,
};
use crate::Globals;

/// Runs this process's command line in the machine, starting it if need be, and returns
/// its exit code.
///
/// Without `input`, what waits on standard input is left to whoever reads it next, as
/// `while read name; do caisson run …; done` needs it. `variables` (`NAME=value`) are added
/// to those that every command takes along; `shared` is what of the host it may change beside the
/// working directory.
pub fn carry(
    globals: &Globals,
    input: bool,
    variables: Vec<String>,
    shared: Vec<PathBuf>,
) -> anyhow::Result<ExitCode> {
    if super::is_inside() {
        bail!(
            "KVM is not usable even in the machine; `caisson machine logs` on the host may tell why"
        );
    }
    super::require_root()?;
    let globals = globals.clone().resolved()?;
    start::ensure_running(&globals, &StartArgs::default())?;
    let mut argv: Vec<OsString> =
        vec![env::current_exe().context("find the running program")?.into()];
    argv.extend(env::args_os().skip(1));
    let mut env: Vec<OsString> = variables.into_iter().map(OsString::from).collect();
    env.push("CAISSON_ACCEL=kvm".into());
    let request = Request { argv, env, workdir: None, shared, force_terminal: false, input };
    let status = session::run(&MachineDirectory::new(&globals), request)?;
    Ok(ExitCode::from(status.code()))
}
