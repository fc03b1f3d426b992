//! Help in Docker's shape, from the same definitions that parse the command line.

use clap::{Arg, ArgAction, Command, builder::ValueRange};

/// Where no terminal says otherwise.
const DEFAULT_WIDTH: usize = 80;

/// Commands under a heading of their own; all others are just "Commands".
const GROUPS: [(&str, &[&str]); 2] = [
    (
        "Common Commands",
        &[
            "run", "exec", "ps", "pull", "push", "images", "login", "logout", "search", "load",
            "import", "version", "info", "doctor",
        ],
    ),
    ("Management Commands", &["container", "image", "machine", "system", "volume"]),
];

/// Makes a derived command parse as Docker's do: flags may repeat, a value may begin with
/// a dash, switches take `=false`, and `--help` has no short form.
pub fn docker_like(command: Command) -> Command {
    let command = command
        .disable_help_flag(true)
        .disable_help_subcommand(true)
        .disable_version_flag(true)
        .args_override_self(true)
        .mut_args(like_pflag)
        .arg(Arg::new("help").long("help").action(ArgAction::Help).help("Print usage").hide(true));
    command.mut_subcommands(docker_like)
}

fn like_pflag(arg: Arg) -> Arg {
    if arg.is_positional() {
        return arg;
    }
    match arg.get_action() {
        ArgAction::SetTrue => arg
            .action(ArgAction::Set)
            .num_args(ValueRange::new(0..=1))
            .require_equals(true)
            .default_missing_value("true")
            .default_value("false")
            .value_parser(clap::value_parser!(bool))
            .hide_default_value(true)
            .hide_possible_values(true)
            .value_name(SWITCH),
        ArgAction::Set | ArgAction::Append => arg.allow_hyphen_values(true),
        _ => arg,
    }
}

/// Marks a switch: it takes a value but is shown without.
const SWITCH: &str = "bool";

/// Gives every command its help text.
pub fn with_help(command: Command) -> Command {
    let width = crate::attach::tty::size().map_or(DEFAULT_WIDTH, |(columns, _)| columns.into());
    add_help(command, "", width.clamp(40, 200))
}

fn add_help(command: Command, path: &str, width: usize) -> Command {
    let path = format!("{path} {}", command.get_name()).trim_start().to_owned();
    let text = render(&command, &path, width);
    command.override_help(text).mut_subcommands(|sub| add_help(sub, &path, width))
}

/// What follows "Usage:".
pub fn usage(command: &Command, path: &str) -> String {
    let usage = command.clone().render_usage().to_string();
    let usage = usage.strip_prefix("Usage: ").unwrap_or(&usage).trim().to_owned();
    // A subcommand's own idea of its usage lacks the commands before it.
    match usage.strip_prefix(command.get_name()) {
        Some(rest) if command.get_name() != path => format!("{path}{rest}"),
        _ => usage,
    }
}

fn render(command: &Command, path: &str, width: usize) -> String {
    let mut text = format!("Usage:  {}\n", usage(command, path));
    if let Some(about) = command.get_long_about().or(command.get_about()) {
        for paragraph in about.to_string().split("\n\n") {
            text.push_str(&format!("\n{}\n", wrap(paragraph, width).join("\n")));
        }
    }
    let is_top = command.get_name() == path;
    for (heading, commands) in grouped(command, is_top) {
        text.push_str(&format!("\n{heading}:\n{}", columns(&commands, 12, width)));
    }
    let options = options(command);
    if !options.is_empty() {
        let heading = if is_top { "Global Options" } else { "Options" };
        text.push_str(&format!("\n{heading}:\n{}", columns(&options, 0, width)));
    }
    if command.has_subcommands() {
        text.push_str(&format!(
            "\nRun '{path} COMMAND --help' for more information on a command.\n"
        ));
    }
    text
}

type Rows = Vec<(String, String)>;

