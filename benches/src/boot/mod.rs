//! From `caisson run` to the first byte of output: stages, exits, instructions, memory.

pub mod alone;
pub mod chart;
pub mod container;
pub mod report;
pub mod stages;

use std::path::PathBuf;

/// What the bench measures with.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The staged `caisson`; its vmm lies beside it.
    pub caisson: PathBuf,
    /// [`reset-init`](../bin/reset_init.rs), static.
    pub reset_init: PathBuf,
    /// The busybox image as an archive.
    pub busybox: PathBuf,
}

impl Programs {
    pub fn vmm(&self) -> PathBuf {
        self.caisson.with_file_name("caisson-vmm")
    }

    pub fn kernel(&self) -> PathBuf {
        self.caisson.with_file_name("../lib/caisson/vmlinux")
    }
}
