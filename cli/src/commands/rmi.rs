//! `rmi`: remove images or names of them.

use caisson_rootfs::{Removed, StoreError};
use clap::Args;

use super::{for_each, print_line};
use crate::{
    engine::Engine,
    events::Event,
    failure::{CommandResult, Failure},
    globals::Globals,
    names::short_id,
};

#[derive(Args, Clone, Debug)]
pub struct RmiArgs {
    /// Force removal of the image
    #[arg(short, long)]
    pub force: bool,

    /// Do not delete untagged parents (there are none)
    #[arg(long)]
    pub no_prune: bool,

    #[arg(value_name = "IMAGE", required = true, hide = true)]
    pub images: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "conflict: unable to remove image {image} (must be forced): it is used by container {containers}"
)]
struct InUse {
    image: String,
    containers: String,
}

pub(super) fn rmi(globals: &Globals, args: &RmiArgs) -> CommandResult {
    let engine = Engine::open(globals)?;
    for_each(&args.images, |name| {
        let removed =
            engine.store.remove(name, args.force).map_err(|error| explain(&engine, error))?;
        tell_removed(&engine, &removed);
        removed.untagged.iter().try_for_each(|name| print_line(&format!("Untagged: {name}")))?;
        removed.deleted.iter().try_for_each(|id| print_line(&format!("Deleted: {id}")))?;
        Ok(None)
    })
}

/// Tells what has gone.
pub(super) fn tell_removed(engine: &Engine, removed: &Removed) {
    let untagged = removed.untagged.iter().map(|name| (name, "untag"));
    let deleted = removed.deleted.iter().map(|id| (id, "delete"));
    for (image, action) in untagged.chain(deleted) {
        Event::of_image(image, action).tell(&engine.globals.root);
    }
}

/// Names the containers that use the image.
fn explain(engine: &Engine, error: StoreError) -> Failure {
    let StoreError::InUse { image, owners } = error else { return error.into() };
    let container = |owner: &String| {
        let id = owner.strip_prefix("container/").unwrap_or(owner);
        match engine.records.by_id(id) {
            Ok(container) => format!("{} ({})", container.name, short_id(id)),
            Err(_) => short_id(id).to_owned(),
        }
    };
    let containers: Vec<String> = owners.iter().map(container).collect();
    InUse { image, containers: containers.join(", ") }.into()
}
