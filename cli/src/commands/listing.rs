//! A list of things, printed as `--format` asks for it.

use std::io::stdout;

use serde_json::Value;

use super::print_line;
use crate::{
    failure::Failure,
    format::{table::Table, template::Format},
};

/// Prints `rows`. The command's own table has `columns`: each heading, and the field below
/// it.
pub(super) fn print(
    format: &Format,
    mut rows: impl Iterator<Item = Value>,
    columns: &[(&str, &str)],
) -> Result<(), Failure> {
    match format {
        Format::Json => rows.try_for_each(|row| print_line(&row.to_string())),
        Format::Lines(template) => rows.try_for_each(|row| print_line(&template.fill(&row)?)),
        Format::Table(template) => {
            let mut table = Table::new(template.heading().split('\t'));
            for row in rows {
                table.row(template.fill(&row)?.split('\t'));
            }
            Ok(table.write(&mut stdout())?)
        }
        Format::Default => {
            let mut table = Table::new(columns.iter().map(|(heading, _)| *heading));
            for row in rows {
                table.row(columns.iter().map(|(_, field)| row[field].as_str().unwrap_or_default()));
            }
            Ok(table.write(&mut stdout())?)
        }
    }
}
