//! What a container uses, read from its cgroup.

use caisson_agent_protocol::Stats;

use crate::cgroup::{Cgroup, field};

/// Reads the counters. What a missing controller would say is zero.
pub fn read(cgroup: &Cgroup) -> Stats {
    let text = |file| cgroup.read(file).unwrap_or_default();
    let number = |file| text(file).trim().parse().unwrap_or(0);
    let limit = |file| text(file).trim().parse().ok(); // "max" is no number
    let (cpu, memory, io) = (text("cpu.stat"), text("memory.stat"), text("io.stat"));
    Stats {
        cpu_usage_usec: field(&cpu, "usage_usec"),
        cpu_user_usec: field(&cpu, "user_usec"),
        cpu_system_usec: field(&cpu, "system_usec"),
        cpu_periods: field(&cpu, "nr_periods"),
        cpu_throttled_periods: field(&cpu, "nr_throttled"),
        cpu_throttled_usec: field(&cpu, "throttled_usec"),
        memory_bytes: number("memory.current"),
        memory_limit_bytes: limit("memory.max"),
        memory_peak_bytes: number("memory.peak"),
        memory_anon_bytes: field(&memory, "anon"),
        memory_file_bytes: field(&memory, "file"),
        memory_inactive_file_bytes: field(&memory, "inactive_file"),
        memory_kernel_stack_bytes: field(&memory, "kernel_stack"),
        memory_slab_bytes: field(&memory, "slab"),
        memory_page_faults: field(&memory, "pgfault"),
        memory_major_page_faults: field(&memory, "pgmajfault"),
        oom_kills: cgroup.oom_kills(),
        pids: number("pids.current"),
        pids_limit: limit("pids.max"),
        io_read_bytes: sum(&io, "rbytes"),
        io_written_bytes: sum(&io, "wbytes"),
        io_reads: sum(&io, "rios"),
        io_writes: sum(&io, "wios"),
    }
}

/// The sum over all devices of `key=number` in `io.stat`.
fn sum(io_stat: &str, key: &str) -> u64 {
    io_stat
        .split_whitespace()
        .filter_map(|word| word.split_once('='))
        .filter(|(name, _)| *name == key)
        .filter_map(|(_, value)| value.parse::<u64>().ok())
        .fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_is_summed_over_devices() {
        let text =
            "254:0 rbytes=4096 wbytes=0 rios=1 wios=0\n254:16 rbytes=10 wbytes=7 rios=2 wios=3\n";
        assert_eq!(sum(text, "rbytes"), 4106);
        assert_eq!(sum(text, "wios"), 3);
        assert_eq!(sum("garbage rbytes=x =", "rbytes"), 0);
    }
}
