//! `completion`: scripts for shells.

use std::{io::Write, process::ExitCode};

use clap::{Args, ValueEnum};
use clap_complete::{Shell, generate};

use crate::{args, failure::CommandResult};

#[derive(Args, Clone, Debug)]
pub struct CompletionArgs {
    /// bash, fish or zsh
    #[arg(value_name = "SHELL")]
    pub shell: CompletionShell,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CompletionShell {
    Bash,
    Fish,
    Zsh,
}

pub(super) fn completion(args: &CompletionArgs) -> CommandResult {
    std::io::stdout().write_all(&script(args.shell))?;
    Ok(ExitCode::SUCCESS)
}

fn script(shell: CompletionShell) -> Vec<u8> {
    let shell = match shell {
        CompletionShell::Bash => Shell::Bash,
        CompletionShell::Fish => Shell::Fish,
        CompletionShell::Zsh => Shell::Zsh,
    };
    let mut definition = args::definition();
    let name = definition.get_name().to_owned();
    let mut script = Vec::new();
    generate(shell, &mut definition, name, &mut script);
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_gets_the_commands() {
        for shell in [CompletionShell::Bash, CompletionShell::Fish, CompletionShell::Zsh] {
            let script = String::from_utf8(script(shell)).expect("text");
            for word in ["caisson", "run", "entrypoint", "machine"] {
                assert!(script.contains(word), "{shell:?} lacks {word}");
            }
        }
    }
}
