//! The measurements of a soak, side by side.

use std::fmt;

use super::Measured;

/// As many columns as a terminal shows: the first and the latest.
const MAX_COLUMNS: usize = 7;

pub(super) struct Table {
    columns: Vec<(String, Measured)>,
}

impl Table {
    pub(super) fn new(baseline: &Measured) -> Self {
        Self { columns: vec![("begin".to_owned(), baseline.clone())] }
    }

    /// Adds and prints what has changed.
    pub(super) fn add(&mut self, round: u64, measured: &Measured) {
        let growth = measured.growth(&self.columns[0].1);
        let verdict = if growth.is_empty() { "flat".to_owned() } else { growth.join("; ") };
        println!("round {round}: {verdict}");
        self.columns.push((round.to_string(), measured.clone()));
        if self.columns.len() > MAX_COLUMNS {
            self.columns.remove(1);
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:36}", "after round")?;
        for (head, _) in &self.columns {
            write!(formatter, "{head:>10}")?;
        }
        for name in self.columns[0].1.0.keys() {
            write!(formatter, "\n{name:36}")?;
            for (_, measured) in &self.columns {
                write!(formatter, "{:>10}", measured.0.get(name).copied().unwrap_or(0))?;
            }
        }
        writeln!(formatter)
    }
}
