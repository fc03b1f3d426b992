//! `system df`: what takes space, and what of it could be given back.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::usage::{Usage, measure};
use crate::{
    commands::{listing, print_line},
    engine::Engine,
    failure::{CommandResult, Failure},
    format::{table::Table, template::Format, units},
    globals::Globals,
    names::short_id,
    records::State,
};

#[derive(Args, Clone, Debug)]
pub(in crate::commands) struct DfArgs {
    /// Format output: "table", "table TEMPLATE", "json" or a Go template
    #[arg(long, value_name = "string")]
    pub(super) format: Option<String>,

    /// Show detailed information on space usage
    #[arg(short, long)]
    pub(super) verbose: bool,
}

pub(super) fn df(globals: &Globals, args: &DfArgs) -> CommandResult {
    let format = Format::parse(args.format.as_deref())?;
    if args.verbose && format != Format::Default {
        return Err(Failure::message("--format and --verbose cannot be used together"));
    }
    let engine = Engine::open(globals)?;
    let usage = measure(&engine)?;
    if args.verbose {
        details(&usage)?;
        return Ok(ExitCode::SUCCESS);
    }
    let columns = [
        ("TYPE", "Type"),
        ("TOTAL", "TotalCount"),
        ("ACTIVE", "Active"),
        ("SIZE", "Size"),
        ("RECLAIMABLE", "Reclaimable"),
    ];
    listing::print(&format, summary(&usage).into_iter(), &columns)?;
    Ok(ExitCode::SUCCESS)
}

fn summary(usage: &Usage) -> Vec<Value> {
    let used_images = usage.images.iter().filter(|each| each.image.leases > 0).count();
    let running =
        usage.containers.iter().filter(|each| each.container.state == State::Running).count();
    let used_volumes = usage.volumes.iter().filter(|each| each.links > 0).count();
    let (layers, free_layers) = (usage.layers_bytes, usage.reclaimable_layers_bytes);
    vec![
        row("Images", (usage.images.len(), used_images), (layers, free_layers)),
        row(
            "Containers",
            (usage.containers.len(), running),
            (usage.containers_bytes(), usage.reclaimable_containers_bytes()),
        ),
        row(
            "Local Volumes",
            (usage.volumes.len(), used_volumes),
            (usage.volumes_bytes(), usage.reclaimable_volumes_bytes()),
        ),
        // Images are not built here.
        row("Build Cache", (0, 0), (0, 0)),
    ]
}

fn row(
    kind: &str,
    (total, active): (usize, usize),
    (bytes, reclaimable_bytes): (u64, u64),
) -> Value {
    let share = reclaimable_bytes.saturating_mul(100).checked_div(bytes);
    let reclaimable = units::human_size(reclaimable_bytes);
    json!({
        "Type": kind,
        "TotalCount": total.to_string(),
        "Active": active.to_string(),
        "Size": units::human_size(bytes),
        "Reclaimable": match share {
            Some(percent) => format!("{reclaimable} ({percent}%)"),
            None => reclaimable,
        },
    })
}

/// A table for each kind.
fn details(usage: &Usage) -> Result<(), Failure> {
    let now = units::now();
    let mut images = Table::new([
        "REPOSITORY",
        "TAG",
        "IMAGE ID",
        "CREATED",
        "SIZE",
        "SHARED SIZE",
        "UNIQUE SIZE",
        "CONTAINERS",
    ]);
    for each in &usage.images {
        let name = each.image.references.first();
        let repository = name.map(|name| name.familiar_repository());
        let tag = name.and_then(|name| name.tag().map(str::to_owned));
        let created = each.image.created.as_deref().and_then(units::parse_rfc3339);
        let none = || "<none>".to_owned();
        let id = each.image.id.to_string();
        images.row([
            repository.unwrap_or_else(none),
            tag.unwrap_or_else(none),
            short_id(id.strip_prefix("sha256:").unwrap_or(&id)).to_owned(),
            created.map(|created| units::ago(created, now)).unwrap_or_else(|| "N/A".to_owned()),
            units::human_size(each.shared_bytes + each.unique_bytes),
            units::human_size(each.shared_bytes),
            units::human_size(each.unique_bytes),
            each.image.leases.to_string(),
        ]);
    }
    print_section("Images space usage:", &images)?;
    let mut containers =
        Table::new(["CONTAINER ID", "IMAGE", "SIZE", "CREATED", "STATUS", "NAMES"]);
    for each in &usage.containers {
        let container = &each.container;
        containers.row([
            short_id(&container.id).to_owned(),
            container.config.as_ref().map(|config| config.image.clone()).unwrap_or_default(),
            units::human_size(each.bytes),
            units::ago(container.created, now),
            container.state.as_str().to_owned(),
            container.name.clone(),
        ]);
    }
    print_line("")?;
    print_section("Containers space usage:", &containers)?;
    let mut volumes = Table::new(["VOLUME NAME", "LINKS", "SIZE"]);
    for each in &usage.volumes {
        let (links, size) = (each.links.to_string(), units::human_size(each.bytes));
        volumes.row([each.volume.name.clone(), links, size]);
    }
    print_line("")?;
    print_section("Local Volumes space usage:", &volumes)
}

fn print_section(heading: &str, table: &Table) -> Result<(), Failure> {
    print_line(&format!("{heading}\n"))?;
    Ok(table.write(&mut std::io::stdout())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_dockers_fields_and_a_share() {
        let images = row("Images", (3, 1), (4_000_000, 1_000_000));
        assert_eq!(images["Reclaimable"], "1MB (25%)");
        assert_eq!((&images["TotalCount"], &images["Active"]), (&json!("3"), &json!("1")));
        assert_eq!(row("Build Cache", (0, 0), (0, 0))["Reclaimable"], "0B");
    }
}
