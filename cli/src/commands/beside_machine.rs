//! Registries are spoken to on this host, also where images are in the machine: that has no
//! network. Images cross over in a directory that both sides see.

use std::{
    env,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::globals::Globals;

/// Set for a command that another one runs in the machine: it does nothing beside it.
const NOTHING_BESIDE: &str = "CAISSON_NOTHING_BESIDE_MACHINE";

/// Whether this command is to be carried into the machine as it is.
pub(super) fn is_carried_as_it_is() -> bool {
    env::var_os(NOTHING_BESIDE).is_some()
}

/// Runs another command of this program, which is carried into the machine from `workdir`;
/// its exit code.
pub(super) fn run_in_machine(
    globals: &Globals,
    command: &[OsString],
    workdir: Option<&Path>,
    output: Stdio,
) -> io::Result<u8> {
    let mut child = Command::new(env::current_exe()?);
    child.args(globals.to_args()).args(command).stdin(Stdio::null()).stdout(output);
    child.env(NOTHING_BESIDE, "1");
    child.current_dir(workdir.unwrap_or(Path::new("/")));
    // 128 + n for a signal, as a shell has it.
    let status = child.status()?;
    let code = status.code().unwrap_or_else(|| {
        128 + std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or_default()
    });
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}

/// As [`run_in_machine`], with its standard output going to `output`, which ends with it.
pub(super) fn run_in_machine_into(
    globals: &Globals,
    command: &[OsString],
    output: io::PipeWriter,
) -> io::Result<u8> {
    run_in_machine(globals, command, None, output.into())
}

/// A new directory with room for an image, which is removed in the end.
pub(super) fn staging_directory() -> io::Result<tempfile::TempDir> {
    let parent = env::var_os("TMPDIR").map_or_else(|| "/var/tmp".into(), PathBuf::from);
    tempfile::Builder::new().prefix("caisson-image-").tempdir_in(parent)
}
