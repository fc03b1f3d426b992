//! The names of a log's files: `log` is written, `log.1` is older, `log.2` older still.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The older file of this number.
pub fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// The files that are there, oldest first. Numbers may be missing.
pub fn oldest_first(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut numbers = Vec::new();
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(Vec::new());
    };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?.file_name();
        let rest = entry.as_encoded_bytes().strip_prefix(name.as_encoded_bytes());
        numbers.extend(rest.and_then(number));
    }
    numbers.sort_unstable_by(|a, b| b.cmp(a));
    Ok(numbers
        .into_iter()
        .map(|number| if number == 0 { path.to_owned() } else { numbered(path, number) })
        .collect())
}

/// What follows the log's name: nothing is 0, `.7` is 7.
fn number(suffix: &[u8]) -> Option<u32> {
    if suffix.is_empty() {
        return Some(0);
    }
    let digits = std::str::from_utf8(suffix).ok()?.strip_prefix('.')?;
    let number: u32 = digits.parse().ok()?;
    // Only as it is written.
    (number > 0 && number.to_string() == digits).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_the_log_count() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a-json.log");
        assert!(oldest_first(&path).unwrap().is_empty());
        for name in ["", ".1", ".10", ".2", ".01", ".0", ".x", ".1.gz", "2", ".-1"] {
            fs::write(directory.path().join(format!("a-json.log{name}")), "").unwrap();
        }
        let expected: Vec<_> =
            [10, 2, 1].into_iter().map(|n| numbered(&path, n)).chain([path.clone()]).collect();
        assert_eq!(oldest_first(&path).unwrap(), expected);
        assert!(oldest_first(Path::new("/nonexistent/log")).unwrap().is_empty());
    }
}
