//! `container prune`, `image prune` and `volume prune`: removes what nobody uses.

mod filter;
mod report;

use std::{collections::BTreeMap, fs, io, os::unix::fs::MetadataExt, path::Path};

use caisson_rootfs::ImageSummary;
use clap::Args;

use filter::Filter;
use report::{Deleted, confirm};

use super::rmi;
use crate::{
    engine::{Engine, EngineError, RemovedVolumes},
    failure::{CommandResult, Failure},
    format::{
        moment::InvalidTime,
        units::{self, UnixNanos},
    },
    globals::Globals,
    records::State,
    volumes::VolumeError,
};

/// The filters of what has an age and labels.
const UNTIL_AND_LABELS: &str = "until=, label= and label!=";

#[derive(Args, Clone, Debug)]
pub(super) struct ContainerPruneArgs {
    /// Provide filter values (e.g. "until=<timestamp>")
    #[arg(long, value_name = "filter")]
    filter: Vec<String>,

    /// Do not prompt for confirmation
    #[arg(short, long)]
    pub(super) force: bool,
}

#[derive(Args, Clone, Debug)]
pub(super) struct ImagePruneArgs {
    /// Remove all unused images, not just dangling ones
    #[arg(short, long)]
    all: bool,

    /// Provide filter values (e.g. "until=<timestamp>")
    #[arg(long, value_name = "filter")]
    filter: Vec<String>,

    /// Do not prompt for confirmation
    #[arg(short, long)]
    pub(super) force: bool,
}

#[derive(Args, Clone, Debug)]
pub(super) struct VolumePruneArgs {
    /// Remove all unused volumes, not just anonymous ones
    #[arg(short, long)]
    all: bool,

    /// Provide filter values (e.g. "label=<label>")
    #[arg(long, value_name = "filter")]
    filter: Vec<String>,

    /// Do not prompt for confirmation
    #[arg(short, long)]
    pub(super) force: bool,
}

