//! The command line: what is asked for, or what to answer at once.

use std::{ffi::OsString, io::Write, process::ExitCode};

use clap::{
    CommandFactory, FromArgMatches, Parser,
    error::{ContextKind, ContextValue, ErrorKind},
};

use crate::{
    commands::Command, failure::CAISSON_FAILED, format::inert::inert_lines, globals::Globals, help,
};

/// Containers, each in its own microVM
#[derive(Parser, Debug)]
#[command(name = "caisson", override_usage = "caisson [OPTIONS] COMMAND")]
pub struct Cli {
    #[command(flatten)]
    pub globals: Globals,

    /// Print version information and quit
    #[arg(short, long)]
    pub version: bool,

    #[command(subcommand)]
    pub command: Option<Command>,
}

/// The definition of the command line.
pub fn definition() -> clap::Command {
    help::docker_like(Cli::command())
}

/// Parses the command line; help and mistakes are answered here, with the exit code.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, ExitCode> {
    let args: Vec<OsString> = args.into_iter().collect();
    let matches = definition().try_get_matches_from(&args);
    match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) if cli.command.is_none() && !cli.version => {
            print(&help::with_help(definition()).render_help().to_string());
            Err(ExitCode::SUCCESS)
        }
        Ok(cli) => Ok(cli),
        Err(error) => Err(answer(&error, &args)),
    }
}

fn answer(error: &clap::Error, args: &[OsString]) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        // The help texts are only made when they are asked for.
        if let Err(with_help) = help::with_help(definition()).try_get_matches_from(args) {
            print(&with_help.to_string());
        }
        return ExitCode::SUCCESS;
    }
    let (command, path) = command_of(args);
    let usage = help::usage(&command, &path);
    let text = format!(
        "caisson: {}\n\nUsage:  {usage}\n\nRun '{path} --help' for more information\n",
        mistake(error)
    );
    let _ = std::io::stderr().write_all(inert_lines(&text).as_bytes());
    ExitCode::from(CAISSON_FAILED)
}

/// Docker's words for what is wrong.
fn mistake(error: &clap::Error) -> String {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(" "),
        _ => String::new(),
    };
    let argument = text(ContextKind::InvalidArg);
    let flag = argument.split(' ').next().unwrap_or_default();
    match error.kind() {
        ErrorKind::UnknownArgument if argument.starts_with("--") => format!("unknown flag: {flag}"),
        ErrorKind::UnknownArgument if argument.starts_with('-') => {
            format!("unknown shorthand flag: {flag}")
        }
        ErrorKind::UnknownArgument => format!("unexpected argument: {argument}"),
        ErrorKind::InvalidSubcommand if later(&text(ContextKind::InvalidSubcommand)).is_some() => {
            let name = text(ContextKind::InvalidSubcommand);
            format!("caisson {name}: {}", later(&name).unwrap_or_default())
        }
        ErrorKind::InvalidSubcommand => {
            let near = text(ContextKind::SuggestedSubcommand);
            let hint =
                if near.is_empty() { String::new() } else { format!("; did you mean {near}?") };
            format!("unknown command: caisson {}{hint}", text(ContextKind::InvalidSubcommand))
        }
        ErrorKind::MissingRequiredArgument => {
            format!("missing argument: {}", argument.trim_matches(['<', '>', '.']))
        }
        ErrorKind::InvalidValue if text(ContextKind::InvalidValue).is_empty() => {
            format!("flag needs an argument: {flag}")
        }
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            let cause = std::error::Error::source(error).map(ToString::to_string);
            let valid = text(ContextKind::ValidValue);
            let why = cause.or((!valid.is_empty()).then(|| format!("there are {valid}")));
            let why = why.map(|why| format!(": {why}")).unwrap_or_default();
            format!("invalid argument {:?} for {flag}{why}", text(ContextKind::InvalidValue))
        }
        _ => {
            let rendered = error.to_string();
            let first = rendered.lines().next().unwrap_or_default();
            first.strip_prefix("error: ").unwrap_or(first).to_owned()
        }
    }
}

/// What to say of Docker's commands that this version does not have.
fn later(command: &str) -> Option<&'static str> {
    Some(match command {
        "build" | "buildx" | "builder" => {
            "building images is not part of this version; `caisson load` takes what others build"
        }
        "network" | "port" => {
            "there is one network, `run --network bridge`; `caisson ps` shows what `-p` publishes"
        }
        "compose" | "swarm" | "service" | "stack" | "node" => "it is not part of this version",
        _ => return None,
    })
}

/// The innermost command that the arguments name, for its usage.
fn command_of(args: &[OsString]) -> (clap::Command, String) {
    let mut command = definition();
    let mut path = command.get_name().to_owned();
    for arg in args.iter().skip(1) {
        let Some(sub) = arg.to_str().and_then(|arg| command.find_subcommand(arg)).cloned() else {
            continue;
        };
        path = format!("{path} {}", sub.get_name());
        command = sub;
        if !command.has_subcommands() {
            break;
        }
    }
    (command, path)
}

fn print(text: &str) {
    // A pager that was quit has seen enough.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistake_of(args: &[&str]) -> String {
        let error = definition().try_get_matches_from(args).expect_err("a mistake");
        mistake(&error)
    }

    #[test]
    fn the_definition_is_consistent() {
        definition().debug_assert();
        help::with_help(definition()).debug_assert();
    }

    #[test]
    fn mistakes_are_told_as_docker_tells_them() {
        let cases = [
            (&["caisson", "run", "--nope", "x"][..], "unknown flag: --nope"),
            (&["caisson", "run", "-Z", "x"], "unknown shorthand flag: -Z"),
            (&["caisson", "rum"], "unknown command: caisson rum; did you mean run?"),
            (
                &["caisson", "network", "ls"],
                "caisson network: there is one network, `run --network bridge`; `caisson ps` shows what `-p` publishes",
            ),
            (&["caisson", "run", "--name"], "flag needs an argument: --name"),
            (&["caisson", "--accel", "hvf", "ps"], "invalid argument \"hvf\" for --accel"),
            (&["caisson", "run"], "missing argument: IMAGE"),
        ];
        for (args, expected) in cases {
            let text = mistake_of(args);
            assert!(text.starts_with(expected), "{args:?}: {text}");
        }
    }

    #[test]
    fn what_follows_the_image_is_the_commands() {
        let args = ["caisson", "run", "--rm", "-it", "busybox", "sh", "-e", "--rm=x", "--", "-p"];
        let matches = definition().try_get_matches_from(args).expect("valid");
        let cli = Cli::from_arg_matches(&matches).expect("valid");
        let Some(Command::Run(run)) = cli.command else { panic!("run") };
        assert_eq!(run.words, ["busybox", "sh", "-e", "--rm=x", "--", "-p"]);
        assert!(run.flags.rm && run.flags.tty && run.flags.interactive);
    }
}
