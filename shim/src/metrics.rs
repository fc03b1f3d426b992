//! A container's [`Stats`] in the two shapes that engines understand.
//!
//! The guest's cgroups are v2 always. An engine's collectors are chosen by the *host's*
//! hierarchy and skip the other shape, so the reply follows the host.

use std::path::Path;

use caisson_agent_protocol::Stats;
use containerd_shim::protos::{
    cgroups::metrics as v1,
    cgroups_v2::metrics as v2,
    protobuf::{Message, MessageField, well_known_types::any::Any},
};

const V1: &str = "io.containerd.cgroups.v1.Metrics";
const V2: &str = "io.containerd.cgroups.v2.Metrics";

/// How the kernel's files say "no limit" when read as a number.
const UNLIMITED: u64 = u64::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    V1,
    V2,
}

impl Shape {
    /// The one that this host's engines read.
    pub fn of_host() -> Self {
        if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { Self::V2 } else { Self::V1 }
    }
}

/// `stats` as the `Any` of a Stats response.
pub fn to_any(stats: &Stats, shape: Shape) -> Any {
    let (type_url, value) = match shape {
        Shape::V1 => (V1, to_v1(stats).write_to_bytes()),
        Shape::V2 => (V2, to_v2(stats).write_to_bytes()),
    };
    let value = value.expect("a message without required fields serialises");
    Any { type_url: type_url.to_owned(), value, ..Default::default() }
}

/// The stats in a Stats response of either shape.
pub fn from_any(any: &Any) -> Option<Stats> {
    match any.type_url.as_str() {
        V1 => v1::Metrics::parse_from_bytes(&any.value).ok().map(|metrics| of_v1(&metrics)),
        V2 => v2::Metrics::parse_from_bytes(&any.value).ok().map(|metrics| of_v2(&metrics)),
        _ => None,
    }
}

