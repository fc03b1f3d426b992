//! Docker-shaped commands.

pub mod accel;
pub mod args;
pub mod attach;
pub mod commands;
pub mod config;
pub mod engine;
pub mod events;
pub mod failure;
pub mod format;
pub mod globals;
pub mod help;
pub mod machine;
pub mod names;
pub mod options;
pub mod records;
pub mod spec;
pub mod volumes;

use std::process::ExitCode;

use caisson_shim::stages;
use tracing_subscriber::EnvFilter;

pub use globals::Globals;

/// The program: what is asked, where it is carried out, and how it ended.
pub fn main() -> ExitCode {
    stages::stamp("cli", "main");
    let cli = match args::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(answered) => return answered,
    };
    let Some(command) = cli.command else {
        let version = format!("Caisson version {}", env!("CARGO_PKG_VERSION"));
        let printed = commands::print_line(&version).map(|()| ExitCode::SUCCESS);
        return printed.unwrap_or_else(failure::Failure::report);
    };
    log_to_stderr(cli.globals.log_filter());
    let globals = match cli.globals.resolved() {
        Ok(globals) => globals,
        Err(error) => return failure::Failure::from(error).report(),
    };
    commands::dispatch(&globals, command).unwrap_or_else(failure::Failure::report)
}

/// Traces on standard error what `filter` lets through.
pub fn log_to_stderr(filter: impl AsRef<str>) {
    let filter = EnvFilter::try_new(filter).unwrap_or_default();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .without_time()
        .log_internal_errors(false)
        .init();
}
