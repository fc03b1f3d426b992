//! Holds `SPECIFICATION.md` and the table of compatibility to their word: every test they
//! name exists.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, bail};

use crate::workspace;

pub(crate) fn check() -> anyhow::Result<()> {
    let mut functions = BTreeSet::new();
    for directory in ["agent", "archive", "benches", "cli", "rootfs", "shim", "tests", "vmm"] {
        collect_functions(&workspace::root().join(directory), &mut functions)?;
    }
    for document in ["SPECIFICATION.md", "docs/compatibility.md"] {
        let path = workspace::root().join(document);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let missing: Vec<_> = promised(&text).filter(|name| !functions.contains(*name)).collect();
        if !missing.is_empty() {
            bail!("{document} names tests that do not exist: {}", missing.join(", "));
        }
    }
    Ok(())
}

/// The names in the last column of the tables.
fn promised(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")?.rsplit(" | ").next())
        .flat_map(|column| column.split('`').skip(1).step_by(2))
}

fn collect_functions(directory: &Path, functions: &mut BTreeSet<String>) -> anyhow::Result<()> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            collect_functions(&path, functions)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source =
                fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let names = source.split("fn ").skip(1).filter_map(|rest| rest.split('(').next());
            functions.extend(names.map(str::to_owned));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_between_backquotes_in_the_last_column() {
        let text = "| a `command` is quoted | `one`, `two` |\n|---|---|\nplain `three`";
        assert_eq!(promised(text).collect::<Vec<_>>(), ["one", "two"]);
    }
}
