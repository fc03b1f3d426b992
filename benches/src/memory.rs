//! Memory of a process, from `/proc/<pid>/smaps`.

use std::{fs, path::PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// In KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Private to the process, without the guest's memory.
    pub private_kib: u64,
    /// Private memory behind the guest's mappings.
    pub guest_kib: u64,
    /// Proportional set size of everything but the guest's memory.
    pub proportional_kib: u64,
}

/// The memory of `pid`. Mappings of at least `guest_from_kib` are the guest's, and those
/// of the files that it boots.
pub fn of(pid: u32, guest_from_kib: u64) -> anyhow::Result<Memory> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    Ok(parse(&text, guest_from_kib))
}

fn parse(smaps: &str, guest_from_kib: u64) -> Memory {
    let mut memory = Memory::default();
    let (mut guest, mut boot_file) = (false, false);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let Some(key) = words.next() else { continue };
        if key.contains('-') {
            let name = words.next_back().unwrap_or_default();
            boot_file = name.ends_with("/vmlinux") || name.ends_with("/initramfs.cpio");
            continue;
        }
        let kib: u64 = words.next().and_then(|value| value.parse().ok()).unwrap_or(0);
        match key {
            "Size:" => guest = boot_file || kib >= guest_from_kib,
            "Private_Clean:" | "Private_Dirty:" if guest => memory.guest_kib += kib,
            "Private_Clean:" | "Private_Dirty:" => memory.private_kib += kib,
            "Pss:" if !guest => memory.proportional_kib += kib,
            _ => {}
        }
    }
    memory
}

/// The processes that run this program, by the name of their executable.
pub fn processes(program: &str) -> anyhow::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("list /proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let exe: PathBuf = fs::read_link(entry.path().join("exe")).unwrap_or_default();
        if exe.file_name().is_some_and(|name| name == program) {
            found.push(pid);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_mapping_is_told_from_the_rest() {
        let smaps = "7f00-7f01 rw-p 0 00:00 0\nSize: 131072 kB\nPss: 4000 kB\n\
                     Private_Dirty: 4000 kB\n7f02-7f03 r-xp 0 00:00 1 /bin/x\nSize: 900 kB\n\
                     Pss: 300 kB\nPrivate_Clean: 200 kB\nPrivate_Dirty: 12 kB\n\
                     7f03-7f04 rw-p 200000 00:00 2 /lib/caisson/vmlinux\nSize: 11080 kB\n\
                     Pss: 50 kB\nPrivate_Dirty: 40 kB\n";
        let memory = parse(smaps, 65536);
        assert_eq!(memory, Memory { private_kib: 212, guest_kib: 4040, proportional_kib: 300 });
    }
}