fn to_v2(stats: &Stats) -> v2::Metrics {
    v2::Metrics {
        pids: MessageField::some(v2::PidsStat {
            current: stats.pids,
            limit: stats.pids_limit.unwrap_or(0),
            ..Default::default()
        }),
        cpu: MessageField::some(v2::CPUStat {
            usage_usec: stats.cpu_usage_usec,
            user_usec: stats.cpu_user_usec,
            system_usec: stats.cpu_system_usec,
            nr_periods: stats.cpu_periods,
            nr_throttled: stats.cpu_throttled_periods,
            throttled_usec: stats.cpu_throttled_usec,
            ..Default::default()
        }),
        memory: MessageField::some(v2::MemoryStat {
            anon: stats.memory_anon_bytes,
            file: stats.memory_file_bytes,
            kernel_stack: stats.memory_kernel_stack_bytes,
            slab: stats.memory_slab_bytes,
            inactive_file: stats.memory_inactive_file_bytes,
            pgfault: stats.memory_page_faults,
            pgmajfault: stats.memory_major_page_faults,
            usage: stats.memory_bytes,
            usage_limit: stats.memory_limit_bytes.unwrap_or(UNLIMITED),
            max_usage: stats.memory_peak_bytes,
            ..Default::default()
        }),
        memory_events: MessageField::some(v2::MemoryEvents {
            oom_kill: stats.oom_kills,
            ..Default::default()
        }),
        io: MessageField::some(v2::IOStat {
            usage: vec![v2::IOEntry {
                rbytes: stats.io_read_bytes,
                wbytes: stats.io_written_bytes,
                rios: stats.io_reads,
                wios: stats.io_writes,
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn of_v2(metrics: &v2::Metrics) -> Stats {
    let io = metrics.io.usage.first().cloned().unwrap_or_default();
    Stats {
        cpu_usage_usec: metrics.cpu.usage_usec,
        cpu_user_usec: metrics.cpu.user_usec,
        cpu_system_usec: metrics.cpu.system_usec,
        cpu_periods: metrics.cpu.nr_periods,
        cpu_throttled_periods: metrics.cpu.nr_throttled,
        cpu_throttled_usec: metrics.cpu.throttled_usec,
        memory_bytes: metrics.memory.usage,
        memory_limit_bytes: Some(metrics.memory.usage_limit).filter(|&limit| limit != UNLIMITED),
        memory_peak_bytes: metrics.memory.max_usage,
        memory_anon_bytes: metrics.memory.anon,
        memory_file_bytes: metrics.memory.file,
        memory_inactive_file_bytes: metrics.memory.inactive_file,
        memory_kernel_stack_bytes: metrics.memory.kernel_stack,
        memory_slab_bytes: metrics.memory.slab,
        memory_page_faults: metrics.memory.pgfault,
        memory_major_page_faults: metrics.memory.pgmajfault,
        oom_kills: metrics.memory_events.oom_kill,
        pids: metrics.pids.current,
        pids_limit: Some(metrics.pids.limit).filter(|&limit| limit != 0),
        io_read_bytes: io.rbytes,
        io_written_bytes: io.wbytes,
        io_reads: io.rios,
        io_writes: io.wios,
    }
}

fn to_v1(stats: &Stats) -> v1::Metrics {
    let nanos = |usec: u64| usec.saturating_mul(1000);
    v1::Metrics {
        pids: MessageField::some(v1::PidsStat {
            current: stats.pids,
            limit: stats.pids_limit.unwrap_or(0),
            ..Default::default()
        }),
        cpu: MessageField::some(v1::CPUStat {
            usage: MessageField::some(v1::CPUUsage {
                total: nanos(stats.cpu_usage_usec),
                kernel: nanos(stats.cpu_system_usec),
                user: nanos(stats.cpu_user_usec),
                ..Default::default()
            }),
            throttling: MessageField::some(v1::Throttle {
                periods: stats.cpu_periods,
                throttled_periods: stats.cpu_throttled_periods,
                throttled_time: nanos(stats.cpu_throttled_usec),
                ..Default::default()
            }),
            ..Default::default()
        }),
        memory: MessageField::some(v1::MemoryStat {
            cache: stats.memory_file_bytes,
            rss: stats.memory_anon_bytes,
            pg_fault: stats.memory_page_faults,
            pg_maj_fault: stats.memory_major_page_faults,
            inactive_file: stats.memory_inactive_file_bytes,
            total_cache: stats.memory_file_bytes,
            total_rss: stats.memory_anon_bytes,
            total_pg_fault: stats.memory_page_faults,
            total_pg_maj_fault: stats.memory_major_page_faults,
            total_inactive_file: stats.memory_inactive_file_bytes,
            usage: MessageField::some(v1::MemoryEntry {
                limit: stats.memory_limit_bytes.unwrap_or(UNLIMITED),
                usage: stats.memory_bytes,
                max: stats.memory_peak_bytes,
                ..Default::default()
            }),
            kernel: MessageField::some(v1::MemoryEntry {
                limit: UNLIMITED,
                usage: stats.memory_kernel_stack_bytes.saturating_add(stats.memory_slab_bytes),
                ..Default::default()
            }),
            ..Default::default()
        }),
        memory_oom_control: MessageField::some(v1::MemoryOomControl {
            oom_kill: stats.oom_kills,
            ..Default::default()
        }),
        blkio: MessageField::some(v1::BlkIOStat {
            io_service_bytes_recursive: vec![
                block_entry("Read", stats.io_read_bytes),
                block_entry("Write", stats.io_written_bytes),
            ],
            io_serviced_recursive: vec![
                block_entry("Read", stats.io_reads),
                block_entry("Write", stats.io_writes),
            ],
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn of_v1(metrics: &v1::Metrics) -> Stats {
    let value = |entries: &[v1::BlkIOEntry], op: &str| {
        entries.iter().find(|entry| entry.op == op).map_or(0, |entry| entry.value)
    };
    let (bytes, times) =
        (&metrics.blkio.io_service_bytes_recursive, &metrics.blkio.io_serviced_recursive);
    Stats {
        cpu_usage_usec: metrics.cpu.usage.total / 1000,
        cpu_user_usec: metrics.cpu.usage.user / 1000,
        cpu_system_usec: metrics.cpu.usage.kernel / 1000,
        cpu_periods: metrics.cpu.throttling.periods,
        cpu_throttled_periods: metrics.cpu.throttling.throttled_periods,
        cpu_throttled_usec: metrics.cpu.throttling.throttled_time / 1000,
        memory_bytes: metrics.memory.usage.usage,
        memory_limit_bytes: Some(metrics.memory.usage.limit).filter(|&limit| limit != UNLIMITED),
        memory_peak_bytes: metrics.memory.usage.max,
        memory_anon_bytes: metrics.memory.rss,
        memory_file_bytes: metrics.memory.cache,
        memory_inactive_file_bytes: metrics.memory.inactive_file,
        // v1 has one number for the kernel's memory.
        memory_kernel_stack_bytes: 0,
        memory_slab_bytes: metrics.memory.kernel.usage,
        memory_page_faults: metrics.memory.pg_fault,
        memory_major_page_faults: metrics.memory.pg_maj_fault,
        oom_kills: metrics.memory_oom_control.oom_kill,
        pids: metrics.pids.current,
        pids_limit: Some(metrics.pids.limit).filter(|&limit| limit != 0),
        io_read_bytes: value(bytes, "Read"),
        io_written_bytes: value(bytes, "Write"),
        io_reads: value(times, "Read"),
        io_writes: value(times, "Write"),
    }
}

fn block_entry(op: &str, value: u64) -> v1::BlkIOEntry {
    v1::BlkIOEntry { op: op.to_owned(), value, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats() -> Stats {
        Stats {
            cpu_usage_usec: 1,
            cpu_user_usec: 2,
            cpu_system_usec: 3,
            cpu_periods: 4,
            cpu_throttled_periods: 5,
            cpu_throttled_usec: 6,
            memory_bytes: 7,
            memory_limit_bytes: Some(8),
            memory_peak_bytes: 9,
            memory_anon_bytes: 10,
            memory_file_bytes: 11,
            memory_inactive_file_bytes: 12,
            memory_kernel_stack_bytes: 0,
            memory_slab_bytes: 14,
            memory_page_faults: 15,
            memory_major_page_faults: 16,
            oom_kills: 17,
            pids: 18,
            pids_limit: Some(19),
            io_read_bytes: 20,
            io_written_bytes: 21,
            io_reads: 22,
            io_writes: 23,
        }
    }

    #[test]
    fn either_shape_carries_every_number() {
        for shape in [Shape::V1, Shape::V2] {
            assert_eq!(from_any(&to_any(&stats(), shape)), Some(stats()), "{shape:?}");
            let unlimited = Stats { memory_limit_bytes: None, pids_limit: None, ..stats() };
            assert_eq!(from_any(&to_any(&unlimited, shape)), Some(unlimited), "{shape:?}");
        }
    }

    #[test]
    fn a_foreign_type_is_not_read() {
        assert_eq!(from_any(&Any { type_url: "other".into(), ..Default::default() }), None);
    }
}
