//! What was measured, as figures and as a table.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{container::Idle, stages::Trace};
use crate::process::{Spent, median};

/// Everything that one call of the bench measured.
#[derive(Debug, Serialize, Deserialize)]
pub struct Measured {
    /// One trace a run.
    pub traces: Vec<Trace>,
    pub idle: Idle,
    /// Kernel to `/init` and reset, each run.
    pub caisson: Vec<Spent>,
    pub qemu: Vec<Spent>,
    /// Start to first KVM_RUN on this CPU, each run.
    #[serde(default)]
    pub first_run_ms: Vec<f64>,
}

impl Measured {
    /// The trace whose whole time is the median one.
    pub fn typical(&self) -> Option<&Trace> {
        let mut traces: Vec<_> = self.traces.iter().collect();
        let whole = |trace: &Trace| trace.stages.last().map_or(0.0, |stage| stage.at_ms);
        traces.sort_by(|a, b| whole(a).total_cmp(&whole(b)));
        traces.get(traces.len().saturating_sub(1) / 2).copied()
    }

    /// The figures that have budgets.
    pub fn figures(&self) -> BTreeMap<String, f64> {
        let cpu = |spent: &[Spent]| median(spent.iter().map(|spent| spent.cpu_seconds).collect());
        let mib = |kib: u64| kib as f64 / 1024.0;
        let mut figures = BTreeMap::new();
        let mut put = |name: &str, figure: Option<f64>| {
            if let Some(figure) = figure {
                figures.insert(name.to_owned(), figure);
            }
        };
        put("vmm_boot_cpu_seconds", cpu(&self.caisson));
        put("qemu_boot_cpu_seconds", cpu(&self.qemu));
        put("vmm_first_run_ms_native", median(self.first_run_ms.clone()));
        put("vmm_private_mib", Some(mib(self.idle.vmm.private_kib)));
        let both = self.idle.vmm.private_kib + self.idle.shim.private_kib;
        put("host_side_private_mib", Some(mib(both)));
        figures
    }

    /// A table for people.
    pub fn table(&self) -> String {
        let mut text = String::from("Stages of `caisson run --rm busybox echo`, median run\n\n");
        let trace = self.typical();
        let mut last = 0.0;
        for stage in trace.map_or(&[][..], |trace| &trace.stages) {
            let name = format!("{} {}", stage.process, stage.stage);
            let step = stage.at_ms - last;
            text.push_str(&format!("  {name:<28} {:>10.3} ms  +{step:.3}\n", stage.at_ms));
            last = stage.at_ms;
        }
        text.push_str("\nVM exits of that run\n\n");
        for (reason, count) in trace.iter().flat_map(|trace| &trace.exits) {
            text.push_str(&format!("  {reason:<28} {count:>10}\n"));
        }
        text.push_str("\nKernel to /init and reset, 128 MiB, one vCPU, median\n\n");
        let figures = self.figures();
        for (label, name) in
            [("Caisson", "vmm_boot_cpu_seconds"), ("QEMU microvm", "qemu_boot_cpu_seconds")]
        {
            let figure = figures.get(name).copied().unwrap_or(f64::NAN);
            text.push_str(&format!("  {label:<28} {figure:>10.4} CPU-s\n"));
        }
        text.push_str("\nMemory of an idle container's processes (private, KiB)\n\n");
        for (name, memory) in [("vmm", &self.idle.vmm), ("shim", &self.idle.shim)] {
            let (private, guest) = (memory.private_kib, memory.guest_kib);
            text.push_str(&format!("  {name:<28} {private:>10}  guest memory {guest}\n"));
        }
        text
    }
}
