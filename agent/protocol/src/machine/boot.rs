//! What the machine's init is told on the kernel's command line.

use std::{
    ffi::OsString,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

/// The host's directories, as they shall be found in the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootArguments {
    /// `--root`: from the machine's own disk, kept between its starts.
    pub root: PathBuf,
    /// `--state`: empty at each start.
    pub state: PathBuf,
    /// The directory of `<release>/` with the modules of the machine's kernel.
    pub modules: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum BootArgumentError {
    #[error("the kernel's command line lacks {0}=")]
    Missing(&'static str),
    #[error("{name}={value} on the kernel's command line is no absolute path")]
    Malformed { name: &'static str, value: String },
}

const ROOT: &str = "caisson.root";
const STATE: &str = "caisson.state";
const MODULES: &str = "caisson.modules";

impl BootArguments {
    /// As words of the kernel's command line; bytes with a meaning there become `%xx`.
    pub fn to_command_line(&self) -> String {
        [(ROOT, &self.root), (STATE, &self.state), (MODULES, &self.modules)]
            .map(|(name, path)| format!("{name}={}", escape(path)))
            .join(" ")
    }

    pub fn parse(command_line: &str) -> Result<Self, BootArgumentError> {
        let path = |name: &'static str| {
            let value = command_line
                .split_ascii_whitespace()
                .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
                .ok_or(BootArgumentError::Missing(name))?;
            unescape(value)
                .filter(|path| path.is_absolute())
                .ok_or_else(|| BootArgumentError::Malformed { name, value: value.into() })
        };
        Ok(Self { root: path(ROOT)?, state: path(STATE)?, modules: path(MODULES)? })
    }
}

fn escape(path: &Path) -> String {
    let mut text = String::new();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' => {
                text.push(char::from(*byte));
            }
            other => text.push_str(&format!("%{other:02x}")),
        }
    }
    text
}

fn unescape(text: &str) -> Option<PathBuf> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'%' {
            let (digits, after) = rest.split_first_chunk::<2>()?;
            let digits = std::str::from_utf8(digits).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = after;
        } else {
            bytes.push(byte);
        }
    }
    Some(OsString::from_vec(bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_path_survives_the_command_line() {
        let arguments = BootArguments {
            root: "/var/lib/my caisson%20,\"x\"".into(),
            state: OsString::from_vec(b"/run/\xff\n".to_vec()).into(),
            modules: "/usr/lib/caisson".into(),
        };
        let line = format!("quiet {} panic=1", arguments.to_command_line());
        assert_eq!(BootArguments::parse(&line).unwrap(), arguments);
    }

    #[test]
    fn a_missing_or_relative_path_is_refused() {
        assert!(matches!(BootArguments::parse("quiet"), Err(BootArgumentError::Missing(ROOT))));
        let line = "caisson.root=/r caisson.state=s caisson.modules=/m";
        assert!(matches!(
            BootArguments::parse(line),
            Err(BootArgumentError::Malformed { name: STATE, .. })
        ));
        let cut = "caisson.root=/r%4 caisson.state=/s caisson.modules=/m";
        assert!(BootArguments::parse(cut).is_err());
    }
}
