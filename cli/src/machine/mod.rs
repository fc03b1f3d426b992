//! The machine: an emulated host with AMD-V, in which Caisson runs where this host's KVM
//! cannot run guests (docs/machine.md).
//!
//! ```text
//!   caisson run … ─► carry ─┐
//!   machine exec … ─────────┤                     ┌─ control port ─► init
//!                           ├─► session ══ port N ┤                   │ fork
//!   machine start ─► start ─┘     ▲               └─ session port ─► session ─► command
//!                       │         │ stdio, signals, size, exit status
//!                       └─► QEMU ─┘
//! ```

mod arguments;
mod carry;
mod connection;
mod control;
mod directory;
mod disk;
mod exec;
mod instance;
mod launch;
mod logs;
mod memory;
mod ports;
mod qemu;
mod remove;
mod session;
mod start;
mod status;
mod stop;
mod streams;
mod terminal;

use std::process::ExitCode;

pub use arguments::MachineArgs;
pub use carry::carry;

use crate::Globals;
use arguments::MachineCommand;

const MIB: u64 = 1 << 20;

/// Present in the machine, made by its init.
const INSIDE: &str = "/run/caisson-machine";

/// Whether this process runs in the machine, where KVM is as good as it gets.
pub fn is_inside() -> bool {
    std::path::Path::new(INSIDE).exists()
}

/// `caisson machine …`
pub fn run_machine_command(globals: &Globals, args: MachineArgs) -> anyhow::Result<ExitCode> {
    if is_inside() {
        anyhow::bail!("this already is the machine; `caisson machine` is for the host around it");
    }
    require_root()?;
    let globals = globals.clone().resolved()?;
    match args.command {
        MachineCommand::Start(options) => start::command(&globals, &options),
        MachineCommand::Stop(options) => stop::command(&globals, &options),
        MachineCommand::Status(options) => status::command(&globals, &options),
        MachineCommand::Exec(options) => exec::command(&globals, &options),
        MachineCommand::Logs(options) => logs::command(&globals, &options),
        MachineCommand::Rm(options) => remove::command(&globals, &options),
    }
}

fn require_root() -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        anyhow::bail!(
            "the machine needs root, because it shares this host's files as they are: run caisson \
             by sudo"
        );
    }
    Ok(())
}
