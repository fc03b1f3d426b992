//! `diff`: what a container's files have beyond its image's.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::ExitCode,
};

use caisson_agent_protocol::Tool;
use clap::Args;

use super::tool::run_tool;
use crate::{
    engine::Engine,
    failure::{CommandResult, Failure},
    format::inert::inert,
    globals::Globals,
};

/// The letter, a space, and the longest path.
const MAX_LINE_BYTES: u64 = 2 + 4096;

#[derive(Args, Clone, Debug)]
pub struct DiffArgs {
    #[arg(value_name = "CONTAINER", required = true, hide = true)]
    pub container: String,
}

pub(super) fn diff(globals: &Globals, args: &DiffArgs) -> CommandResult {
    let engine = Engine::open(globals)?;
    let container = engine.records.find(&args.container)?;
    run_tool(&engine, &container, &Tool::Diff, None, |output| show(output, std::io::stdout()))?;
    Ok(ExitCode::SUCCESS)
}

/// Shows the guest's lines, each of which ends with a NUL.
fn show(output: &mut dyn Read, mut to: impl Write) -> Result<(), Failure> {
    let mut output = BufReader::new(output);
    loop {
        let mut line = Vec::new();
        output.by_ref().take(MAX_LINE_BYTES).read_until(0, &mut line)?;
        if line.is_empty() {
            return Ok(());
        }
        let is_whole = line.pop() == Some(0);
        let is_difference = matches!(line.as_slice(), [b'A' | b'C' | b'D', b' ', b'/', ..]);
        if !is_whole || !is_difference {
            return Err(Failure::message("the guest's list of differences cannot be read"));
        }
        writeln!(to, "{}", inert(&String::from_utf8_lossy(&line)))?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_shown_inert_and_nonsense_is_refused() {
        let mut shown = Vec::new();
        show(&mut &b"C /etc\0A /etc/\x1b[2J\n\0"[..], &mut shown).unwrap();
        assert_eq!(String::from_utf8(shown).unwrap(), "C /etc\nA /etc/\\x1b[2J\\x0a\n");
        for nonsense in [&b"A /x"[..], b"X /x\0", b"A x\0", b"\0", &[b'A'; 10_000]] {
            show(&mut &nonsense[..], &mut Vec::new()).unwrap_err();
        }
    }
}
