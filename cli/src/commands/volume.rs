//! `volume …`.

use std::{collections::HashSet, process::ExitCode};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{for_each, listing, print_line, prune};
use crate::{
    engine::{Engine, EngineError},
    failure::{CommandResult, Failure},
    format::{template::Format, units},
    globals::Globals,
    options::environment,
    volumes::{self, Volume, VolumeError, Volumes},
};

#[derive(Args, Debug)]
pub struct VolumeArgs {
    #[command(subcommand)]
    pub(super) command: VolumeCommand,
}

#[derive(Subcommand, Debug)]
pub(super) enum VolumeCommand {
    /// Create a volume
    #[command(override_usage = "caisson volume create [OPTIONS] [VOLUME]")]
    Create(CreateArgs),
    /// Display detailed information on one or more volumes
    #[command(override_usage = "caisson volume inspect [OPTIONS] VOLUME [VOLUME...]")]
    Inspect(InspectArgs),
    /// List volumes
    #[command(override_usage = "caisson volume ls [OPTIONS]", visible_alias = "list")]
    Ls(LsArgs),
    /// Remove unused local volumes
    #[command(override_usage = "caisson volume prune [OPTIONS]")]
    Prune(prune::VolumePruneArgs),
    /// Remove one or more volumes
    #[command(
        override_usage = "caisson volume rm [OPTIONS] VOLUME [VOLUME...]",
        visible_alias = "remove"
    )]
    Rm(RmArgs),
}

#[derive(Args, Clone, Debug)]
pub(super) struct CreateArgs {
    /// Specify volume driver name (local)
    #[arg(short, long, value_name = "string", default_value = LOCAL)]
    driver: String,

    /// Set metadata for a volume
    #[arg(long, value_name = "list")]
    label: Vec<String>,

    #[arg(value_name = "VOLUME", hide = true)]
    name: Option<String>,
}

#[derive(Args, Clone, Debug)]
pub(super) struct InspectArgs {
    /// Format output: "json" or a Go template
    #[arg(short, long, value_name = "string")]
    format: Option<String>,

    #[arg(value_name = "VOLUME", required = true, hide = true)]
    names: Vec<String>,
}

#[derive(Args, Clone, Debug)]
pub(super) struct LsArgs {
    /// Provide filter values (e.g. "dangling=true")
    #[arg(short, long, value_name = "filter")]
    filter: Vec<String>,

    /// Format output: "table", "table TEMPLATE", "json" or a Go template
    #[arg(long, value_name = "string")]
    format: Option<String>,

    /// Only display volume names
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Args, Clone, Debug)]
pub(super) struct RmArgs {
    /// Do not fail for volumes that are not there
    #[arg(short, long)]
    force: bool,

    #[arg(value_name = "VOLUME", required = true, hide = true)]
    names: Vec<String>,
}

/// The only driver.
const LOCAL: &str = "local";

#[derive(Debug, thiserror::Error)]
enum VolumeCommandError {
    #[error("volume driver {0:?}: there is {LOCAL:?} only")]
    Driver(String),
    #[error(
        "invalid filter {0:?}: there are dangling=true, dangling=false, driver=, label= and name="
    )]
    Filter(String),
}

pub(super) fn volume(globals: &Globals, args: VolumeArgs) -> CommandResult {
    match args.command {
        VolumeCommand::Create(args) => create(globals, &args),
        VolumeCommand::Inspect(args) => inspect(globals, &args),
        VolumeCommand::Ls(args) => ls(globals, &args),
        VolumeCommand::Prune(args) => prune::volumes(globals, &args),
        VolumeCommand::Rm(args) => rm(globals, &args),
    }
}

fn create(globals: &Globals, args: &CreateArgs) -> CommandResult {
    if args.driver != LOCAL {
        return Err(VolumeCommandError::Driver(args.driver.clone()).into());
    }
    let labels = environment::labels(&[], &args.label)?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => volumes::anonymous_name()?,
    };
    let engine = Engine::open(globals)?;
    engine.volumes()?.create(&name, &labels, args.name.is_none())?;
    print_line(&name)?;
    Ok(ExitCode::SUCCESS)
}

fn inspect(globals: &Globals, args: &InspectArgs) -> CommandResult {
    let format = Format::parse(args.format.as_deref())?;
    let volumes = Engine::open(globals)?.volumes()?;
    let mut found = Vec::new();
    let mut failed = false;
    for name in &args.names {
        match volumes.find(name) {
            Ok(volume) => found.push(described(&volumes, &volume)),
            Err(error) => {
                Failure::from(error).report();
                failed = true;
            }
        }
    }
    super::inspect::print(&found, &format)?;
    if failed { Err(Failure::quiet(1)) } else { Ok(ExitCode::SUCCESS) }
}

