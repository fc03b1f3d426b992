//! `run`: create and start, and unless detached wait and delete.

use std::path::Path;

use super::{CommandResult, create, delete, start};
use crate::{args::RunArgs, keeper};

pub(super) fn run(root: &Path, args: &RunArgs) -> CommandResult {
    if args.detach {
        let container = create::create_detached(root, &args.create)?;
        return start::start(root, container.id())
            .map_err(|error| create::undone(root, &container, error));
    }
    let mut container = create::reserve(root, &args.create, false)?;
    // This process itself stands for the container.
    let started = keeper::prepare_container(&mut container).and_then(|kept| {
        create::write_pid(&args.create, std::process::id())?;
        kept.client().start(None)?;
        Ok(kept)
    });
    let kept = started.map_err(|error| create::undone(root, &container, error))?;
    start::run_poststart(&container);
    let code = kept.attend();
    if !args.keep {
        delete::remove(&container)?;
    }
    Ok(code)
}