#[derive(Debug, thiserror::Error)]
enum PruneError {
    #[error("invalid filter {text:?}: there are {known}")]
    UnknownFilter { text: String, known: &'static str },
    #[error("invalid filter {text:?}")]
    InvalidTime { text: String, source: InvalidTime },
    #[error("the \"until\" filter is not supported with \"--volumes\"")]
    UntilWithVolumes,
    #[error("read the answer")]
    Answer(#[source] io::Error),
    #[error("nothing was removed: the answer was not \"y\"; --force does without the question")]
    Declined,
}

pub(super) fn containers(globals: &Globals, args: &ContainerPruneArgs) -> CommandResult {
    let now = units::now();
    let parse = |text: &String| Filter::known(text, now, UNTIL_AND_LABELS);
    let filters = args.filter.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    confirm(args.force, "This will remove all stopped containers.")?;
    let engine = Engine::open(globals)?;
    let mut deleted = Deleted::new("Deleted Containers:");
    let freed_bytes = remove_stopped(&engine, &filters, &mut deleted)?;
    deleted.reclaimed(freed_bytes)
}

/// Removes containers that do not run; what they took of the disk.
fn remove_stopped(
    engine: &Engine,
    filters: &[Filter],
    deleted: &mut Deleted,
) -> Result<u64, Failure> {
    let mut freed_bytes = 0;
    for container in engine.records.all()? {
        let stopped = matches!(container.state, State::Created | State::Exited);
        let labels = container.config.as_ref().map(|config| config.labels.clone());
        let labels = labels.unwrap_or_default();
        if stopped && filters.iter().all(|filter| filter.selects(container.created, &labels)) {
            let bytes = allocated_bytes(&engine.globals.container_dir(&container.id));
            engine.remove(&container, false, RemovedVolumes::Keep)?;
            freed_bytes += bytes;
            deleted.print(&container.id)?;
        }
    }
    Ok(freed_bytes)
}

pub(super) fn images(globals: &Globals, args: &ImagePruneArgs) -> CommandResult {
    let mut all = args.all;
    let mut filters = Vec::new();
    let now = units::now();
    for text in &args.filter {
        match text.as_str() {
            "dangling=false" => all = true,
            "dangling=true" => all = false,
            _ => filters.push(Filter::known(text, now, "dangling=, until=, label= and label!=")?),
        }
    }
    let what = match all {
        true => "This will remove all images without at least one container associated to them.",
        false => "This will remove all dangling images.",
    };
    confirm(args.force, what)?;
    let engine = Engine::open(globals)?;
    let mut deleted = Deleted::new("Deleted Images:");
    let freed_bytes = remove_unused(&engine, all, &filters, &mut deleted)?;
    deleted.reclaimed(freed_bytes)
}

/// Removes images that no container uses, with `all` those with a name too; what came free.
fn remove_unused(
    engine: &Engine,
    all: bool,
    filters: &[Filter],
    deleted: &mut Deleted,
) -> Result<u64, Failure> {
    for image in engine.store.images()? {
        let unused = image.leases == 0 && (all || image.references.is_empty());
        if unused && filters.iter().all(|filter| selects_image(engine, filter, &image)) {
            let removed = engine.store.remove(&image.id.to_string(), all)?;
            rmi::tell_removed(engine, &removed);
            let untagged = removed.untagged.iter().map(|name| format!("untagged: {name}"));
            let gone = removed.deleted.iter().map(|id| format!("deleted: {id}"));
            untagged.chain(gone).try_for_each(|line| deleted.print(&line))?;
        }
    }
    Ok(engine.store.gc()?.bytes)
}

/// An image whose age is not known is not older than anything; one that is damaged has no
/// labels.
fn selects_image(engine: &Engine, filter: &Filter, image: &ImageSummary) -> bool {
    let created = image.created.as_deref().and_then(units::parse_rfc3339);
    let labels = match filter {
        Filter::Until(_) => BTreeMap::new(),
        Filter::Label { .. } => labels_of(engine, image),
    };
    filter.selects(created.unwrap_or(UnixNanos::MAX), &labels)
}

fn labels_of(engine: &Engine, image: &ImageSummary) -> BTreeMap<String, String> {
    let found = engine.store.resolve(&image.id.to_string()).ok();
    let config = found.and_then(|image| image.config.config().clone());
    let labels = config.and_then(|config| config.labels().clone()).unwrap_or_default();
    labels.into_iter().collect()
}

#[derive(Args, Clone, Debug)]
pub(super) struct SystemPruneArgs {
    /// Remove all unused images not just dangling ones
    #[arg(short, long)]
    all: bool,

    /// Provide filter values (e.g. "label=<key>=<value>")
    #[arg(long, value_name = "filter")]
    filter: Vec<String>,

    /// Do not prompt for confirmation
    #[arg(short, long)]
    pub(super) force: bool,

    /// Prune anonymous volumes
    #[arg(long)]
    volumes: bool,
}

pub(super) fn system(globals: &Globals, args: &SystemPruneArgs) -> CommandResult {
    let now = units::now();
    let mut filters = Vec::new();
    for text in &args.filter {
        let filter = Filter::known(text, now, UNTIL_AND_LABELS)?;
        if args.volumes && matches!(filter, Filter::Until(_)) {
            return Err(PruneError::UntilWithVolumes.into());
        }
        filters.push(filter);
    }
    let mut what = "This will remove:\n  - all stopped containers".to_owned();
    if args.volumes {
        what.push_str("\n  - all anonymous volumes not used by at least one container");
    }
    what.push_str(match args.all {
        true => "\n  - all images without at least one container associated to them",
        false => "\n  - all dangling images",
    });
    confirm(args.force, &format!("{what}\n"))?;
    let engine = Engine::open(globals)?;
    let mut deleted = Deleted::new("Deleted Containers:");
    let mut freed_bytes = remove_stopped(&engine, &filters, &mut deleted)?;
    if args.volumes {
        deleted.begin("Deleted Volumes:");
        freed_bytes += remove_unused_volumes(&engine, false, &filters, &mut deleted)?;
    }
    deleted.begin("Deleted Images:");
    freed_bytes += remove_unused(&engine, args.all, &filters, &mut deleted)?;
    deleted.reclaimed(freed_bytes)
}

pub(super) fn volumes(globals: &Globals, args: &VolumePruneArgs) -> CommandResult {
    let mut all = args.all;
    let mut filters = Vec::new();
    for text in &args.filter {
        match text.as_str() {
            "all=true" | "all=1" => all = true,
            "all=false" | "all=0" => all = false,
            _ => match Filter::parse(text, units::now())? {
                Some(filter @ Filter::Label { .. }) => filters.push(filter),
                _ => return Err(filter::unknown(text, "all=, label= and label!=").into()),
            },
        }
    }
    confirm(
        args.force,
        match all {
            true => "This will remove all volumes not used by at least one container.",
            false => "This will remove anonymous volumes not used by at least one container.",
        },
    )?;
    let engine = Engine::open(globals)?;
    let mut deleted = Deleted::new("Deleted Volumes:");
    let freed_bytes = remove_unused_volumes(&engine, all, &filters, &mut deleted)?;
    deleted.reclaimed(freed_bytes)
}

/// Removes volumes that no container uses, with `all` those with a name too; what they took
/// of the disk.
fn remove_unused_volumes(
    engine: &Engine,
    all: bool,
    filters: &[Filter],
    deleted: &mut Deleted,
) -> Result<u64, Failure> {
    let mut freed_bytes = 0;
    let volumes = engine.volumes()?;
    for volume in volumes.all()? {
        let selected = filters.iter().all(|filter| filter.selects(volume.created, &volume.labels));
        if !selected || !(all || volume.anonymous) {
            continue;
        }
        let bytes = allocated_bytes(&volumes.data(&volume.name));
        match engine.remove_volume(&volume.name) {
            Err(EngineError::Volume(VolumeError::InUse { .. } | VolumeError::NotFound(_))) => {}
            other => {
                other?;
                freed_bytes += bytes;
                deleted.print(&volume.name)?;
            }
        }
    }
    Ok(freed_bytes)
}

/// What the files below a directory take of the disk; those that cannot be read count
/// nothing. Links are not followed.
pub(super) fn allocated_bytes(directory: &Path) -> u64 {
    let mut bytes = 0;
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(file) = entry.metadata() else { continue };
            bytes += file.blocks() * 512;
            if file.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    bytes
}
