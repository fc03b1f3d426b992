//! `kill`: a signal.

use std::path::Path;

use caisson_cli::options::signal;
use nix::libc::SIGKILL;

use super::CommandResult;
use crate::{args::KillArgs, container::Container};

pub(super) fn kill(root: &Path, args: &KillArgs) -> CommandResult {
    let signal = signal::parse(&args.signal)?;
    let client = Container::load(root, &args.id)?.connect_alive()?;
    // The first process's end is that of all others: they share its pid namespace.
    client.kill(None, signal as u32, args.all || signal == SIGKILL)?;
    Ok(0)
}
