//! The container's processes, from the agent's `/proc`.
//!
//! What a process says of itself (its name, its arguments) is the workload's, and cut. One
//! that ends while it is looked at is left out.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
};

use caisson_agent_protocol::tool::{MAX_COMMAND_BYTES, ProcessEntry};
use nix::{
    fcntl::{OFlag, open, openat},
    sys::stat::Mode,
};

use super::{ToolError, files::Warnings};
use crate::{
    error::{At, OsError},
    user,
};

/// Of the kernel's own files of a process.
const MAX_STAT_BYTES: u64 = 64 << 10;
/// The kernel reports times in hundredths of a second, whatever it counts in.
const PAGE_KIB: u64 = 4;

/// What is read later, when the container's `/etc/passwd` is at hand and the agent's `/proc`
/// is not.
pub(super) struct Sources {
    proc: OwnedFd,
    uptime_centis: u64,
    memory_kib: u64,
    pids: Vec<u32>,
}

impl Sources {
    /// In the agent's mount namespace.
    pub(super) fn open(pids: Vec<u32>) -> Result<Self, OsError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let proc = open("/proc", flags, Mode::empty()).at(|| "open /proc")?;
        let uptime = read_at(&proc, "uptime").at(|| "read /proc/uptime")?;
        let uptime = String::from_utf8_lossy(&uptime).into_owned();
        let uptime_centis = uptime.split_whitespace().next().and_then(centis).unwrap_or(0);
        let memory = read_at(&proc, "meminfo").at(|| "read /proc/meminfo")?;
        let memory_kib = memory_total(&String::from_utf8_lossy(&memory)).unwrap_or(0);
        Ok(Self { proc, uptime_centis, memory_kib, pids })
    }

    /// One line of JSON each. In the container's mount namespace.
    pub(super) fn list(&self, mut output: impl Write) -> Result<Warnings, ToolError> {
        let users = user::names().unwrap_or_default();
        for &pid in &self.pids {
            let Some(entry) = self.entry(pid, &users) else { continue };
            let line = serde_json::to_string(&entry).map_err(io::Error::from);
            line.and_then(|line| writeln!(output, "{line}")).at(|| "write the list")?;
        }
        output.flush().at(|| "write the list")?;
        Ok(Warnings::new())
    }

    fn entry(&self, pid: u32, users: &HashMap<u32, String>) -> Option<ProcessEntry> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        // Held, so that all of it is of one process.
        let directory = openat(&self.proc, pid.to_string().as_str(), flags, Mode::empty()).ok()?;
        let stat = read_at(&directory, "stat").ok()?;
        let mut entry = parse_stat(&String::from_utf8_lossy(&stat), self.uptime_centis)?;
        entry.uid = File::from(directory.try_clone().ok()?).metadata().ok()?.uid();
        entry.user = users.get(&entry.uid).cloned().unwrap_or_else(|| entry.uid.to_string());
        entry.resident_permille =
            entry.resident_kib.saturating_mul(1000).checked_div(self.memory_kib).unwrap_or(0);
        let command = read_at(&directory, "cmdline").ok()?;
        let command = &command[..command.len().min(MAX_COMMAND_BYTES)];
        let words: Vec<_> = command.split(|&byte| byte == 0).map(String::from_utf8_lossy).collect();
        entry.args = words.join(" ").trim_end().to_owned();
        if entry.args.is_empty() {
            entry.args = format!("[{}]", entry.comm);
        }
        Some(entry)
    }
}

fn read_at(directory: &OwnedFd, name: &str) -> io::Result<Vec<u8>> {
    let file = openat(directory, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut bytes = Vec::new();
    File::from(file).take(MAX_STAT_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn memory_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// `12345.67` as hundredths.
fn centis(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.')?;
    let whole: u64 = whole.parse().ok()?;
    whole.checked_mul(100)?.checked_add(part.parse().ok()?)
}

/// proc_pid_stat(5). The name is in parentheses and may hold any, so the last one ends it.
fn parse_stat(stat: &str, uptime_centis: u64) -> Option<ProcessEntry> {
    let (pid, rest) = stat.split_once(" (")?;
    let (comm, rest) = rest.rsplit_once(") ")?;
    // The first is the third of the manual's fields.
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(ProcessEntry {
        pid: pid.trim().parse().ok()?,
        ppid: u32::try_from(number(4)?).ok()?,
        uid: 0,
        user: String::new(),
        state: (*fields.first()?).to_owned(),
        tty: terminal(fields.get(7 - 3)?.parse().ok()?),
        cpu_centis: number(14)?.saturating_add(number(15)?),
        age_centis: uptime_centis.saturating_sub(number(22)?),
        nice: fields.get(19 - 3)?.parse().ok()?,
        threads: number(20)?,
        virtual_kib: number(23)? / 1024,
        resident_kib: number(24)?.saturating_mul(PAGE_KIB),
        resident_permille: 0,
        comm: comm.to_owned(),
        args: String::new(),
    })
}

/// The name of a controlling terminal by its device number.
fn terminal(device: i64) -> String {
    const PTS_MAJORS: std::ops::Range<u64> = 136..144;
    let Ok(device) = u64::try_from(device) else { return "?".to_owned() };
    let (major, minor) = (libc::major(device), libc::minor(device));
    match PTS_MAJORS.contains(&u64::from(major)) {
        true => format!("pts/{}", u64::from(minor) + (u64::from(major) - PTS_MAJORS.start) * 256),
        false => "?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "42 (a) R 1 (b)) S 7 42 42 34817 42 4194560 88 0 0 0 150 25 0 0 20 5 3 0 \
                        4000 2097152 100 18446744073709551615 0 0 0 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0";

    #[test]
    fn a_name_with_parentheses_hides_no_field() {
        let entry = parse_stat(STAT, 10_000).unwrap();
        assert_eq!(entry.comm, "a) R 1 (b)");
        assert_eq!((entry.pid, entry.ppid, entry.state.as_str()), (42, 7, "S"));
        assert_eq!((entry.cpu_centis, entry.age_centis), (175, 6000));
        assert_eq!((entry.nice, entry.threads), (5, 3));
        assert_eq!((entry.virtual_kib, entry.resident_kib), (2048, 400));
        assert_eq!(entry.tty, "pts/1");
    }

    #[test]
    fn what_is_no_stat_is_nothing() {
        for end in 0..STAT.len() - 60 {
            // A cut one may lack fields; none makes a panic.
            let _ = parse_stat(&STAT[..end], 0);
        }
        assert_eq!(parse_stat("", 0), None);
        assert_eq!(parse_stat("1 (x) S 0 1 1", 0), None);
    }

    #[test]
    fn the_guests_memory_is_read() {
        assert_eq!(memory_total("MemTotal:        988748 kB\nMemFree: 1 kB\n"), Some(988_748));
        assert_eq!(memory_total("MemTotal"), None);
    }

    #[test]
    fn no_terminal_is_a_question_mark() {
        assert_eq!(terminal(0), "?");
        assert_eq!(terminal(-1), "?");
    }
}
