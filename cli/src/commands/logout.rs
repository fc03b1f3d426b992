//! `logout`: forget the credentials for a registry.

use std::process::ExitCode;

use caisson_rootfs::registry::{CredentialStore, registry_name};
use clap::Args;

use super::print_line;
use crate::{failure::CommandResult, globals::Globals};

#[derive(Args, Clone, Debug)]
pub struct LogoutArgs {
    #[arg(value_name = "SERVER", hide = true)]
    pub server: Option<String>,
}

pub(super) fn logout(_: &Globals, args: &LogoutArgs) -> CommandResult {
    let domain = registry_name(args.server.as_deref().unwrap_or("docker.io"))?;
    let shown = if domain == "docker.io" { "https://index.docker.io/v1/" } else { &domain };
    match CredentialStore::from_environment().erase(&domain)? {
        true => print_line(&format!("Removing login credentials for {shown}"))?,
        false => print_line(&format!("Not logged in to {shown}"))?,
    }
    Ok(ExitCode::SUCCESS)
}
