//! `pull`: an image from a registry; and the pull that `run` and `create` do.

use std::{
    ffi::OsString,
    process::{ExitCode, Stdio},
};

use caisson_rootfs::{
    Image, Reference, StoreError,
    registry::{RegistryClient, WantedPlatform},
};
use clap::Args;

use super::beside_machine::{run_in_machine, staging_directory};
use super::registry::{Direction, RegistryFlags, Teller};
use crate::{
    engine::Engine,
    events::Event,
    failure::{CommandResult, Failure},
    globals::Globals,
};

/// Set in the machine, which has no network: the host has pulled already.
pub(super) const PULLED_BY_HOST: &str = "CAISSON_PULLED_BY_HOST";

#[derive(Args, Clone, Debug)]
pub struct PullArgs {
    /// Download all tagged images in the repository
    #[arg(short, long)]
    pub all_tags: bool,

    /// Set platform if server is multi-platform capable
    #[arg(long, value_name = "string")]
    pub platform: Option<String>,

    /// Suppress verbose output
    #[arg(short, long)]
    pub quiet: bool,

    #[command(flatten)]
    pub registry: RegistryFlags,

    #[arg(value_name = "NAME[:TAG|@DIGEST]", hide = true)]
    pub name: String,
}

#[derive(Debug, thiserror::Error)]
enum PullError {
    #[error("tag can't be used with --all-tags/-a")]
    TagWithAll,
    #[error("invalid pull option {0:?}: must be one of \"always\", \"missing\" or \"never\"")]
    Policy(String),
    #[error("put the image into the machine (`caisson load` in it failed with {0})")]
    Machine(u8),
}

/// Where pulled images go.
#[derive(Clone, Copy)]
enum Destination<'a> {
    Here(&'a Engine),
    /// The machine's store, which has no network: through a directory of this host.
    Machine(&'a Globals),
}

pub(super) fn pull(globals: &Globals, args: &PullArgs) -> CommandResult {
    let engine = Engine::open(globals)?;
    pull_to(Destination::Here(&engine), args)
}

/// On a host whose containers are in the machine.
pub(super) fn pull_for_machine(globals: &Globals, args: &PullArgs) -> CommandResult {
    pull_to(Destination::Machine(globals), args)
}

fn pull_to(destination: Destination<'_>, args: &PullArgs) -> CommandResult {
    let name: Reference = args.name.parse()?;
    let platform = platform(args.platform.as_deref())?;
    let client = args.registry.client(name.domain())?;
    let teller = if args.quiet { Teller::Nobody } else { Teller::Stdout };
    let is_bare = name.tag().is_none() && name.digest().is_none();
    if args.all_tags {
        if !is_bare {
            return Err(PullError::TagWithAll.into());
        }
        for tag in client.tags(&name)? {
            let tagged: Reference = format!("{}:{tag}", name.repository()).parse()?;
            pull_one(destination, &client, &tagged, &platform, teller)?;
        }
        Teller::Stdout.say(&name.repository())?;
        return Ok(ExitCode::SUCCESS);
    }
    if is_bare {
        teller.say("Using default tag: latest")?;
    }
    let name = name.with_default_tag();
    pull_one(destination, &client, &name, &platform, teller)?;
    Teller::Stdout.say(&name.to_string())?;
    Ok(ExitCode::SUCCESS)
}

fn platform(text: Option<&str>) -> Result<WantedPlatform, Failure> {
    let set = std::env::var("DOCKER_DEFAULT_PLATFORM").ok().filter(|text| !text.is_empty());
    Ok(match text.or(set.as_deref()) {
        Some(text) => text.parse()?,
        None => WantedPlatform::default(),
    })
}

fn pull_one(
    destination: Destination<'_>,
    client: &RegistryClient,
    name: &Reference,
    platform: &WantedPlatform,
    teller: Teller,
) -> Result<(), Failure> {
    let what = name.tag().map(str::to_owned).or(name.digest().map(ToString::to_string));
    teller.say(&format!("{}: Pulling from {}", what.unwrap_or_default(), name.path()))?;
    let progress = teller.progress(Direction::Pull);
    let (digest, up_to_date) = match destination {
        Destination::Here(engine) => {
            let pulled = engine.store.pull(client, name, platform, progress.as_ref())?;
            Event::of_image(&name.familiar(), "pull").tell(&engine.globals.root);
            (pulled.digest, pulled.up_to_date)
        }
        Destination::Machine(globals) => {
            let staging = staging_directory()?;
            let fetched = client.fetch(name, platform, staging.path(), progress.as_ref())?;
            let pulled = format!("{}@{}", name.repository(), fetched.digest);
            let load = ["load", "--pulled-as", &pulled, "--input", "."].map(OsString::from);
            match run_in_machine(globals, &load, Some(staging.path()), Stdio::inherit())? {
                0 => (fetched.digest, false),
                code => return Err(PullError::Machine(code).into()),
            }
        }
    };
    drop(progress);
    teller.say(&format!("Digest: {digest}"))?;
    let status = if up_to_date { "Image is up to date" } else { "Downloaded newer image" };
    teller.say(&format!("Status: {status} for {}", name.familiar()))?;
    Ok(())
}

/// `--pull`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    Always,
    Missing,
    Never,
}

