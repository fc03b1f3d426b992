//! Columns with a heading, as docker prints them: padded, three spaces apart.

use std::io::{self, Write};

use super::inert::inert;

/// Rows under headings. Cells are shown inert.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new<S: Into<String>>(headings: impl IntoIterator<Item = S>) -> Self {
        Self { rows: vec![headings.into_iter().map(Into::into).collect()] }
    }

    pub fn row<S: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(|cell| inert(cell.as_ref()).into_owned()).collect());
    }

    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max()
        };
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:<width$}   "));
            }
            // The last column is not padded.
            writeln!(to, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_cells_are_inert() {
        let mut table = Table::new(["NAME", "STATUS"]);
        table.row(["a-long-name", "Up"]);
        table.row(["x\x1b[1m", "Exited"]);
        let mut text = Vec::new();
        table.write(&mut text).expect("memory");
        assert_eq!(
            String::from_utf8(text).expect("text"),
            "NAME          STATUS\na-long-name   Up\nx\\x1b[1m      Exited\n"
        );
    }
}
