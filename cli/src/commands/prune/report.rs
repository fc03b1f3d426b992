//! The question before a removal, and what has been removed.

use std::{
    io::{self, BufRead, Write},
    process::ExitCode,
};

use super::PruneError;
use crate::{
    commands::print_line,
    failure::{CommandResult, Failure},
    format::units,
};

/// Asks, unless `force`. No answer is a no.
pub(super) fn confirm(force: bool, what: &str) -> Result<(), Failure> {
    if force {
        return Ok(());
    }
    let mut output = io::stdout();
    write!(output, "WARNING! {what}\nAre you sure you want to continue? [y/N] ")?;
    output.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(PruneError::Answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        Ok(())
    } else {
        Err(PruneError::Declined.into())
    }
}

/// What has been removed, line by line as it happens, below a heading if there is anything.
pub(super) struct Deleted {
    heading: Option<&'static str>,
    /// Something stands above the heading.
    follows: bool,
}

impl Deleted {
    pub(super) fn new(heading: &'static str) -> Self {
        Self { heading: Some(heading), follows: false }
    }

    /// Goes on with what is of another kind.
    pub(super) fn begin(&mut self, heading: &'static str) {
        self.follows |= self.heading.is_none();
        self.heading = Some(heading);
    }

    pub(super) fn print(&mut self, line: &str) -> Result<(), Failure> {
        if let Some(heading) = self.heading.take() {
            if self.follows {
                print_line("")?;
            }
            print_line(heading)?;
        }
        print_line(line)
    }

    pub(super) fn reclaimed(self, bytes: u64) -> CommandResult {
        if self.heading.is_none() || self.follows {
            print_line("")?;
        }
        print_line(&format!("Total reclaimed space: {}", units::human_size(bytes)))?;
        Ok(ExitCode::SUCCESS)
    }
}
