//! How often and why vCPUs left the guest for the vmm.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use kvm_ioctls::VcpuExit;

const NAMES: [&str; 7] =
    ["io_in", "io_out", "mmio_read", "mmio_write", "interrupted", "end", "other"];

/// One vCPU's counts. Only its own thread adds; anyone may read.
#[derive(Debug, Default)]
pub struct ExitCounts([AtomicU64; NAMES.len()]);

impl ExitCounts {
    pub fn count(&self, exit: &Result<VcpuExit, kvm_ioctls::Error>) {
        let index = match exit {
            Ok(VcpuExit::IoIn(..)) => 0,
            Ok(VcpuExit::IoOut(..)) => 1,
            Ok(VcpuExit::MmioRead(..)) => 2,
            Ok(VcpuExit::MmioWrite(..)) => 3,
            Ok(VcpuExit::Intr) | Err(_) => 4,
            Ok(VcpuExit::Shutdown | VcpuExit::SystemEvent(..)) => 5,
            Ok(_) => 6,
        };
        let counter = &self.0[index];
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

/// The sums over all vCPUs, by reason; reasons that never occurred are left out.
pub fn sum<'a>(vcpus: impl IntoIterator<Item = &'a ExitCounts>) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for counts in vcpus {
        for (name, counter) in NAMES.iter().zip(&counts.0) {
            let count = counter.load(Ordering::Relaxed);
            if count > 0 {
                *sums.entry((*name).to_owned()).or_default() += count;
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_summed_by_reason() {
        let vcpus = [ExitCounts::default(), ExitCounts::default()];
        vcpus[0].count(&Ok(VcpuExit::IoOut(0x80, &[0])));
        vcpus[1].count(&Ok(VcpuExit::IoOut(0x80, &[0])));
        vcpus[1].count(&Ok(VcpuExit::Shutdown));
        let expected = [("io_out".to_owned(), 2), ("end".to_owned(), 1)];
        assert_eq!(sum(&vcpus), expected.into_iter().collect());
    }
}
