//! `ps`: the processes of a container.

use std::path::Path;

use super::{CommandResult, print};
use crate::{
    args::{ListFormat, PsArgs},
    container::Container,
    error::RuntimeError,
};

/// The numbers are the guest's: on the host those would be other processes.
pub(super) fn ps(root: &Path, args: &PsArgs) -> CommandResult {
    if !args.ps_options.is_empty() {
        return Err(RuntimeError::Usage(format!(
            "ps options {:?}: the host's ps does not see the guest's processes; run ps in the container",
            args.ps_options.join(" ")
        )));
    }
    let pids = Container::load(root, &args.id)?.connect_alive()?.pids()?;
    if args.format == ListFormat::Json {
        return print(&serde_json::json!(pids).to_string());
    }
    print("PID")?;
    for pid in pids {
        print(&pid.to_string())?;
    }
    Ok(0)
}
