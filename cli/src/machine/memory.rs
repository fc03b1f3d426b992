//! How much memory the machine gets, from what the host has.

use std::fs;

use super::MIB;

const LEAST_MIB: u64 = 512;
const USUAL_MIB: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub(super) enum MemoryError {
    #[error("the machine needs {LEAST_MIB} MiB of memory at least, {asked_mib} MiB are too few")]
    TooLittle { asked_mib: u64 },
    #[error(
        "the machine would have {asked_mib} MiB of memory, but of this host's {host_mib} MiB only \
         {available_mib} MiB are available; `caisson machine start --memory` sets less"
    )]
    HostHasLess { asked_mib: u64, host_mib: u64, available_mib: u64 },
}

/// What `/proc/meminfo` says.
#[derive(Clone, Copy, Debug)]
struct Host {
    total_mib: u64,
    available_mib: u64,
}

/// The machine's memory in bytes, whole MiB: `asked`, or the usual.
pub(super) fn decide(asked_bytes: Option<u64>) -> Result<u64, MemoryError> {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let mib = |field| meminfo_kib(&text, field).map_or(u64::MAX, |kib| kib / 1024);
    let host = Host { total_mib: mib("MemTotal:"), available_mib: mib("MemAvailable:") };
    Ok(decide_on(host, asked_bytes.map(|bytes| bytes / MIB))? * MIB)
}

/// QEMU takes memory as the machine uses it, so a quarter must be free at the start.
fn decide_on(host: Host, asked_mib: Option<u64>) -> Result<u64, MemoryError> {
    let asked_mib = asked_mib.unwrap_or(USUAL_MIB.min(host.total_mib / 2));
    if asked_mib < LEAST_MIB {
        return Err(MemoryError::TooLittle { asked_mib });
    }
    if host.available_mib < asked_mib / 4 || host.total_mib < asked_mib {
        let Host { total_mib: host_mib, available_mib } = host;
        return Err(MemoryError::HostHasLess { asked_mib, host_mib, available_mib });
    }
    Ok(asked_mib)
}

fn meminfo_kib(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(field))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_is_half_of_a_small_host() {
        let host = |total_mib| Host { total_mib, available_mib: total_mib };
        assert_eq!(decide_on(host(64_000), None).unwrap(), 4096);
        assert_eq!(decide_on(host(3000), None).unwrap(), 1500);
        assert!(matches!(decide_on(host(900), None), Err(MemoryError::TooLittle { .. })));
    }

    #[test]
    fn what_the_host_does_not_have_is_refused() {
        let host = Host { total_mib: 8000, available_mib: 500 };
        assert!(decide_on(host, Some(2000)).is_ok());
        for asked in [2004, 9000, u64::MAX / MIB] {
            let error = decide_on(host, Some(asked)).unwrap_err();
            assert!(error.to_string().contains("--memory"), "{error}");
        }
    }

    #[test]
    fn a_field_of_meminfo_is_its_number() {
        let text = "MemTotal:       24684 kB\nMemFree: 1 kB\n";
        assert_eq!(meminfo_kib(text, "MemTotal:"), Some(24684));
        assert_eq!(meminfo_kib(text, "MemAvailable:"), None);
    }
}
