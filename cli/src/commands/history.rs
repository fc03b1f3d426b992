//! `history`: how an image came to be, step by step, the latest first.

use std::process::ExitCode;

use caisson_rootfs::Image;
use clap::Args;
use serde_json::{Value, json};

use super::{listing, print_line};
use crate::{
    engine::Engine,
    failure::{CommandResult, Failure},
    format::{
        template::Format,
        units::{self, UnixNanos},
    },
    globals::Globals,
};

const MISSING: &str = "<missing>";
const COMMAND_CHARS: usize = 45;

#[derive(Args, Clone, Debug)]
pub struct HistoryArgs {
    /// Format output: "table TEMPLATE", "json" or a Go template
    #[arg(long, value_name = "string")]
    pub format: Option<String>,

    /// Print sizes and dates in human readable format
    #[arg(short = 'H', long, value_name = "bool", default_value = "true",
          action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    pub human: Option<bool>,

    /// Don't truncate output
    #[arg(long)]
    pub no_trunc: bool,

    /// Only show image IDs
    #[arg(short, long)]
    pub quiet: bool,

    #[arg(value_name = "IMAGE", hide = true)]
    pub image: String,
}

/// One step.
#[derive(Debug, Default, PartialEq, Eq)]
struct Row {
    /// The image's id for the latest step: the others have none of their own.
    id: Option<String>,
    created: Option<UnixNanos>,
    created_by: String,
    size_bytes: u64,
    comment: String,
}

pub(super) fn history(globals: &Globals, args: &HistoryArgs) -> CommandResult {
    let format = Format::parse(args.format.as_deref())?;
    let engine = Engine::open(globals)?;
    let image = engine.store.resolve(&args.image)?;
    let sizes = engine.store.layer_sizes(&image)?;
    print(&rows(&image, &sizes), args, &format)?;
    Ok(ExitCode::SUCCESS)
}

fn rows(image: &Image, sizes: &[u64]) -> Vec<Row> {
    let mut sizes = sizes.iter().copied();
    let steps = image.config.history().clone().unwrap_or_default();
    let mut rows: Vec<Row> = steps
        .iter()
        .map(|step| Row {
            id: None,
            created: step.created().as_deref().and_then(units::parse_rfc3339),
            created_by: step.created_by().clone().unwrap_or_default(),
            size_bytes: match step.empty_layer().unwrap_or(false) {
                true => 0,
                false => sizes.next().unwrap_or(0),
            },
            comment: step.comment().clone().unwrap_or_default(),
        })
        .collect();
    // Layers that no step accounts for.
    let created = image.config.created().as_deref().and_then(units::parse_rfc3339);
    rows.extend(sizes.map(|size_bytes| Row { created, size_bytes, ..Row::default() }));
    rows.reverse();
    if let Some(latest) = rows.first_mut() {
        latest.id = Some(image.id.to_string());
    }
    rows
}

impl Row {
    fn id(&self, no_trunc: bool) -> String {
        match &self.id {
            None => MISSING.to_owned(),
            Some(id) if no_trunc => id.clone(),
            Some(id) => id.trim_start_matches("sha256:").chars().take(12).collect(),
        }
    }

    fn fields(&self, now: UnixNanos, human: bool, no_trunc: bool) -> Value {
        let mut by = self.created_by.replace(['\t', '\n'], " ");
        if !no_trunc && by.chars().count() > COMMAND_CHARS {
            by = by.chars().take(COMMAND_CHARS - 1).chain(['…']).collect();
        }
        let at = units::rfc3339(self.created);
        json!({
            "ID": self.id(no_trunc),
            "CreatedAt": at,
            "CreatedSince": match (self.created, human) {
                (Some(created), true) => units::ago(created, now),
                (None, true) => "N/A".to_owned(),
                _ => at,
            },
            "CreatedBy": by,
            "Size": match human {
                true => units::human_size(self.size_bytes),
                false => self.size_bytes.to_string(),
            },
            "Comment": self.comment,
        })
    }
}

fn print(rows: &[Row], args: &HistoryArgs, format: &Format) -> Result<(), Failure> {
    if args.quiet && *format == Format::Default {
        return rows.iter().try_for_each(|row| print_line(&row.id(args.no_trunc)));
    }
    let (now, human) = (units::now(), args.human.unwrap_or(true));
    let columns = [
        ("IMAGE", "ID"),
        ("CREATED", "CreatedSince"),
        ("CREATED BY", "CreatedBy"),
        ("SIZE", "Size"),
        ("COMMENT", "Comment"),
    ];
    listing::print(format, rows.iter().map(|row| row.fields(now, human, args.no_trunc)), &columns)
}
