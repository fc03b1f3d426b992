//! `images`: list images.

use std::process::ExitCode;

use caisson_rootfs::{ImageSummary, Reference};
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

const NONE: &str = "<none>";

#[derive(Args, Clone, Debug)]
pub struct ImagesArgs {
    /// Show all images (there are no intermediate ones)
    #[arg(short, long)]
    pub all: bool,

    /// Show digests
    #[arg(long)]
    pub digests: bool,

    /// Filter output based on conditions provided (dangling=, reference=)
    #[arg(short, long, value_name = "filter")]
    pub filter: Vec<String>,

    /// Format output: "table", "table TEMPLATE", "json" or a Go template
    #[arg(long, value_name = "string")]
    pub format: Option<String>,

    /// Don't truncate output
    #[arg(long)]
    pub no_trunc: bool,

    /// Only show image IDs
    #[arg(short, long)]
    pub quiet: bool,

    #[arg(value_name = "REPOSITORY[:TAG]", hide = true)]
    pub repository: Option<String>,
}

/// An image under one of its names.
struct Row<'a> {
    image: &'a ImageSummary,
    reference: Option<&'a Reference>,
}

pub(super) fn images(globals: &Globals, args: &ImagesArgs) -> CommandResult {
    let format = Format::parse(args.format.as_deref())?;
    let mut filters =
        args.filter.iter().map(|text| Filter::parse(text)).collect::<Result<Vec<_>, _>>()?;
    filters.extend(args.repository.clone().map(Filter::Reference));
    let engine = Engine::open(globals)?;
    let images = engine.store.images()?;
    let mut rows: Vec<Row<'_>> = images.iter().flat_map(rows_of).collect();
    rows.retain(|row| filters.iter().all(|filter| filter.matches(row)));
    print(&rows, args, &format)?;
    Ok(ExitCode::SUCCESS)
}

/// One for each name, or one without.
fn rows_of(image: &ImageSummary) -> Vec<Row<'_>> {
    if image.references.is_empty() {
        // One that was pulled by its digest still has a repository.
        return vec![Row { image, reference: image.repo_digests.first() }];
    }
    image.references.iter().map(|reference| Row { image, reference: Some(reference) }).collect()
}

fn print(rows: &[Row<'_>], args: &ImagesArgs, format: &Format) -> Result<(), Failure> {
    if args.quiet && *format == Format::Default {
        let mut ids: Vec<String> = rows.iter().map(|row| row.id(args.no_trunc)).collect();
        ids.dedup();
        return ids.iter().try_for_each(|id| print_line(id));
    }
    let mut columns = vec![
        ("REPOSITORY", "Repository"),
        ("TAG", "Tag"),
        ("DIGEST", "Digest"),
        ("IMAGE ID", "ID"),
        ("CREATED", "CreatedSince"),
        ("SIZE", "Size"),
    ];
    columns.retain(|(heading, _)| args.digests || *heading != "DIGEST");
    let now = units::now();
    listing::print(format, rows.iter().map(|row| row.fields(now, args.no_trunc)), &columns)
}

impl Row<'_> {
    fn id(&self, no_trunc: bool) -> String {
        if no_trunc { self.image.id.to_string() } else { self.image.id.short().to_owned() }
    }

    fn repository(&self) -> String {
        self.reference.map_or(NONE.to_owned(), Reference::familiar_repository)
    }

    fn tag(&self) -> &str {
        self.reference.and_then(Reference::tag).unwrap_or(NONE)
    }

    /// By which its registry has it, or of its manifest here.
    fn digest(&self) -> String {
        let repository = self.repository();
        let mut digests = self.image.repo_digests.iter();
        let known = digests.rfind(|known| known.familiar_repository() == repository);
        known.and_then(Reference::digest).unwrap_or(&self.image.manifest).to_string()
    }

    /// The names that Docker's `--format` knows.
    fn fields(&self, now: UnixNanos, no_trunc: bool) -> Value {
        let created = self.image.created.as_deref().and_then(units::parse_rfc3339);
        json!({
            "Containers": self.image.leases.to_string(),
            "CreatedAt": created.map(units::long_time).unwrap_or_default(),
            "CreatedSince": created.map_or("N/A".to_owned(), |created| units::ago(created, now)),
            "Digest": self.digest(),
            "ID": self.id(no_trunc),
            "Repository": self.repository(),
            "Size": units::human_size(self.image.size_bytes),
            "Tag": self.tag(),
        })
    }
}

