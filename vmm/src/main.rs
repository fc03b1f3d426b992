//! `caisson-vmm`: one microVM, described by a file that the parent passes on.

use std::{
    env,
    ffi::OsString,
    io::{self, Write},
    process::ExitCode,
};

use caisson_vmm::{
    boot_timer::{BootTimer, Stage},
    log,
    run::{self, EXIT_CONFIG},
    seccomp::Filtering,
    spec::Files,
};

const HELP: &str = "\
Builds and runs one microVM. Started by containerd-shim-caisson-v2.

Usage: caisson-vmm --config-fd N

Options:
      --config-fd N  An inherited file descriptor: the VM's config as JSON
  -V, --version      Print the version
  -h, --help         Print this help

Exit codes: 0 the VM has ended, 1 it could not be built or failed, 2 the config or
the command line is invalid; killed by SIGSYS: a forbidden system call.";

fn main() -> ExitCode {
    let timer = BootTimer::default();
    timer.stamp(Stage::Main);
    share_one_heap();
    match parse(env::args_os().skip(1)) {
        Ok(Command::Run { config_fd, filtering }) => {
            // SAFETY: nothing has opened a file yet, so nothing owns an inherited one.
            let files = unsafe { Files::inherited() };
            let code = run::run(config_fd, files, filtering, timer);
            // Without tearing down: the kernel does it faster, and nothing is unsaved.
            std::process::exit(code.into())
        }
        Ok(Command::Version) => print(concat!("caisson-vmm ", env!("CARGO_PKG_VERSION"))),
        Ok(Command::Help) => print(HELP),
        Err(message) => {
            log::line(format_args!("{message}; see caisson-vmm --help"));
            return ExitCode::from(EXIT_CONFIG);
        }
    }
    ExitCode::SUCCESS
}

/// The threads allocate little and seldom: a heap for each would only cost memory.
fn share_one_heap() {
    // SAFETY: sets a number in the allocator, before there are other threads. A refusal
    // changes nothing.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// A reader that has seen enough is no error.
fn print(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}

#[derive(Debug, PartialEq, Eq)]
enum Command {
    Run { config_fd: i32, filtering: Filtering },
    Version,
    Help,
}

/// A few options, by hand: a parser's library would be a fifth of the program.
fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Command, String> {
    let arguments: Vec<_> = arguments.map(|word| word.to_string_lossy().into_owned()).collect();
    let mut words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // Not in the help: for measuring what the filters cost, and refused with a jail.
    let filtering = match words.last() {
        Some(&"--no-seccomp") => Filtering::Off,
        _ => Filtering::On,
    };
    words.truncate(words.len() - usize::from(filtering == Filtering::Off));
    let number = match words[..] {
        ["-h" | "--help"] => return Ok(Command::Help),
        ["-V" | "--version"] => return Ok(Command::Version),
        ["--config-fd", number] => number,
        [word] if word.starts_with("--config-fd=") => &word["--config-fd=".len()..],
        [] => return Err("--config-fd is missing".to_owned()),
        [word, ..] => return Err(format!("unexpected arguments from {word:?}")),
    };
    match number.parse() {
        // 0 to 2 are the standard streams, which std may use at any time.
        Ok(config_fd) if config_fd > 2 => Ok(Command::Run { config_fd, filtering }),
        _ => Err(format!("--config-fd {number:?} is no file descriptor above 2")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_options_are_those_of_the_help() {
        let run = |config_fd, filtering| Ok(Command::Run { config_fd, filtering });
        assert_eq!(parsed("--config-fd 3"), run(3, Filtering::On));
        assert_eq!(parsed("--config-fd=17"), run(17, Filtering::On));
        assert_eq!(parsed("--config-fd 3 --no-seccomp"), run(3, Filtering::Off));
        assert_eq!(parsed("--version"), Ok(Command::Version));
        assert_eq!(parsed("-h"), Ok(Command::Help));
    }

    #[test]
    fn everything_else_is_refused() {
        for line in [
            "",
            "--config-fd",
            "--config-fd x",
            "--config-fd -1",
            "--config-fd 0",
            "--config-fd 4294967299",
            "--config-fd 3 4",
            "--no-seccomp",
            "--no-seccomp --config-fd 3",
            "--config-fd 3 --no-seccomp --no-seccomp",
            "run",
            "--config-fd=",
        ] {
            assert!(parsed(line).is_err(), "{line:?}");
        }
    }
}
