//! A process of the host that is not a child.

use std::fs;

use serde::{Deserialize, Serialize};

/// Named by its number and its start, as the number alone may come to mean another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HostProcess {
    pub pid: u32,
    /// `/proc/<pid>/stat`, field 22.
    pub start_ticks: u64,
}

impl HostProcess {
    /// `None` if there is none of this number.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in parentheses, may have blanks and parentheses of its own.
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_whitespace();
        let state = fields.next()?;
        // Field 3 is the state.
        let start_ticks = fields.nth(22 - 4)?.parse().ok()?;
        (!matches!(state, "Z" | "X")).then_some(Self { pid, start_ticks })
    }

    pub(crate) fn lives(self) -> bool {
        Self::of(self.pid) == Some(self)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_lives_until_it_has_ended() {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let process = HostProcess::of(child.id()).unwrap();
        assert!(process.lives());
        let other = HostProcess { start_ticks: process.start_ticks + 1, ..process };
        assert!(!other.lives());
        child.kill().unwrap();
        // Not yet waited for, and gone all the same.
        while process.lives() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert_eq!(HostProcess::of(u32::MAX), None);
    }
}
