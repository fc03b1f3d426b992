//! What a command did, and what a test says about it.

use std::{
    os::unix::process::ExitStatusExt,
    process::{Command, Output},
};

/// The end of a command. Every assertion shows all of it when it fails.
#[derive(Debug)]
pub struct Outcome {
    command: String,
    /// The exit code, or 128 + the signal that ended it, as a shell says.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    /// Standard output as it came.
    pub bytes: Vec<u8>,
}

impl Outcome {
    pub fn of(command: &Command, output: Output) -> Self {
        let status = output.status;
        Self {
            command: format!("{command:?}"),
            code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            bytes: output.stdout,
        }
    }

    #[track_caller]
    pub fn succeeded(self) -> Self {
        self.exited_with(0)
    }

    #[track_caller]
    pub fn exited_with(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}", self.report());
        self
    }

    /// Standard output is exactly this.
    #[track_caller]
    pub fn printed(self, expected: &str) -> Self {
        assert_eq!(self.stdout, expected, "{}", self.report());
        self
    }

    #[track_caller]
    pub fn printed_something_like(self, part: &str) -> Self {
        assert!(self.stdout.contains(part), "no {part:?} in standard output: {}", self.report());
        self
    }

    #[track_caller]
    pub fn complained_about(self, part: &str) -> Self {
        assert!(self.stderr.contains(part), "no {part:?} in standard error: {}", self.report());
        self
    }

    /// Standard error is empty, but for the machine's notice.
    #[track_caller]
    pub fn without_complaint(self) -> Self {
        let complaint = self.stderr.lines().any(|line| !line.contains("emulat"));
        assert!(!complaint, "{}", self.report());
        self
    }

    pub fn lines(&self) -> Vec<&str> {
        self.stdout.lines().collect()
    }

    fn report(&self) -> String {
        format!(
            "\n$ {}\nexit code {}\n--- stdout\n{}\n--- stderr\n{}\n---",
            self.command, self.code, self.stdout, self.stderr
        )
    }
}