/// One `--filter`, or the positional pattern.
enum Filter {
    Dangling(bool),
    Reference(String),
}

#[derive(Debug, thiserror::Error)]
#[error("invalid filter {0:?}: there are dangling=true|false and reference=PATTERN")]
struct InvalidFilter(String);

impl Filter {
    fn parse(text: &str) -> Result<Self, InvalidFilter> {
        let invalid = || InvalidFilter(text.to_owned());
        match text.split_once('=') {
            Some(("dangling", value)) => Ok(Self::Dangling(value.parse().map_err(|_| invalid())?)),
            Some(("reference", pattern)) => Ok(Self::Reference(pattern.to_owned())),
            _ => Err(invalid()),
        }
    }

    fn matches(&self, row: &Row<'_>) -> bool {
        match self {
            Self::Dangling(wanted) => row.reference.and_then(Reference::tag).is_none() == *wanted,
            Self::Reference(pattern) => row.reference.is_some_and(|reference| {
                let names = [reference.familiar(), reference.to_string()];
                let repositories = [reference.familiar_repository(), reference.repository()];
                names.iter().chain(&repositories).any(|name| glob(pattern, name))
            }),
        }
    }
}

/// `*` is any number of characters but `/`, `?` is one.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    // Where the last star is, and what it has taken so far.
    let (mut at, mut position, mut star) = (0, 0, None::<(usize, usize)>);
    while position < text.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, position));
                at += 1;
            }
            Some(&c) if c == text[position] || (c == '?' && text[position] != '/') => {
                at += 1;
                position += 1;
            }
            _ => match star {
                Some((star_at, taken)) if text[taken] != '/' => {
                    star = Some((star_at, taken + 1));
                    at = star_at + 1;
                    position = taken + 1;
                }
                _ => return false,
            },
        }
    }
    pattern[at..].iter().all(|&c| c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(names: &[&str]) -> ImageSummary {
        let digest = format!("sha256:{}", "ab".repeat(32));
        ImageSummary {
            id: digest.parse().expect("a digest"),
            manifest: digest.parse().expect("a digest"),
            references: names.iter().map(|name| name.parse().expect("a name")).collect(),
            repo_digests: vec![],
            created: Some("2026-01-01T00:00:00Z".into()),
            size_bytes: 124_000_000,
            leases: 1,
        }
    }

    #[test]
    fn an_image_has_a_row_for_each_name() {
        let image = image(&["debian:12", "me/app:1"]);
        let rows = rows_of(&image);
        let now = units::parse_rfc3339("2026-01-03T00:00:00Z").expect("a time");
        let fields = rows[0].fields(now, false);
        assert_eq!((&fields["Repository"], &fields["Tag"]), (&"debian".into(), &"12".into()));
        assert_eq!(fields["ID"], "abababababab");
        assert_eq!(fields["Size"], "124MB");
        assert_eq!(fields["CreatedSince"], "2 days ago");
        assert_eq!(rows[1].repository(), "me/app");
    }

    #[test]
    fn an_image_without_a_name_is_dangling() {
        let image = image(&[]);
        let rows = rows_of(&image);
        assert_eq!((rows[0].repository().as_str(), rows[0].tag()), (NONE, NONE));
        assert!(Filter::Dangling(true).matches(&rows[0]));
        assert!(!Filter::Reference("*".into()).matches(&rows[0]));
    }

    #[test]
    fn patterns_select_names() {
        let image = image(&["debian:12"]);
        let rows = rows_of(&image);
        let matches = |pattern: &str| Filter::Reference(pattern.into()).matches(&rows[0]);
        for pattern in
            ["debian", "debian:12", "deb*", "*:1?", "docker.io/library/debian", "*/*/debian"]
        {
            assert!(matches(pattern), "{pattern}");
        }
        for pattern in ["debian:11", "deb", "?", "*/debian", "debian:12x", ""] {
            assert!(!matches(pattern), "{pattern}");
        }
        assert!(Filter::parse("since=x").is_err());
    }
}
