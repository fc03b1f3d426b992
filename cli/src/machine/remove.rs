//! `caisson machine rm`: removes the machine's disk.

use std::{
    fs,
    io::{self, BufRead, IsTerminal, Write},
    process::ExitCode,
};

use anyhow::{Context, bail};

use super::{arguments::RmArgs, directory::MachineDirectory, disk, instance};
use crate::Globals;

pub(super) fn command(globals: &Globals, options: &RmArgs) -> anyhow::Result<ExitCode> {
    let directory = MachineDirectory::new(globals);
    let path = directory.disk();
    if !path.exists() {
        eprintln!("the machine has no disk at {}", path.display());
        return Ok(ExitCode::SUCCESS);
    }
    if instance::is_running(&directory)? {
        bail!("the machine runs; `caisson machine stop` first");
    }
    if !options.force && !confirmed(&path.display().to_string())? {
        bail!("nothing is removed");
    }
    directory.create()?;
    let _lock = directory.lock_changes()?;
    let _disk = disk::lock(&directory)?;
    fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    eprintln!("{} is removed", path.display());
    Ok(ExitCode::SUCCESS)
}

fn confirmed(disk: &str) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() {
        bail!("without a terminal to ask on, `--force` confirms");
    }
    eprint!("Remove {disk} with all images and containers of the machine? [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
