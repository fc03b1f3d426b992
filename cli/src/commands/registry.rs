//! What the commands share that speak to registries: flags, and how progress is told.

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    sync::Arc,
};

use caisson_rootfs::{
    Progress,
    progress::{Bars, Silent, Step},
    registry::{CredentialStore, PushProgress, RegistryClient, RegistryError, RegistryOptions},
};
use clap::Args;

use crate::format::inert::inert;

#[derive(Args, Clone, Debug, Default)]
pub struct RegistryFlags {
    /// Neither check this registry's certificate nor refuse plain HTTP (host[:port])
    #[arg(long, value_name = "list")]
    pub insecure_registry: Vec<String>,

    /// Ask this registry for Docker Hub's images first
    #[arg(long, value_name = "list")]
    pub registry_mirror: Vec<String>,

    /// Trust the certificate authorities in this file as well
    #[arg(long, value_name = "list")]
    pub tls_ca: Vec<PathBuf>,

    /// Check the certificate of the registry that is named, and refuse plain HTTP
    #[arg(long, value_name = "bool", default_value = "true", action = clap::ArgAction::Set,
          num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub tls_verify: Option<bool>,
}

impl RegistryFlags {
    /// A client for the registry `domain`, with what the environment says as well.
    pub(super) fn client(&self, domain: &str) -> Result<RegistryClient, RegistryError> {
        let mut options = RegistryOptions {
            insecure: self.insecure_registry.clone(),
            ca_files: self.tls_ca.clone(),
            mirrors: self.registry_mirror.clone(),
            ..RegistryOptions::default()
        };
        options.insecure.extend(listed("CAISSON_INSECURE_REGISTRY"));
        options.mirrors.extend(listed("CAISSON_REGISTRY_MIRROR"));
        options.ca_files.extend(listed("CAISSON_TLS_CA").map(PathBuf::from));
        if self.tls_verify == Some(false) {
            options.insecure.push(domain.to_owned());
        }
        RegistryClient::new(options, CredentialStore::from_environment())
    }
}

/// The words of a variable, between commas.
fn listed(variable: &str) -> impl Iterator<Item = String> {
    let words = std::env::var(variable).unwrap_or_default();
    let words: Vec<String> = words
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect();
    words.into_iter()
}

/// Where a command tells what it does: `run` keeps standard output for its container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Teller {
    Stdout,
    Stderr,
    Nobody,
}

impl Teller {
    pub(super) fn say(self, line: &str) -> io::Result<()> {
        match self {
            Self::Stdout => writeln!(io::stdout(), "{}", inert(line)),
            Self::Stderr => writeln!(io::stderr(), "{}", inert(line)),
            Self::Nobody => Ok(()),
        }
    }

    /// Bars where somebody watches, lines otherwise.
    pub(super) fn progress(self, direction: Direction) -> Box<dyn Progress> {
        match self {
            Self::Nobody => Box::new(Silent),
            _ if io::stderr().is_terminal() => Box::new(Bars::new()),
            _ => Box::new(Lines { teller: self, direction }),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Pull,
    Push,
}

/// Docker's lines, one for each change.
struct Lines {
    teller: Teller,
    direction: Direction,
}

struct Line {
    teller: Teller,
    direction: Direction,
    id: Arc<str>,
    begun: bool,
}

impl Progress for Lines {
    fn step(&self, what: &str, _total_bytes: Option<u64>) -> Box<dyn Step> {
        let id = what.trim_start_matches("layer ").into();
        Box::new(Line { teller: self.teller, direction: self.direction, id, begun: false })
    }
}

impl Line {
    fn say(&self, what: &str) {
        // A reader that went away is noticed at the command's own lines.
        let _ = self.teller.say(&format!("{}: {what}", self.id));
    }
}

impl Step for Line {
    fn advance(&mut self, _bytes: u64) {
        if !self.begun {
            self.begun = true;
            self.say(match self.direction {
                Direction::Pull => "Pulling fs layer",
                Direction::Push => "Pushing",
            });
        }
    }

    fn done(self: Box<Self>, outcome: &str) {
        match (self.direction, outcome) {
            (Direction::Pull, "already there") => self.say("Already exists"),
            (Direction::Pull, _) => self.say("Pull complete"),
            (Direction::Push, PushProgress::THERE) => self.say("Layer already exists"),
            (Direction::Push, PushProgress::PUSHED) => self.say("Pushed"),
            (Direction::Push, other) => match other.strip_prefix(PushProgress::MOUNTED) {
                Some(from) => self.say(&format!("Mounted from {from}")),
                None => self.say(other),
            },
        }
    }
}
