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
mod process;
mod state;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use args::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::new(if cli.globals.debug { "debug" } else { "warn" });
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .without_time()
        .log_internal_errors(false)
        .init();
    match commands::dispatch(&cli.globals, &cli.command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            log::report(&cli.globals, &error.words());
            ExitCode::FAILURE
        }
    }
}
