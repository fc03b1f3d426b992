//! A process of this host, told apart from a later one with its number.

use std::{fs, io};

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostProcess {
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`, in clock ticks since boot.
    pub start_time: u64,
}

impl HostProcess {
    /// The process that has this number now, also one that has ended and is not waited for.
    pub fn of(pid: u32) -> io::Result<Self> {
        Self::with_state(pid).map(|(process, _)| process)
    }

    /// Whether it has not ended.
    pub fn lives(self) -> bool {
        Self::with_state(self.pid)
            .is_ok_and(|(process, state)| process == self && !matches!(state, 'Z' | 'X'))
    }

    fn with_state(pid: u32) -> io::Result<(Self, char)> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        parse(pid, &stat).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no start time"))
    }
}

/// `/proc/<pid>/stat` (proc(5)).
fn parse(pid: u32, stat: &str) -> Option<(HostProcess, char)> {
    // The name, in parentheses, may hold anything; field 3 follows the last of them.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?.chars().next()?;
    let start_time = fields.nth(22 - 4)?.parse().ok()?;
    Some((HostProcess { pid, start_time }, state))
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
        let other = HostProcess { start_time: process.start_time + 1, ..process };
        assert!(!other.lives());
        child.kill().unwrap();
        // Not yet waited for, and gone all the same.
        while process.lives() {
            std::thread::yield_now();
        }
        assert_eq!(HostProcess::of(child.id()).unwrap(), process);
        child.wait().unwrap();
        assert!(HostProcess::of(u32::MAX).is_err());
    }

    #[test]
    fn a_name_may_hold_anything() {
        let fields = "S 1 1 1 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1";
        let expected = HostProcess { pid: 7, start_time: 4711 };
        for name in ["sh", "a) R 1", ") (", "ä b"] {
            assert_eq!(parse(7, &format!("7 ({name}) {fields}")), Some((expected, 'S')), "{name}");
        }
        assert_eq!(parse(7, "7 (sh) S 1"), None);
    }
}
