//! `top`: the processes of a container.

mod columns;

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::ExitCode,
};

use caisson_agent_protocol::{Tool, tool::ProcessEntry};
use clap::Args;

use self::columns::{Column, columns};
use super::tool::run_tool;
use crate::{
    engine::{Engine, EngineError},
    failure::{CommandResult, Failure},
    format::{inert::inert, units},
    globals::Globals,
    records::State,
};

/// A process's line: its texts are cut by the guest, and JSON may escape every character.
const MAX_LINE_BYTES: u64 = 64 << 10;
/// As many processes as a kernel has by default.
const MAX_PROCESSES: usize = 32_768;
/// As docker's columns are laid out.
const COLUMN_CHARS: usize = 20;
const COLUMN_GAP: usize = 3;

#[derive(Args, Clone, Debug)]
pub struct TopArgs {
    #[arg(
        value_name = "CONTAINER",
        required = true,
        num_args = 1..,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        hide = true
    )]
    pub words: Vec<String>,
}

pub(super) fn top(globals: &Globals, args: &TopArgs) -> CommandResult {
    let [name, options @ ..] = args.words.as_slice() else {
        return Err(Failure::message("missing argument: CONTAINER"));
    };
    let columns = columns(options)?;
    let engine = Engine::open(globals)?;
    let container = engine.records.find(name)?;
    if container.state != State::Running {
        return Err(EngineError::NotRunning { name: container.name }.into());
    }
    let entries = run_tool(&engine, &container, &Tool::Top, None, |output| read(output))?;
    write(&columns, &entries, std::io::stdout())?;
    Ok(ExitCode::SUCCESS)
}

/// What the guest lists.
fn read(output: &mut dyn Read) -> Result<Vec<ProcessEntry>, Failure> {
    let unreadable = || Failure::message("the guest's list of processes cannot be read");
    let mut output = BufReader::new(output);
    let mut entries = Vec::new();
    loop {
        let mut line = Vec::new();
        output.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(entries);
        }
        if entries.len() >= MAX_PROCESSES {
            return Err(unreadable());
        }
        entries.push(serde_json::from_slice(&line).map_err(|_| unreadable())?);
    }
}

fn write(columns: &[Column], entries: &[ProcessEntry], mut to: impl Write) -> Result<(), Failure> {
    let now = units::now();
    let mut rows = vec![columns.iter().map(|column| column.heading.to_owned()).collect()];
    rows.extend(entries.iter().map(|entry| {
        let cell = |column: &Column| inert(&(column.cell)(entry, now)).into_owned();
        columns.iter().map(cell).collect::<Vec<String>>()
    }));
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let widest = cells.map(|cell| cell.chars().count() + COLUMN_GAP).max().unwrap_or(0);
        widest.max(COLUMN_CHARS)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    for row in &rows {
        let mut line = String::new();
        for (cell, &width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}"));
        }
        writeln!(to, "{}", line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> ProcessEntry {
        ProcessEntry {
            pid: 42,
            ppid: 1,
            user: "root".into(),
            tty: "?".into(),
            cpu_centis: 6_175,
            age_centis: 12_350,
            args: "sleep \x1b[2J1000".into(),
            ..ProcessEntry::default()
        }
    }

    #[test]
    fn a_table_has_dockers_layout_and_is_inert() {
        let columns = columns(&["-o".to_owned(), "pid,user,time,cmd".to_owned()]).unwrap();
        let mut text = Vec::new();
        write(&columns, &[entry()], &mut text).unwrap();
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "PID                 USER                TIME                CMD\n\
             42                  root                00:01:01            sleep \\x1b[2J1000\n"
        );
    }

    #[test]
    fn what_is_no_list_of_processes_is_refused() {
        let mut line = serde_json::to_vec(&entry()).unwrap();
        line.push(b'\n');
        assert_eq!(read(&mut line.as_slice()).unwrap(), [entry()]);
        for nonsense in [&b"{}\n"[..], b"[", &[b' '; 70_000]] {
            read(&mut &nonsense[..]).unwrap_err();
        }
    }
}
