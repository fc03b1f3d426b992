//! `caisson-runtime`: runc's command line, with a microVM for each container.
//!
//! ```text
//!  podman, Docker ─► create … delete ─► container.rs   <root>/<id>: record, bundle, socket
//!                         │ create, exec
//!                         ▼
//!                      keeper.rs   the host's process that stands for one in the guest
//!                         ▼
//!                      containerd-shim-caisson-v2 serve ─► vmm
//! ```

mod args;
mod bundle;
mod commands;
mod console;
mod container;
mod error;
mod hooks;
mod keeper;
mod log;
mod state;

use std::process::ExitCode;

use clap::Parser;

use args::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
    caisson_cli::log_to_stderr(if cli.globals.debug { "debug" } else { "warn" });
    match commands::dispatch(&cli.globals, &cli.command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            log::report(&cli.globals, &error.words());
            ExitCode::FAILURE
        }
    }
}