impl Policy {
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        match text {
            "always" => Ok(Self::Always),
            "missing" => Ok(Self::Missing),
            "never" => Ok(Self::Never),
            _ => Err(PullError::Policy(text.to_owned()).into()),
        }
    }

    /// As given, or never where the host has done it.
    pub(super) fn here(text: &str) -> Result<Self, Failure> {
        let policy = Self::parse(text)?;
        let done = std::env::var_os(PULLED_BY_HOST).is_some();
        Ok(if done { Self::Never } else { policy })
    }
}

/// What to pull for `run` or `create`.
pub(super) struct Wish<'a> {
    pub(super) name: &'a str,
    pub(super) policy: Policy,
    pub(super) platform: Option<&'a str>,
    pub(super) quiet: bool,
}

impl Wish<'_> {
    /// `near` are images here that may have been meant.
    fn pull(&self, destination: Destination<'_>, near: &[String]) -> Result<(), Failure> {
        let name = self.name.parse::<Reference>()?.with_default_tag();
        let client = RegistryFlags::default().client(name.domain())?;
        let teller = if self.quiet { Teller::Nobody } else { Teller::Stderr };
        if self.policy == Policy::Missing {
            let hint = match near {
                [] => String::new(),
                near => format!(" (did you mean {}?)", near.join(" or ")),
            };
            teller.say(&format!("Unable to find image '{}' locally{hint}", name.familiar()))?;
        }
        pull_one(destination, &client, &name, &platform(self.platform)?, teller)
    }

    /// The image, pulled if the policy says so.
    pub(super) fn image(&self, engine: &Engine) -> Result<Image, Failure> {
        // An id cannot be pulled, and needs not be.
        let can_be_pulled = self.name.parse::<Reference>().is_ok();
        if self.policy == Policy::Always && can_be_pulled {
            self.pull(Destination::Here(engine), &[])?;
        }
        match engine.store.resolve(self.name) {
            Err(StoreError::NotFound { near, .. })
                if self.policy == Policy::Missing && can_be_pulled =>
            {
                self.pull(Destination::Here(engine), &near)?;
                Ok(engine.store.resolve(self.name)?)
            }
            other => Ok(other?),
        }
    }

    /// Sees to it that the machine has the image, before the command is carried there.
    pub(super) fn for_machine(&self, globals: &Globals) -> Result<(), Failure> {
        let exists = || {
            let check = ["image", "exists", "--", self.name].map(OsString::from);
            Ok::<_, Failure>(run_in_machine(globals, &check, None, Stdio::inherit())? == 0)
        };
        let wanted = match self.policy {
            Policy::Always => self.name.parse::<Reference>().is_ok(),
            Policy::Missing => self.name.parse::<Reference>().is_ok() && !exists()?,
            Policy::Never => false,
        };
        if wanted { self.pull(Destination::Machine(globals), &[]) } else { Ok(()) }
    }
}
