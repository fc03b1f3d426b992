//! When each stage of a VM's life was first reached.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use caisson_agent_protocol::BootStage;

/// A stage, in the order in which a VM passes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// `main` was entered.
    Main,
    /// The process has confined itself.
    Jailed,
    /// The kernel and the initramfs are in guest memory.
    Loaded,
    /// The first vCPU is about to be entered.
    FirstRun,
    AgentStarted,
    AgentReady,
    ProcessExec,
}

impl Stage {
    const ALL: [Self; 7] = [
        Self::Main,
        Self::Jailed,
        Self::Loaded,
        Self::FirstRun,
        Self::AgentStarted,
        Self::AgentReady,
        Self::ProcessExec,
    ];

    /// The stage's name in a [`Report`](crate::control::Report).
    pub fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Jailed => "jailed",
            Self::Loaded => "loaded",
            Self::FirstRun => "first_run",
            Self::AgentStarted => "agent_started",
            Self::AgentReady => "agent_ready",
            Self::ProcessExec => "process_exec",
        }
    }
}

impl From<BootStage> for Stage {
    fn from(stage: BootStage) -> Self {
        match stage {
            BootStage::AgentStarted => Self::AgentStarted,
            BootStage::AgentReady => Self::AgentReady,
            BootStage::ProcessExec => Self::ProcessExec,
        }
    }
}

/// Shared by all threads; one atomic a stage, zero while it is not reached.
#[derive(Debug, Default)]
pub struct BootTimer {
    usec: [AtomicU64; Stage::ALL.len()],
}

impl BootTimer {
    /// Notes the time of `stage`, unless it was reached before.
    pub fn stamp(&self, stage: Stage) {
        let _ = self.usec[stage as usize].compare_exchange(
            0,
            monotonic_usec(),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
    }

    /// Microseconds of CLOCK_MONOTONIC for each stage that was reached.
    pub fn stages_usec(&self) -> BTreeMap<String, u64> {
        let reached = |stage: Stage| match self.usec[stage as usize].load(Ordering::Relaxed) {
            0 => None,
            usec => Some((stage.name().to_owned(), usec)),
        };
        Stage::ALL.into_iter().filter_map(reached).collect()
    }
}

fn monotonic_usec() -> u64 {
    clock_usec(libc::CLOCK_MONOTONIC)
}

/// CPU time of the whole process, in microseconds.
pub fn process_cpu_usec() -> u64 {
    clock_usec(libc::CLOCK_PROCESS_CPUTIME_ID)
}

fn clock_usec(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a timespec that outlives the call. The call cannot fail for
    // these clocks; if it did, zero would be a harmless answer.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_stamp_counts() {
        let timer = BootTimer::default();
        timer.stamp(Stage::AgentReady);
        let first = timer.stages_usec();
        timer.stamp(Stage::AgentReady);
        assert_eq!(timer.stages_usec(), first);
        assert_eq!(first.keys().collect::<Vec<_>>(), ["agent_ready"]);
    }

    #[test]
    fn stages_are_indexed_by_their_order() {
        for (index, stage) in Stage::ALL.into_iter().enumerate() {
            assert_eq!(stage as usize, index);
        }
    }
}
