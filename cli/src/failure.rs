//! A command that failed: what to say, and the exit code.

use std::{error::Error, io::Write, process::ExitCode};

use caisson_shim::{client::ClientError, kind::ErrorKind};

use crate::format::inert::inert_lines;

/// Docker's exit codes of `run` and its like.
pub const CAISSON_FAILED: u8 = 125;
pub const NOT_EXECUTABLE: u8 = 126;
pub const NOT_FOUND: u8 = 127;
/// Ended by Ctrl-C.
pub const INTERRUPTED: u8 = 130;
/// What a program that writes to a closed pipe ends with.
pub const BROKEN_PIPE: u8 = 141;

pub type CommandResult = Result<ExitCode, Failure>;

/// A failed command. Anything that is an error becomes one with exit code 1.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    /// `None` if nothing is to be said.
    error: Option<anyhow::Error>,
    /// The command whose help may answer the question.
    help: Option<&'static str>,
}

impl<E: Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::from_anyhow(error.into())
    }
}

impl Failure {
    pub fn from_anyhow(error: anyhow::Error) -> Self {
        Self { code: 1, error: Some(error), help: None }
    }

    /// With these words as the error.
    pub fn message(text: impl Into<String>) -> Self {
        Self::from_anyhow(anyhow::Error::msg(text.into()))
    }

    /// Ends with `code` and no words.
    pub fn quiet(code: u8) -> Self {
        Self { code, error: None, help: None }
    }

    pub fn with_code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// As `run` fails: the command's own codes if they apply, 125 otherwise, and a hint at
    /// the help.
    pub fn of_run(mut self, help: &'static str) -> Self {
        if self.error.is_some() {
            self.code =
                self.error.as_ref().map_or(CAISSON_FAILED, |error| run_code(error.as_ref()));
            self.help = Some(help);
        }
        self
    }

    /// As `exec` fails: the command's own codes if they apply, 1 otherwise.
    pub fn of_exec(mut self) -> Self {
        let code = self.error.as_ref().map(|error| run_code(error.as_ref()));
        if let Some(code @ (NOT_EXECUTABLE | NOT_FOUND)) = code {
            self.code = code;
        }
        self
    }

    /// Whether a `T` in the chain of causes satisfies `is`.
    pub fn is<T: Error + 'static>(&self, is: impl Fn(&T) -> bool) -> bool {
        let error = self.error.as_ref().map(|error| causes(error.as_ref()));
        error.into_iter().flatten().filter_map(|cause| cause.downcast_ref()).any(is)
    }

    /// Says it on standard error; the exit code.
    pub fn report(self) -> ExitCode {
        if let Some(error) = &self.error {
            if is_broken_pipe(error.as_ref()) {
                return ExitCode::from(BROKEN_PIPE);
            }
            let mut text = format!("caisson: {}\n", words(error.as_ref()));
            if let Some(command) = self.help {
                text.push_str(&format!("\nRun '{command} --help' for more information\n"));
            }
            // Where standard error is closed nobody listens.
            let _ = std::io::stderr().write_all(inert_lines(&text).as_bytes());
        }
        ExitCode::from(self.code)
    }

    /// The words of the failure, without the program's name.
    pub fn text(&self) -> String {
        self.error.as_ref().map(|error| words(error.as_ref())).unwrap_or_default()
    }
}

/// The exit code of `run` and `exec` for an error.
pub fn run_code(error: &(dyn Error + 'static)) -> u8 {
    let shim = causes(error).find_map(|cause| cause.downcast_ref::<ClientError>());
    match shim.map(ClientError::kind) {
        Some(ErrorKind::CommandNotFound) => NOT_FOUND,
        Some(ErrorKind::CommandNotExecutable) => NOT_EXECUTABLE,
        _ => CAISSON_FAILED,
    }
}

fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    causes(error)
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// The error and its causes, each once.
pub fn words(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for cause in causes(error) {
        let words = cause.to_string();
        if text.is_empty() {
            text = words;
        } else if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
    }
    text
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(kind: ErrorKind) -> Failure {
        Failure::from(ClientError::Refused { kind, message: "no such file".into() })
    }

    #[test]
    fn run_exits_as_dockers_does() {
        let cases = [
            (refused(ErrorKind::CommandNotFound), NOT_FOUND),
            (refused(ErrorKind::CommandNotExecutable), NOT_EXECUTABLE),
            (refused(ErrorKind::BootFailed), CAISSON_FAILED),
            (Failure::message("x"), CAISSON_FAILED),
            (Failure::quiet(INTERRUPTED), INTERRUPTED),
        ];
        for (failure, code) in cases {
            assert_eq!(failure.of_run("caisson run").code, code);
        }
        assert_eq!(Failure::message("x").code, 1);
    }

    #[test]
    fn causes_are_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("start it")]
        struct Outer(#[source] ClientError);
        let inner = ClientError::Refused { kind: ErrorKind::Internal, message: "it broke".into() };
        assert_eq!(Failure::from(Outer(inner)).text(), "start it: it broke");
        let transparent = anyhow::anyhow!("same").context("same");
        assert_eq!(words(transparent.as_ref()), "same");
    }
}
