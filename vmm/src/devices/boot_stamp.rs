//! A port to which the guest writes the stage that its boot has reached.

use std::sync::Arc;

use caisson_agent_protocol::{BOOT_STAMP_PORT, BootStage};

use crate::{boot_timer::BootTimer, bus::BusDevice};

pub const PORT: u64 = BOOT_STAMP_PORT as u64;

pub struct BootStamp(pub Arc<BootTimer>);

impl BusDevice for BootStamp {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if let [number] = *data
            && let Some(stage) = BootStage::from_u8(number)
        {
            self.0.stamp(stage.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_stages_are_stamped() {
        let timer = Arc::new(BootTimer::default());
        let mut port = BootStamp(timer.clone());
        for data in [&[0][..], &[4], &[255], &[1, 1], &[]] {
            port.write(0, data);
        }
        assert!(timer.stages_usec().is_empty());
        port.write(0, &[BootStage::AgentReady as u8]);
        assert!(timer.stages_usec().contains_key("agent_ready"));
    }
}