/// In the shape of Docker's.
pub(super) fn described(volumes: &Volumes, volume: &Volume) -> Value {
    json!({
        "CreatedAt": units::rfc3339(Some(volume.created)),
        "Driver": LOCAL,
        "Labels": volume.labels,
        "Mountpoint": volumes.data(&volume.name),
        "Name": volume.name,
        "Options": null,
        "Scope": LOCAL,
    })
}

fn ls(globals: &Globals, args: &LsArgs) -> CommandResult {
    let format = Format::parse(args.format.as_deref())?;
    let filters =
        args.filter.iter().map(|text| Filter::parse(text)).collect::<Result<Vec<_>, _>>()?;
    let engine = Engine::open(globals)?;
    let volumes = engine.volumes()?;
    let used = engine.used_volumes()?;
    let mut all = volumes.all()?;
    all.retain(|volume| filters.iter().all(|filter| filter.selects(volume, &used)));
    if args.quiet && format == Format::Default {
        all.iter().try_for_each(|volume| print_line(&volume.name))?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = all.iter().map(|volume| {
        let labels: Vec<String> =
            volume.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        json!({
            "Driver": LOCAL,
            "Labels": labels.join(","),
            "Mountpoint": volumes.data(&volume.name),
            "Name": volume.name,
            "Scope": LOCAL,
        })
    });
    listing::print(&format, rows, &[("DRIVER", "Driver"), ("VOLUME NAME", "Name")])?;
    Ok(ExitCode::SUCCESS)
}

fn rm(globals: &Globals, args: &RmArgs) -> CommandResult {
    let engine = Engine::open(globals)?;
    for_each(&args.names, |name| match engine.remove_volume(name) {
        Err(EngineError::Volume(VolumeError::NotFound(_))) if args.force => {
            Ok(Some(name.to_owned()))
        }
        other => Ok(other.map(|()| Some(name.to_owned()))?),
    })
}

/// One `--filter`. All of them must hold.
#[derive(Debug, PartialEq, Eq)]
enum Filter {
    /// No container uses it.
    Dangling(bool),
    Driver(String),
    Label {
        key: String,
        value: Option<String>,
    },
    /// A part of its name.
    Name(String),
}

impl Filter {
    fn parse(text: &str) -> Result<Self, VolumeCommandError> {
        let invalid = || VolumeCommandError::Filter(text.to_owned());
        let (name, value) = text.split_once('=').ok_or_else(invalid)?;
        Ok(match (name, value) {
            ("dangling", "true" | "1") => Self::Dangling(true),
            ("dangling", "false" | "0") => Self::Dangling(false),
            ("driver", driver) => Self::Driver(driver.to_owned()),
            ("label", label) => match label.split_once('=') {
                Some((key, value)) => {
                    Self::Label { key: key.to_owned(), value: Some(value.to_owned()) }
                }
                None => Self::Label { key: label.to_owned(), value: None },
            },
            ("name", part) => Self::Name(part.to_owned()),
            _ => return Err(invalid()),
        })
    }

    fn selects(&self, volume: &Volume, used: &HashSet<String>) -> bool {
        match self {
            Self::Dangling(dangling) => used.contains(&volume.name) != *dangling,
            Self::Driver(driver) => driver == LOCAL,
            Self::Label { key, value } => volume
                .labels
                .get(key)
                .is_some_and(|found| value.as_ref().is_none_or(|wanted| wanted == found)),
            Self::Name(part) => volume.name.contains(part.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_select() {
        let volume = Volume {
            name: "data-1".into(),
            labels: [("kind".to_owned(), "a".to_owned())].into(),
            anonymous: false,
            created: 0,
        };
        let selects = |text: &str, used: &[&str]| {
            let used = used.iter().map(|&name| name.to_owned()).collect();
            Filter::parse(text).expect(text).selects(&volume, &used)
        };
        for text in
            ["dangling=true", "driver=local", "label=kind", "label=kind=a", "name=data", "name=-1"]
        {
            assert!(selects(text, &["data"]), "{text}");
        }
        for text in ["dangling=1", "driver=nfs", "label=x", "label=kind=b", "name=x"] {
            assert!(!selects(text, &["data-1"]), "{text}");
        }
        assert!(selects("dangling=false", &["data-1"]));
        for text in ["dangling", "dangling=maybe", "size=1"] {
            assert!(Filter::parse(text).is_err(), "{text}");
        }
    }
}
