//! `ps`: list containers.

use std::process::ExitCode;

use caisson_shim::network::publish::Port;
use clap::Args;
use serde_json::{Value, json};

use super::{listing, print_line};
use crate::{
    config::Network,
    engine::Engine,
    failure::{CommandResult, Failure},
    format::{
        inert::inert,
        template::Format,
        units::{self, UnixNanos},
    },
    globals::Globals,
    names::short_id,
    records::{Container, State},
};

/// How much of a command a listing shows.
const COMMAND_CHARS: usize = 20;

#[derive(Args, Clone, Debug)]
pub struct PsArgs {
    /// Show all containers (default shows just running)
    #[arg(short, long)]
    pub all: bool,

    /// Filter output based on conditions provided
    #[arg(short, long, value_name = "filter")]
    pub filter: Vec<String>,

    /// Format output: "table", "table TEMPLATE", "json" or a Go template
    #[arg(long, value_name = "string")]
    pub format: Option<String>,

    /// Show n last created containers (includes all states)
    #[arg(short = 'n', long, value_name = "int", allow_hyphen_values = true)]
    pub last: Option<i64>,

    /// Show the latest created container (includes all states)
    #[arg(short, long)]
    pub latest: bool,

    /// Don't truncate output
    #[arg(long)]
    pub no_trunc: bool,

    /// Only display container IDs
    #[arg(short, long)]
    pub quiet: bool,
}

pub(super) fn ps(globals: &Globals, args: &PsArgs) -> CommandResult {
    let format = Format::parse(args.format.as_deref())?;
    let filters =
        args.filter.iter().map(|text| Filter::parse(text)).collect::<Result<Vec<_>, _>>()?;
    let engine = Engine::open(globals)?;
    let mut containers = engine.records.all()?;
    let by_state =
        filters.iter().any(|filter| matches!(filter, Filter::Status(_) | Filter::Exited(_)));
    let last = if args.latest { Some(1) } else { args.last.and_then(|n| usize::try_from(n).ok()) };
    if !args.all && !by_state && last.is_none() {
        containers.retain(|container| container.state == State::Running);
    }
    containers.retain(|container| filters.iter().all(|filter| filter.matches(container)));
    containers.truncate(last.unwrap_or(usize::MAX));
    print(&containers, args, &format)?;
    Ok(ExitCode::SUCCESS)
}

fn print(containers: &[Container], args: &PsArgs, format: &Format) -> Result<(), Failure> {
    if args.quiet && *format == Format::Default {
        return containers
            .iter()
            .try_for_each(|container| print_line(shown_id(container, args.no_trunc)));
    }
    let columns = [
        ("CONTAINER ID", "ID"),
        ("IMAGE", "Image"),
        ("COMMAND", "Command"),
        ("CREATED", "RunningFor"),
        ("STATUS", "Status"),
        ("PORTS", "Ports"),
        ("NAMES", "Names"),
    ];
    let now = units::now();
    let rows = containers.iter().map(|container| fields(container, now, args.no_trunc));
    listing::print(format, rows, &columns)
}

/// What leads to a container while it runs, as Docker writes it.
fn ports(container: &Container, network: &Network) -> String {
    let written = |port: &Port| format!("{}->{}/tcp", port.host, port.guest);
    match container.state {
        State::Running => network.ports().iter().map(written).collect::<Vec<_>>().join(", "),
        _ => String::new(),
    }
}

/// The names that Docker's `--format` knows.
fn fields(container: &Container, now: UnixNanos, no_trunc: bool) -> Value {
    let config = container.config.clone().unwrap_or_default();
    let labels: Vec<String> =
        config.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    json!({
        "Command": command(&config.args(), no_trunc),
        "CreatedAt": units::long_time(container.created),
        "ID": shown_id(container, no_trunc),
        "Image": config.image,
        "Labels": labels.join(","),
        "LocalVolumes": "0",
        "Mounts": "",
        "Names": container.name,
        "Networks": config.network.name(),
        "Ports": ports(container, &config.network),
        "RunningFor": units::ago(container.created, now),
        "Size": "0B",
        "State": state(container),
        "Status": status(container, now),
    })
}

fn shown_id(container: &Container, no_trunc: bool) -> &str {
    if no_trunc { &container.id } else { short_id(&container.id) }
}

/// Docker's words for the states.
pub(super) fn state(container: &Container) -> &'static str {
    match container.state {
        State::Running if container.paused => "paused",
        State::Creating | State::Created | State::Starting => "created",
        State::Running => "running",
        State::Exited => "exited",
        State::Removing => "removing",
        State::Unknown => "dead",
    }
}

/// `Up 3 seconds`, `Up 3 seconds (Paused)`, `Exited (0) 2 minutes ago`.
pub(super) fn status(container: &Container, now: UnixNanos) -> String {
    match (container.state, container.started, container.finished) {
        (State::Running, Some(started), _) => {
            let paused = if container.paused { " (Paused)" } else { "" };
            format!("Up {}{paused}", units::human_duration(units::between(started, now)))
        }
        (State::Exited, _, Some(finished)) => {
            format!("Exited ({}) {}", container.exit_code, units::ago(finished, now))
        }
        (State::Exited, ..) => format!("Exited ({})", container.exit_code),
        (State::Removing, ..) => "Removal In Progress".to_owned(),
        (State::Unknown, ..) => "Dead".to_owned(),
        (State::Starting, ..) => "Starting".to_owned(),
        _ => "Created".to_owned(),
    }
}