fn grouped(command: &Command, is_top: bool) -> Vec<(&'static str, Rows)> {
    let row = |sub: &Command| {
        (
            format!("  {}", sub.get_name()),
            sub.get_about().map(ToString::to_string).unwrap_or_default(),
        )
    };
    let visible: Vec<&Command> =
        command.get_subcommands().filter(|sub| !sub.is_hide_set()).collect();
    let mut groups: Vec<(&'static str, Rows)> = Vec::new();
    let mut grouped: Vec<&str> = Vec::new();
    if is_top {
        for (heading, names) in GROUPS {
            let find = |name: &&str| visible.iter().find(|sub| sub.get_name() == *name);
            groups.push((heading, names.iter().filter_map(find).map(|sub| row(sub)).collect()));
            grouped.extend(names);
        }
    }
    let mut rest: Rows = visible
        .iter()
        .filter(|sub| !grouped.contains(&sub.get_name()))
        .map(|sub| row(sub))
        .collect();
    if is_top {
        rest.sort();
    }
    groups.push(("Commands", rest));
    groups.retain(|(_, rows)| !rows.is_empty());
    groups
}

/// `-e, --env list` and its text, by the alphabet.
fn options(command: &Command) -> Rows {
    let mut args: Vec<&Arg> =
        command.get_arguments().filter(|arg| !arg.is_positional() && !arg.is_hide_set()).collect();
    args.sort_by_key(|arg| arg.get_long().unwrap_or_default().to_owned());
    args.into_iter().map(|arg| (flag(arg), description(arg))).collect()
}

fn flag(arg: &Arg) -> String {
    let mut flag = match arg.get_short() {
        Some(short) => format!("  -{short}, "),
        None => "      ".to_owned(),
    };
    if let Some(long) = arg.get_long() {
        flag.push_str(&format!("--{long}"));
    }
    if let Some(name) = value_name(arg) {
        flag.push_str(&format!(" {name}"));
    }
    flag
}

fn value_name(arg: &Arg) -> Option<String> {
    if !arg.get_action().takes_values() {
        return None;
    }
    let name = arg.get_value_names().and_then(|names| names.first()).map(ToString::to_string);
    name.map(|name| name.to_lowercase()).filter(|name| name != SWITCH)
}

fn description(arg: &Arg) -> String {
    let mut text = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let defaults: Vec<_> =
        arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if !arg.is_hide_default_value_set() && !defaults.is_empty() {
        let shown = match value_name(arg).as_deref() {
            None | Some("int") => defaults.join(","),
            Some(_) => format!("{:?}", defaults.join(",")),
        };
        text.push_str(&format!(" (default {shown})"));
    }
    text
}

/// Two columns, the second wrapped beneath itself.
fn columns(rows: &Rows, min_width: usize, width: usize) -> String {
    let left = rows.iter().map(|(left, _)| left.chars().count()).max().unwrap_or(0);
    let left = left.max(min_width) + 3 - usize::from(min_width > 0);
    let right = width.saturating_sub(left).max(24);
    let mut text = String::new();
    for (name, description) in rows {
        let mut lines = wrap(description, right).into_iter();
        let first = lines.next().unwrap_or_default();
        text.push_str(format!("{name:<left$}{first}").trim_end());
        text.push('\n');
        for line in lines {
            text.push_str(&format!("{:<left$}{line}\n", ""));
        }
    }
    text
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Command {
        let sub = Command::new("run")
            .about("Run it")
            .override_usage("tool run [OPTIONS] IMAGE")
            .arg(Arg::new("env").short('e').long("env").value_name("list").help("Set a variable").action(ArgAction::Append))
            .arg(Arg::new("all").short('a').long("all").help("All of a long list of things that does not fit on one line of this terminal").action(ArgAction::SetTrue))
            .arg(Arg::new("size").long("size").value_name("int").default_value("5").help("Size"));
        docker_like(Command::new("tool").about("A tool").subcommand(sub))
    }

    #[test]
    fn help_has_dockers_shape() {
        let mut command = add_help(command(), "", 60);
        let run = command.find_subcommand_mut("run").expect("there");
        assert_eq!(
            run.render_help().to_string(),
            "Usage:  tool run [OPTIONS] IMAGE\n\nRun it\n\nOptions:\n\
             \x20 -a, --all        All of a long list of things that does\n\
             \x20                  not fit on one line of this terminal\n\
             \x20 -e, --env list   Set a variable\n\
             \x20     --size int   Size (default 5)\n"
        );
        let top = command.render_help().to_string();
        assert!(top.starts_with("Usage:  tool"), "{top}");
        assert!(top.contains("\nCommon Commands:\n  run         Run it\n"), "{top}");
    }

    #[test]
    fn switches_and_values_are_pflags() {
        let parse = |args: &[&str]| {
            let words = [&["tool", "run"], args].concat();
            let matches = command().try_get_matches_from(words)?;
            let run = matches.subcommand_matches("run").expect("run").clone();
            Ok::<_, clap::Error>((
                run.get_flag("all"),
                run.get_many::<String>("env").map(|values| values.cloned().collect::<Vec<_>>()),
            ))
        };
        assert_eq!(parse(&["-a", "-a", "--env", "-x"]).unwrap(), (true, Some(vec!["-x".into()])));
        assert!(!parse(&["--all=false"]).unwrap().0);
        assert!(parse(&["--all=true", "--size", "1", "--size", "2"]).unwrap().0);
        assert!(parse(&["--all=perhaps"]).is_err());
        assert!(parse(&["-h"]).is_err());
    }
}
