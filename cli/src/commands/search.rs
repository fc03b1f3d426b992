//! `search`: repositories of a registry.

use std::process::ExitCode;

use caisson_rootfs::registry::{SearchResult, registry_name};
use clap::Args;
use serde_json::{Value, json};

use super::{listing, registry::RegistryFlags};
use crate::{
    failure::{CommandResult, Failure},
    format::template::Format,
    globals::Globals,
};

const DESCRIPTION_CHARS: usize = 45;

#[derive(Args, Clone, Debug)]
pub struct SearchArgs {
    /// Filter output based on conditions provided (is-official=, stars=)
    #[arg(short, long, value_name = "filter")]
    pub filter: Vec<String>,

    /// Format output: "table TEMPLATE", "json" or a Go template
    #[arg(long, value_name = "string")]
    pub format: Option<String>,

    /// Max number of search results
    #[arg(long, value_name = "int", default_value = "25",
          value_parser = clap::value_parser!(u16).range(1..=100))]
    pub limit: u16,

    /// Don't truncate output
    #[arg(long)]
    pub no_trunc: bool,

    #[command(flatten)]
    pub registry: RegistryFlags,

    #[arg(value_name = "TERM", hide = true)]
    pub term: String,
}

#[derive(Debug, thiserror::Error)]
#[error("invalid filter {0:?}: there are is-official=true|false and stars=NUMBER")]
struct InvalidFilter(String);

enum Filter {
    Official(bool),
    Stars(u64),
}

impl Filter {
    fn parse(text: &str) -> Result<Self, InvalidFilter> {
        let invalid = || InvalidFilter(text.to_owned());
        match text.split_once('=') {
            Some(("is-official", value)) => {
                value.parse().map(Self::Official).map_err(|_| invalid())
            }
            Some(("stars", value)) => value.parse().map(Self::Stars).map_err(|_| invalid()),
            _ => Err(invalid()),
        }
    }

    fn matches(&self, found: &SearchResult) -> bool {
        match self {
            Self::Official(wanted) => found.is_official == *wanted,
            Self::Stars(least) => found.star_count >= *least,
        }
    }
}

pub(super) fn search(_: &Globals, args: &SearchArgs) -> CommandResult {
    let format = Format::parse(args.format.as_deref())?;
    let filters =
        args.filter.iter().map(|text| Filter::parse(text)).collect::<Result<Vec<_>, _>>()?;
    let (domain, term) = split(&args.term);
    let domain = registry_name(domain)?;
    let client = args.registry.client(&domain)?;
    let mut found = client.search(&domain, term, usize::from(args.limit))?;
    found.retain(|found| filters.iter().all(|filter| filter.matches(found)));
    print(&found, args.no_trunc, &format)?;
    Ok(ExitCode::SUCCESS)
}

/// `host/term`, if the first word can only be a host.
fn split(term: &str) -> (&str, &str) {
    match term.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest),
        _ => ("docker.io", term),
    }
}

fn fields(found: &SearchResult, no_trunc: bool) -> Value {
    let description = found.description.clone().unwrap_or_default().replace(['\n', '\r'], " ");
    let short = description.chars().count() <= DESCRIPTION_CHARS || no_trunc;
    let description = match short {
        true => description,
        false => description.chars().take(DESCRIPTION_CHARS - 1).chain(['…']).collect(),
    };
    json!({
        "Name": found.name,
        "Description": description,
        "StarCount": found.star_count.to_string(),
        "IsOfficial": if found.is_official { "[OK]" } else { "" },
    })
}

fn print(found: &[SearchResult], no_trunc: bool, format: &Format) -> Result<(), Failure> {
    let columns = [
        ("NAME", "Name"),
        ("DESCRIPTION", "Description"),
        ("STARS", "StarCount"),
        ("OFFICIAL", "IsOfficial"),
    ];
    listing::print(format, found.iter().map(|found| fields(found, no_trunc)), &columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_before_the_term_is_the_registry() {
        assert_eq!(split("debian"), ("docker.io", "debian"));
        assert_eq!(split("me/app"), ("docker.io", "me/app"));
        assert_eq!(split("localhost:5000/app"), ("localhost:5000", "app"));
        assert_eq!(split("quay.io/a/b"), ("quay.io", "a/b"));
    }

    #[test]
    fn long_descriptions_are_cut() {
        let found = SearchResult { description: Some("x\n".repeat(40)), ..SearchResult::default() };
        let cut = fields(&found, false)["Description"].as_str().unwrap().to_owned();
        assert_eq!(cut.chars().count(), 45);
        assert!(cut.ends_with('…') && !cut.contains('\n'));
        assert!(Filter::parse("stars=x").is_err());
    }
}
