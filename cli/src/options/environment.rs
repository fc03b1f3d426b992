//! Environment variables and labels: flags, files, and the merge with the image's.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// The longest environment or label file, in bytes.
const MAX_FILE_BYTES: u64 = 4 << 20;

#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    #[error("invalid environment variable: {0:?}")]
    Variable(String),
    #[error("open {path}")]
    Open { path: PathBuf, source: io::Error },
    #[error("{path} is longer than {MAX_FILE_BYTES} bytes")]
    TooLong { path: PathBuf },
    #[error("{path}, line {line}: not UTF-8")]
    Encoding { path: PathBuf, line: usize },
    #[error("poorly formatted environment: {path}, line {line}: {reason}")]
    Line { path: PathBuf, line: usize, reason: String },
    #[error("invalid label {0:?}: expected key=value")]
    Label(String),
}

/// The variables of `--env-file` files, then of `-e` flags. One without `=` takes the
/// caller's value, and stays bare, to take away an inherited one, if the caller has none
/// (files: is left out).
pub fn from_flags(
    files: &[PathBuf],
    flags: &[String],
    caller: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<String>, EnvironmentError> {
    let mut env = Vec::new();
    for path in files {
        for (line, text) in lines(path)? {
            env.extend(file_variable(path, line, &text, caller)?);
        }
    }
    for flag in flags {
        if flag.is_empty() || flag.starts_with('=') || flag.contains('\0') {
            return Err(EnvironmentError::Variable(flag.clone()));
        }
        env.push(match flag.contains('=') {
            true => flag.clone(),
            false => caller(flag).map_or(flag.clone(), |value| format!("{flag}={value}")),
        });
    }
    Ok(env)
}

/// Of these files and flags, the variables that take the caller's value. What is wrong
/// with the others is for [`from_flags`] to say.
pub fn taken_from_caller(
    files: &[PathBuf],
    flags: &[String],
    caller: &dyn Fn(&str) -> Option<String>,
) -> Vec<String> {
    let taken = RefCell::new(Vec::new());
    let note = |name: &str| {
        let value = caller(name)?;
        taken.borrow_mut().push(format!("{name}={value}"));
        Some(value)
    };
    let _ = from_flags(files, flags, &note);
    taken.into_inner()
}

fn file_variable(
    path: &Path,
    line: usize,
    text: &str,
    caller: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<String>, EnvironmentError> {
    let poor = |reason: String| EnvironmentError::Line { path: path.to_owned(), line, reason };
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    };
    let name = name.trim_start();
    if name.contains(char::is_whitespace) {
        return Err(poor(format!("variable {name:?} contains whitespaces")));
    }
    if name.is_empty() {
        return Err(poor(format!("no variable name on line {text:?}")));
    }
    Ok(match value {
        Some(value) => Some(format!("{name}={value}")),
        None => caller(name).map(|value| format!("{name}={value}")),
    })
}

/// The labels of `--label-file` files, then of `-l` flags; later ones win.
pub fn labels(
    files: &[PathBuf],
    flags: &[String],
) -> Result<BTreeMap<String, String>, EnvironmentError> {
    let mut labels = BTreeMap::new();
    let mut add = |text: &str| {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        if key.is_empty() {
            return Err(EnvironmentError::Label(text.to_owned()));
        }
        labels.insert(key.to_owned(), value.to_owned());
        Ok(())
    };
    for path in files {
        for (_, text) in lines(path)? {
            add(text.trim())?;
        }
    }
    flags.iter().try_for_each(|flag| add(flag))?;
    Ok(labels)
}

/// The user's variables, then those of the image that the user does not set (Docker's
/// order).
pub fn merge(user: Vec<String>, image: &[String]) -> Vec<String> {
    let taken: Vec<String> = user.iter().map(|variable| name_of(variable).to_owned()).collect();
    let mut merged = dedup(user);
    merged.extend(
        image
            .iter()
            // What has no value is not taken from the host, nor given to the process.
            .filter(|variable| variable.contains('=') && !name_of(variable).is_empty())
            .filter(|variable| !taken.iter().any(|name| name == name_of(variable)))
            .cloned(),
    );
    merged
}

/// `defaults` overridden by `env`; a bare name takes a variable away.
pub fn with_defaults(defaults: Vec<String>, env: &[String]) -> Vec<String> {
    let mut result = defaults;
    for variable in env {
        let position = result.iter().position(|other| name_of(other) == name_of(variable));
        match (variable.contains('='), position) {
            (true, Some(at)) => result[at] = variable.clone(),
            (true, None) => result.push(variable.clone()),
            (false, Some(at)) => drop(result.remove(at)),
            (false, None) => {}
        }
    }
    result
}

/// Of several with one name the last, in its place.
fn dedup(env: Vec<String>) -> Vec<String> {
    let mut result: Vec<String> = Vec::with_capacity(env.len());
    for variable in env {
        result.retain(|other| name_of(other) != name_of(&variable));
        result.push(variable);
    }
    result
}

fn name_of(variable: &str) -> &str {
    variable.split_once('=').map_or(variable, |(name, _)| name)
}

/// The lines of a file that are neither empty nor a comment, numbered from 1.
fn lines(path: &Path) -> Result<Vec<(usize, String)>, EnvironmentError> {
    let failed = |source| EnvironmentError::Open { path: path.to_owned(), source };
    let length = fs::metadata(path).map_err(failed)?.len();
    if length > MAX_FILE_BYTES {
        return Err(EnvironmentError::TooLong { path: path.to_owned() });
    }
    let bytes = fs::read(path).map_err(failed)?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let mut lines = Vec::new();
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let text = std::str::from_utf8(line)
            .map_err(|_| EnvironmentError::Encoding { path: path.to_owned(), line: index + 1 })?;
        let text = text.trim_start();
        if !text.is_empty() && !text.starts_with('#') {
            lines.push((index + 1, text.to_owned()));
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(name: &str) -> Option<String> {
        (name == "HOST").then(|| "from-host".to_owned())
    }

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    fn file(content: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        fs::write(file.path(), content).expect("written");
        file
    }

    #[test]
    fn flags_take_the_callers_value_only_when_bare() {
        let env = from_flags(&[], &strings(&["A=1", "HOST", "NONE", "E=", "B=x=y"]), &caller);
        assert_eq!(env.unwrap(), strings(&["A=1", "HOST=from-host", "NONE", "E=", "B=x=y"]));
        for bad in ["", "=x", "A=\0"] {
            assert!(from_flags(&[], &strings(&[bad]), &caller).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn files_have_comments_and_bare_names() {
        let file = file(b"\xef\xbb\xbf# comment\n\n  A=1 # kept\r\nHOST\nNONE\nB='q'\n");
        let env = from_flags(&[file.path().into()], &strings(&["A=2"]), &caller).unwrap();
        assert_eq!(env, strings(&["A=1 # kept", "HOST=from-host", "B='q'", "A=2"]));
        assert_eq!(
            merge(env, &strings(&["PATH=/bin", "A=0", "BARE"])),
            strings(&["HOST=from-host", "B='q'", "A=2", "PATH=/bin"])
        );
    }

    #[test]
    fn what_is_taken_from_the_caller_is_known_beforehand() {
        let file = file(b"A=1\nHOST\nNONE\n");
        let taken =
            |files: &[PathBuf], flags: &[&str]| taken_from_caller(files, &strings(flags), &caller);
        assert_eq!(taken(&[], &["HOST", "NONE", "B=2"]), strings(&["HOST=from-host"]));
        assert_eq!(taken(&[file.path().into()], &["B=2"]), strings(&["HOST=from-host"]));
        assert!(taken(&["/nonexistent".into()], &["=x"]).is_empty());
    }

    #[test]
    fn poor_files_are_refused_with_the_line() {
        for (content, expected) in [
            (&b"A B=1\n"[..], "contains whitespaces"),
            (b"OK=1\n=x\n", "line 2: no variable name"),
            (b"A=\xff\n", "not UTF-8"),
        ] {
            let file = file(content);
            let error = from_flags(&[file.path().into()], &[], &caller).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(from_flags(&["/nonexistent".into()], &[], &caller).is_err());
    }

    #[test]
    fn defaults_are_overridden_and_taken_away() {
        let env = with_defaults(
            strings(&["PATH=/default", "HOSTNAME=h", "TERM=xterm"]),
            &strings(&["PATH=/mine", "TERM", "X=1", "GONE"]),
        );
        assert_eq!(env, strings(&["PATH=/mine", "HOSTNAME=h", "X=1"]));
    }

    #[test]
    fn labels_need_a_key() {
        let labels = labels(&[], &strings(&["a=1", "b", "a=2=3"])).unwrap();
        assert_eq!(
            labels.into_iter().collect::<Vec<_>>(),
            [("a".into(), "2=3".into()), ("b".into(), String::new())]
        );
        assert!(super::labels(&[], &strings(&["=x"])).is_err());
    }
}
