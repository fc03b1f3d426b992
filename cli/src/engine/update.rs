//! Changing a container's limits.

use super::{Engine, EngineError};
use crate::{
    config::Limits,
    records::{Container, State},
    spec,
};

impl Engine {
    /// Sets the limits that `change` has, and with `unlimited_pids` lifts that of processes. A
    /// container that runs gets them at once, within the size of its VM; the VM of one that
    /// does not is made for them at the next start.
    pub fn update(
        &self,
        container: &Container,
        change: &Limits,
        unlimited_pids: bool,
    ) -> Result<(), EngineError> {
        let (now, _lock) = self.records.lock(container)?;
        let mut config =
            now.config.clone().ok_or_else(|| EngineError::Damaged { name: now.name.clone() })?;
        if now.state == State::Running {
            let mut resources = spec::limits(change)?;
            if unlimited_pids {
                let mut pids = oci_spec::runtime::LinuxPids::default();
                pids.set_limit(-1);
                resources.set_pids(Some(pids));
            }
            self.connect(&now)?.update(&resources)?;
        }
        merge(&mut config.limits, change, unlimited_pids);
        self.records.set_config(&now.id, &config)?;
        self.tell(&now, "update");
        Ok(())
    }
}

fn merge(limits: &mut Limits, change: &Limits, unlimited_pids: bool) {
    if change.memory_bytes.is_some() {
        limits.memory_bytes = change.memory_bytes;
        // It was for the memory of before.
        limits.memory_swap_bytes = change.memory_swap_bytes;
    }
    limits.memory_reservation_bytes =
        change.memory_reservation_bytes.or(limits.memory_reservation_bytes);
    limits.nano_cpus = change.nano_cpus.or(limits.nano_cpus);
    limits.cpu_shares = change.cpu_shares.or(limits.cpu_shares);
    if change.cpuset_cpus.is_some() {
        limits.cpuset_cpus.clone_from(&change.cpuset_cpus);
    }
    limits.pids = match unlimited_pids {
        true => None,
        false => change.pids.or(limits.pids),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_changed_stays() {
        let mut limits = Limits {
            memory_bytes: Some(64 << 20),
            memory_swap_bytes: Some(65 << 20),
            nano_cpus: Some(1_000_000_000),
            pids: Some(7),
            ..Limits::default()
        };
        merge(&mut limits, &Limits { pids: Some(9), ..Limits::default() }, false);
        assert_eq!((limits.memory_bytes, limits.pids), (Some(64 << 20), Some(9)));
        merge(&mut limits, &Limits { memory_bytes: Some(128 << 20), ..Limits::default() }, true);
        assert_eq!((limits.memory_bytes, limits.memory_swap_bytes), (Some(128 << 20), None));
        assert_eq!((limits.nano_cpus, limits.pids), (Some(1_000_000_000), None));
    }
}