/// `"sh -c 'sleep 10…"`, quoted as Docker does.
fn command(args: &[String], no_trunc: bool) -> String {
    let text = args.join(" ");
    let text = match text.char_indices().nth(COMMAND_CHARS) {
        Some(_) if !no_trunc => {
            let cut: String = text.chars().take(COMMAND_CHARS - 1).collect();
            format!("{cut}…")
        }
        _ => text,
    };
    format!("\"{}\"", inert(&text.replace('\\', "\\\\").replace('"', "\\\"")))
}

/// One `--filter`.
#[derive(Debug)]
enum Filter {
    Ancestor(String),
    Exited(u8),
    Id(String),
    Label(String, Option<String>),
    Name(String),
    Status(String),
}

#[derive(Debug, thiserror::Error)]
#[error("invalid filter {0:?}: there are ancestor=, exited=, id=, label=, name= and status=")]
struct InvalidFilter(String);

impl Filter {
    fn parse(text: &str) -> Result<Self, InvalidFilter> {
        let invalid = || InvalidFilter(text.to_owned());
        let (name, value) = text.split_once('=').ok_or_else(invalid)?;
        let value = value.to_owned();
        Ok(match name {
            "ancestor" => Self::Ancestor(value),
            "exited" => Self::Exited(value.parse().map_err(|_| invalid())?),
            "id" => Self::Id(value),
            "label" => match value.split_once('=') {
                Some((key, value)) => Self::Label(key.to_owned(), Some(value.to_owned())),
                None => Self::Label(value, None),
            },
            "name" => Self::Name(value),
            "status" => Self::Status(value),
            _ => return Err(invalid()),
        })
    }

    fn matches(&self, container: &Container) -> bool {
        let config = container.config.as_ref();
        match self {
            Self::Ancestor(image) => config.is_some_and(|config| {
                let digest = config.image_id.strip_prefix("sha256:").unwrap_or(&config.image_id);
                config.image == *image || (image.len() >= 4 && digest.starts_with(image.as_str()))
            }),
            Self::Exited(code) => container.state == State::Exited && container.exit_code == *code,
            Self::Id(prefix) => container.id.starts_with(prefix.as_str()),
            Self::Label(key, value) => {
                let found = config.and_then(|config| config.labels.get(key));
                found.is_some_and(|found| value.as_ref().is_none_or(|value| value == found))
            }
            Self::Name(part) => {
                let anchored = part.strip_prefix('^').and_then(|part| part.strip_suffix('$'));
                match anchored {
                    Some(whole) => container.name == whole.trim_start_matches('/'),
                    None => container.name.contains(part.as_str()),
                }
            }
            Self::Status(word) => state(container) == word,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ContainerConfig;

    const SECOND: UnixNanos = 1_000_000_000;

    fn container(state: State) -> Container {
        let config = ContainerConfig {
            image: "busybox".into(),
            image_id: "sha256:abcdef".into(),
            command: vec!["sh".into(), "-c".into(), "echo \"hello\"; sleep 1000".into()],
            labels: [("a".to_owned(), "1".to_owned())].into(),
            ..ContainerConfig::default()
        };
        Container::sample("c0ffee".repeat(10) + "beef", "web", state, Some(config))
    }

    #[test]
    fn statuses_are_dockers() {
        let mut exited = container(State::Exited);
        exited.finished = Some(0);
        exited.exit_code = 3;
        assert_eq!(status(&exited, 125 * SECOND), "Exited (3) 2 minutes ago");
        let mut running = container(State::Running);
        running.started = Some(0);
        assert_eq!(status(&running, 3 * SECOND), "Up 3 seconds");
        assert_eq!(state(&running), "running");
        running.paused = true;
        assert_eq!(status(&running, 3 * SECOND), "Up 3 seconds (Paused)");
        assert_eq!(state(&running), "paused");
        assert_eq!(status(&container(State::Created), 0), "Created");
        assert_eq!(status(&container(State::Unknown), 0), "Dead");
    }

    #[test]
    fn commands_are_quoted_and_cut() {
        let fields = fields(&container(State::Created), 0, false);
        assert_eq!(fields["Command"], "\"sh -c echo \\\"hello\\\";…\"");
        assert_eq!(fields["ID"], "c0ffeec0ffee");
        assert_eq!(fields["Labels"], "a=1");
        assert_eq!(command(&["a\u{1b}b".into()], true), "\"a\\x1bb\"");
    }

    #[test]
    fn filters_select() {
        let container = container(State::Running);
        let matches = |text: &str| Filter::parse(text).expect(text).matches(&container);
        for text in [
            "name=we",
            "name=^/web$",
            "id=c0ff",
            "label=a",
            "label=a=1",
            "status=running",
            "ancestor=busybox",
            "ancestor=abcd",
        ] {
            assert!(matches(text), "{text}");
        }
        for text in [
            "name=^we$",
            "id=d",
            "label=b",
            "label=a=2",
            "status=exited",
            "exited=0",
            "ancestor=ab",
        ] {
            assert!(!matches(text), "{text}");
        }
        for text in ["name", "size=1", "exited=x"] {
            assert!(Filter::parse(text).is_err(), "{text}");
        }
    }
}
