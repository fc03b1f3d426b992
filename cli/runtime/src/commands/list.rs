//! `list`: the containers of this root.

use std::path::Path;

use super::{CommandResult, print};
use crate::{
    args::{ListArgs, ListFormat},
    container::Container,
    state,
};

pub(super) fn list(root: &Path, args: &ListArgs) -> CommandResult {
    let containers = Container::list(root)?;
    if args.quiet {
        for container in &containers {
            print(container.id())?;
        }
        return Ok(0);
    }
    let rows: Vec<_> = containers
        .iter()
        .map(|container| {
            let status = container.status();
            (container, status, container.pid(status))
        })
        .collect();
    if args.format == ListFormat::Json {
        let states: Vec<_> = rows
            .iter()
            .map(|(container, status, pid)| state::value(container, *status, *pid))
            .collect();
        return print(&serde_json::Value::from(states).to_string());
    }
    let width = rows.iter().map(|(container, ..)| container.id().len()).max().unwrap_or(0).max(2);
    print(&format!("{:width$}  {:<7}  {:<8}  BUNDLE", "ID", "PID", "STATUS"))?;
    for (container, status, pid) in rows {
        let (id, bundle) = (container.id(), container.record.bundle.display());
        print(&format!("{id:width$}  {pid:<7}  {:<8}  {bundle}", status.name()))?;
    }
    Ok(0)
}
